-- Live tasks: small, changed often. `ready` is 1 for what may be claimed now, 0 for what waits for
-- its run_at, NULL for what its status forbids. Times are microseconds. A seq has the moment of
-- the submit in its upper bits, so that a range of them is a day.
CREATE TABLE tasks (
    seq           bigint PRIMARY KEY,
    id            uuid NOT NULL,
    task_type     text NOT NULL,
    priority      smallint NOT NULL,
    status        text NOT NULL,
    ready         smallint,
    run_at        bigint NOT NULL,
    timeout       bigint NOT NULL,
    max_retries   integer NOT NULL,
    payload_crc   bigint NOT NULL,
    weight        integer NOT NULL,
    created_at    bigint NOT NULL,
    updated_at    bigint NOT NULL,
    last_event    text NOT NULL,
    retry_count   integer NOT NULL,
    token         bigint NOT NULL,
    worker_id     text,
    claimed_at    bigint,
    deadline      bigint,
    progress      double precision,
    progress_note text NOT NULL
) WITH (
    fillfactor = 70,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 2000,
    autovacuum_analyze_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);
CREATE UNIQUE INDEX tasks_by_id ON tasks (id);
CREATE INDEX tasks_by_readiness ON tasks (task_type, priority DESC, run_at, seq) WHERE ready = 1;
CREATE INDEX tasks_by_due_time ON tasks (run_at) WHERE ready = 0;
CREATE INDEX tasks_by_deadline ON tasks (deadline) WHERE status = 'in_progress';
CREATE INDEX tasks_by_holder ON tasks (worker_id) WHERE status = 'in_progress';
CREATE INDEX tasks_by_trouble ON tasks (status, seq) WHERE status IN ('failed', 'dead_letter');
CREATE INDEX tasks_by_type ON tasks (task_type, seq);

-- Which priorities a type has had: a claim looks into each of these lanes from where it stopped.
CREATE TABLE lanes (
    task_type text NOT NULL,
    priority  smallint NOT NULL,
    PRIMARY KEY (task_type, priority)
);

-- Tasks that completed or were cancelled, a partition for each day of their submits.
CREATE TABLE archive (
    seq           bigint NOT NULL,
    id            uuid NOT NULL,
    task_type     text NOT NULL,
    priority      smallint NOT NULL,
    status        text NOT NULL,
    run_at        bigint NOT NULL,
    timeout       bigint NOT NULL,
    max_retries   integer NOT NULL,
    payload_crc   bigint NOT NULL,
    weight        integer NOT NULL,
    created_at    bigint NOT NULL,
    updated_at    bigint NOT NULL,
    last_event    text NOT NULL,
    retry_count   integer NOT NULL,
    token         bigint NOT NULL,
    worker_id     text,
    claimed_at    bigint,
    deadline      bigint,
    progress      double precision,
    progress_note text NOT NULL,
    PRIMARY KEY (seq)
) PARTITION BY RANGE (seq);
CREATE INDEX archive_by_id ON archive (id);
CREATE INDEX archive_by_type ON archive (task_type, seq);
CREATE INDEX archive_by_end ON archive (updated_at);
CREATE INDEX archive_cancelled ON archive (seq) WHERE status = 'cancelled';
CREATE TABLE archive_rest PARTITION OF archive DEFAULT;

-- Bytes are written once and never move when a task changes.
CREATE TABLE payloads (seq bigint PRIMARY KEY, data bytea NOT NULL) PARTITION BY RANGE (seq);
CREATE TABLE payloads_rest PARTITION OF payloads DEFAULT;
CREATE TABLE results (
    seq bigint PRIMARY KEY, crc bigint NOT NULL, data bytea NOT NULL
) PARTITION BY RANGE (seq);
CREATE TABLE results_rest PARTITION OF results DEFAULT;

CREATE TABLE failures (
    seq       bigint NOT NULL,
    number    bigint GENERATED ALWAYS AS IDENTITY,
    attempt   bigint NOT NULL,
    at        bigint NOT NULL,
    worker_id text,
    kind      text NOT NULL,
    message   text NOT NULL,
    traceback text NOT NULL
);
CREATE INDEX failures_by_task ON failures (seq, number);

-- Sums up to the batches that were folded into them; `batches` has what came after.
CREATE TABLE counters (
    task_type text NOT NULL,
    status    text NOT NULL,
    tier      text NOT NULL,
    present   bigint NOT NULL,
    entered   bigint NOT NULL,
    PRIMARY KEY (task_type, status, tier)
) WITH (fillfactor = 50);
CREATE TABLE minutes (
    minute    bigint PRIMARY KEY,
    completed bigint NOT NULL,
    failed    bigint NOT NULL,
    busy      bigint NOT NULL
) WITH (fillfactor = 50);

-- What each transaction counted. Its row also says, after a lost connection, that it was committed.
CREATE TABLE batches (
    broker bigint NOT NULL,
    number bigint NOT NULL,
    minute bigint NOT NULL,
    seen   bigint[] NOT NULL,
    counts jsonb NOT NULL,
    PRIMARY KEY (broker, number)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

CREATE TABLE keys (
    id          text PRIMARY KEY,
    name        text NOT NULL,
    digest      text NOT NULL,
    hint        text NOT NULL,
    permissions text[] NOT NULL,
    created_at  bigint NOT NULL,
    scope       text NOT NULL,
    rate_limit  integer,
    expires_at  bigint,
    revoked_at  bigint,
    used_at     bigint,
    old_digest  text,
    old_until   bigint
);

CREATE TABLE audit (
    number    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at        bigint NOT NULL,
    key_id    text,
    name      text,
    address   text NOT NULL,
    operation text NOT NULL,
    target    text NOT NULL,
    outcome   text NOT NULL
);

-- Answers kept for requests that may be repeated. Rows are never updated: that of a worker's
-- latest claim would be the same one, thousands of times.
CREATE TABLE kept (
    scope  text NOT NULL,
    name   text NOT NULL,
    key    text NOT NULL,
    answer text NOT NULL,
    until  bigint NOT NULL,
    PRIMARY KEY (scope, name, key)
);
CREATE INDEX kept_by_end ON kept (until);

-- Brokers: each start is a new one. `folded` is the number of its last batch in the counters.
CREATE TABLE brokers (
    number  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    address text NOT NULL,
    http    text NOT NULL,
    version text NOT NULL,
    since   timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen    timestamptz NOT NULL DEFAULT clock_timestamp(),
    load    double precision NOT NULL DEFAULT 0,
    workers integer NOT NULL DEFAULT 0,
    folded  bigint NOT NULL DEFAULT 0
) WITH (fillfactor = 50);

-- One row: who does the housekeeping, and the term, which grows with each change of hands.
CREATE TABLE leadership (
    one    smallint PRIMARY KEY CHECK (one = 1),
    term   bigint NOT NULL,
    broker bigint,
    until  timestamptz NOT NULL
) WITH (fillfactor = 50);
INSERT INTO leadership VALUES (1, 0, NULL, '-infinity');

-- When each worker was last heard of, by any broker. It may be lost with the primary: then every
-- worker gets one whole lease to be heard of again.
CREATE UNLOGGED TABLE workers (
    worker_id text PRIMARY KEY,
    seen      timestamptz NOT NULL
) WITH (fillfactor = 50);
