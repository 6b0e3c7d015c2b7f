-- API keys without their secrets. Times are microseconds.
CREATE TABLE keys (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    digest       TEXT NOT NULL,
    hint         TEXT NOT NULL,
    permissions  TEXT NOT NULL,
    created_at   INTEGER NOT NULL,
    scope        TEXT NOT NULL,
    rate_limit   INTEGER,
    expires_at   INTEGER,
    revoked_at   INTEGER,
    used_at      INTEGER,
    old_digest   TEXT,
    old_until    INTEGER
) STRICT, WITHOUT ROWID;

-- What was asked of the broker by whom. A number is never used twice.
CREATE TABLE audit (
    number     INTEGER PRIMARY KEY AUTOINCREMENT,
    at         INTEGER NOT NULL,
    key_id     TEXT,
    name       TEXT,
    address    TEXT NOT NULL,
    operation  TEXT NOT NULL,
    target     TEXT NOT NULL,
    outcome    TEXT NOT NULL
) STRICT;

-- Answers kept for requests that may be repeated.
CREATE TABLE kept (
    scope    TEXT NOT NULL,
    name     TEXT NOT NULL,
    key      TEXT NOT NULL,
    answer   TEXT NOT NULL,
    until    INTEGER NOT NULL,
    PRIMARY KEY (scope, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX kept_by_end ON kept (until);
