-- What few tasks are submitted with, as JSON; the moment at which a task goes; the lines it logged.
ALTER TABLE tasks ADD COLUMN options TEXT;
ALTER TABLE tasks ADD COLUMN expires_at INTEGER;
ALTER TABLE tasks ADD COLUMN logged INTEGER NOT NULL DEFAULT 0;
CREATE INDEX by_expiry ON tasks (expires_at)
    WHERE expires_at IS NOT NULL AND status IN ('pending', 'failed');
CREATE INDEX by_retention ON tasks (expires_at)
    WHERE expires_at IS NOT NULL AND status IN ('completed', 'cancelled');

-- Tags as they are, metadata as name=value with a sign before that no tag has.
CREATE TABLE labels (
    label  TEXT NOT NULL,
    seq    INTEGER NOT NULL,
    PRIMARY KEY (label, seq)
) STRICT, WITHOUT ROWID;
CREATE TRIGGER label_task AFTER INSERT ON tasks WHEN NEW.options IS NOT NULL BEGIN
    INSERT OR IGNORE INTO labels
        SELECT value, NEW.seq FROM json_each(NEW.options, '$.tags');
    INSERT OR IGNORE INTO labels
        SELECT ' ' || key || '=' || value, NEW.seq FROM json_each(NEW.options, '$.metadata');
END;
CREATE TRIGGER unlabel_task AFTER DELETE ON tasks WHEN OLD.options IS NOT NULL BEGIN
    DELETE FROM labels WHERE seq = OLD.seq AND label IN (
        SELECT value FROM json_each(OLD.options, '$.tags')
        UNION ALL
        SELECT ' ' || key || '=' || value FROM json_each(OLD.options, '$.metadata'));
END;

CREATE TABLE checkpoints (seq INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE logs (
    seq      INTEGER NOT NULL,
    attempt  INTEGER NOT NULL,
    at       INTEGER NOT NULL,
    level    TEXT NOT NULL,
    message  TEXT NOT NULL
) STRICT;
CREATE INDEX logs_by_task ON logs (seq);
