-- A task without its bytes: what changes. Times are microseconds.
CREATE TABLE tasks (
    seq          INTEGER PRIMARY KEY,
    id           TEXT NOT NULL,
    task_type    TEXT NOT NULL,
    priority     INTEGER NOT NULL,
    status       TEXT NOT NULL,
    -- 1: may be claimed now; 0: waits for its run_at; NULL: its status forbids it.
    ready        INTEGER,
    run_at       INTEGER NOT NULL,
    timeout      INTEGER NOT NULL,
    max_retries  INTEGER NOT NULL,
    payload_crc  INTEGER NOT NULL,
    created_at   INTEGER NOT NULL,
    updated_at   INTEGER NOT NULL,
    last_event   TEXT NOT NULL,
    retry_count  INTEGER NOT NULL,
    token        INTEGER NOT NULL,
    worker_id    TEXT,
    claimed_at   INTEGER,
    deadline     INTEGER,
    progress      REAL,
    progress_note TEXT NOT NULL
) STRICT;

CREATE UNIQUE INDEX by_id ON tasks (id);
-- The claim order. Every index ends with seq, which settles ties.
CREATE INDEX by_readiness ON tasks (task_type, priority DESC, run_at) WHERE ready = 1;
CREATE INDEX by_due_time ON tasks (run_at) WHERE ready = 0;
CREATE INDEX by_holder ON tasks (worker_id, deadline) WHERE status = 'in_progress';
CREATE INDEX by_end ON tasks (updated_at) WHERE status IN ('completed', 'cancelled');
-- For lists. Running tasks are few and have an index already.
CREATE INDEX by_status ON tasks (status) WHERE status <> 'in_progress';
CREATE INDEX by_type ON tasks (task_type);

-- Bytes are written once and never move when a task changes.
CREATE TABLE payloads (seq INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE results (seq INTEGER PRIMARY KEY, crc INTEGER NOT NULL, data BLOB NOT NULL) STRICT;

CREATE TABLE failures (
    seq        INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    worker_id  TEXT,
    kind       TEXT NOT NULL,
    message    TEXT NOT NULL,
    traceback  TEXT NOT NULL
) STRICT;
CREATE INDEX failures_by_task ON failures (seq);

-- Changed in the transaction of what they count. The rows of type '' sum over all types.
CREATE TABLE counters (
    task_type  TEXT NOT NULL,
    status     TEXT NOT NULL,
    tier       TEXT NOT NULL,
    present    INTEGER NOT NULL,
    entered    INTEGER NOT NULL,
    PRIMARY KEY (task_type, status, tier)
) STRICT, WITHOUT ROWID;

CREATE TABLE minutes (
    minute     INTEGER PRIMARY KEY,
    completed  INTEGER NOT NULL,
    failed     INTEGER NOT NULL,
    busy       INTEGER NOT NULL
) STRICT;

-- One row: the number of the latest commit, and the next seq, which is never used twice.
CREATE TABLE ledger (
    one            INTEGER PRIMARY KEY CHECK (one = 1),
    commit_number  INTEGER NOT NULL,
    next_seq       INTEGER NOT NULL
) STRICT;
INSERT INTO ledger VALUES (1, 0, 1);
