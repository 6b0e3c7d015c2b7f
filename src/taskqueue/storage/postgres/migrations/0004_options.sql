-- What few tasks are submitted with, as JSON; the moment at which a task goes; the lines it logged.
ALTER TABLE tasks ADD COLUMN options text, ADD COLUMN expires_at bigint,
    ADD COLUMN logged integer NOT NULL DEFAULT 0;
ALTER TABLE archive ADD COLUMN options text, ADD COLUMN expires_at bigint,
    ADD COLUMN logged integer NOT NULL DEFAULT 0;
CREATE INDEX tasks_by_expiry ON tasks (expires_at)
    WHERE expires_at IS NOT NULL AND status IN ('pending', 'failed');
CREATE INDEX archive_by_retention ON archive (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX tasks_by_label ON tasks USING gin ((options::jsonb) jsonb_path_ops)
    WHERE options IS NOT NULL;
CREATE INDEX archive_by_label ON archive USING gin ((options::jsonb) jsonb_path_ops)
    WHERE options IS NOT NULL;

CREATE TABLE checkpoints (seq bigint PRIMARY KEY, data bytea NOT NULL);
CREATE TABLE logs (
    seq      bigint NOT NULL,
    number   bigint GENERATED ALWAYS AS IDENTITY,
    attempt  bigint NOT NULL,
    at       bigint NOT NULL,
    level    text NOT NULL,
    message  text NOT NULL
);
CREATE INDEX logs_by_task ON logs (seq, number);

-- Who heard of a worker last, and whether it has closed its connections there; what it tells of
-- itself; what it is ordered to do, and since when.
ALTER TABLE workers ADD COLUMN broker bigint, ADD COLUMN is_gone boolean NOT NULL DEFAULT false,
    ADD COLUMN about text NOT NULL DEFAULT '', ADD COLUMN ordered text,
    ADD COLUMN ordered_at bigint NOT NULL DEFAULT 0;
