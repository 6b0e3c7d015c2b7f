"""The table of tasks that are still to be sent, and the statements about it."""

from typing import Final

CHANNEL: Final = "taskqueue_outbox"

TABLE: Final = """\
CREATE TABLE IF NOT EXISTS taskqueue_outbox (
    seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_id uuid NOT NULL UNIQUE,
    task_type text NOT NULL,
    payload bytea NOT NULL,
    priority smallint NOT NULL,
    timeout integer NOT NULL,
    max_retries integer NOT NULL,
    schedule_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    refused text
)
"""
"""The table. `refused` says why the broker will not have a task; it stays then, for you to see."""

NOTIFY: Final = """\
CREATE OR REPLACE FUNCTION taskqueue_outbox_notify() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify('taskqueue_outbox', '');
    RETURN NULL;
END
$$;
CREATE OR REPLACE TRIGGER taskqueue_outbox_notify AFTER INSERT ON taskqueue_outbox
    FOR EACH STATEMENT EXECUTE FUNCTION taskqueue_outbox_notify()
"""
"""Wakes the relay at each commit, instead of when it next looks. Commits that notify queue up."""

_INSERT: Final = """\
INSERT INTO taskqueue_outbox
    (task_id, task_type, payload, priority, timeout, max_retries, schedule_at)
VALUES ({}, {}, {}, {}, {}, {},
    coalesce({}::timestamptz, clock_timestamp() + {}::float8 * interval '1 second'))
"""

INSERT_NUMBERED: Final = _INSERT.format(*(f"${number}" for number in range(1, 9)))
"""For asyncpg."""

INSERT_MARKED: Final = _INSERT.format(*["%s"] * 8)
"""For psycopg."""

TAKE: Final = """\
SELECT seq, task_id, task_type, payload, priority, timeout, max_retries, schedule_at
FROM taskqueue_outbox WHERE refused IS NULL ORDER BY seq LIMIT $1 FOR UPDATE SKIP LOCKED
"""

DELETE: Final = "DELETE FROM taskqueue_outbox WHERE seq = ANY($1::bigint[])"

REFUSE: Final = "UPDATE taskqueue_outbox SET refused = $2 WHERE seq = $1"
