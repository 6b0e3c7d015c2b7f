"""The SQL of the engine's transactions: one statement for each kind of change in a batch.

Rows go over as one array for each column. Names are written out with their schema, so that
nothing depends on the settings of a connection that a pooler lends.
"""

from functools import cache
from itertools import count
from typing import Final

from msgspec import Struct
from msgspec.structs import fields

from taskqueue.core.audit import AuditEntry
from taskqueue.core.keys import Key
from taskqueue.core.repeats import LOOK_AGAIN
from taskqueue.core.task import Failure, Task


def _names(struct: type[Struct]) -> list[str]:
    return [field.name for field in fields(struct)]


_TYPES: Final = {
    "seq": "bigint",
    "id": "uuid",
    "task_type": "text",
    "priority": "smallint",
    "status": "text",
    "ready": "smallint",
    "run_at": "bigint",
    "timeout": "bigint",
    "max_retries": "integer",
    "payload_crc": "bigint",
    "weight": "integer",
    "created_at": "bigint",
    "updated_at": "bigint",
    "last_event": "text",
    "retry_count": "integer",
    "token": "bigint",
    "worker_id": "text",
    "claimed_at": "bigint",
    "deadline": "bigint",
    "progress": "double precision",
    "progress_note": "text",
    "losses": "integer",
    "options": "text",
    "expires_at": "bigint",
    "logged": "integer",
}
_FIELDS: Final = _names(Task)

CHANGING: Final = (
    "status",
    "ready",
    "run_at",
    "updated_at",
    "last_event",
    "retry_count",
    "token",
    "worker_id",
    "claimed_at",
    "deadline",
    "progress",
    "progress_note",
    "losses",
    "priority",
    "expires_at",
    "logged",
)
"""The columns of a live task that change; the others are as they were submitted."""


def task_columns(table: str) -> str:
    """A task's columns in the order of its struct."""
    return ", ".join(f"{table}.{name}{'::text' * (name == 'id')}" for name in _FIELDS)


def _arrays(columns: list[str]) -> str:
    return ", ".join(f"${n}::{_TYPES[name]}[]" for n, name in enumerate(columns, 1))


def _insert_tasks(table: str, more: list[str]) -> str:
    columns = [*_FIELDS, *more]
    return (
        f"INSERT INTO taskqueue.{table} ({', '.join(columns)}) "
        f"SELECT * FROM unnest({_arrays(columns)})"
    )


INSERT_LIVE: Final = _insert_tasks("tasks", ["weight", "ready"])
INSERT_ENDED: Final = _insert_tasks("archive", ["weight"])
UPDATE_LIVE: Final = f"""
    UPDATE taskqueue.tasks SET {", ".join(f"{name} = new.{name}" for name in CHANGING)}
    FROM unnest({_arrays(["seq", *CHANGING])}) AS new (seq, {", ".join(CHANGING)})
    WHERE tasks.seq = ANY (ARRAY[new.seq])"""
DELETE_LIVE: Final = "DELETE FROM taskqueue.tasks WHERE seq = ANY($1::bigint[])"
DELETE_ENDED: Final = "DELETE FROM taskqueue.archive WHERE seq = ANY($1::bigint[])"


def _load(table: str) -> str:
    return f"""
        SELECT {task_columns(table)}, weight FROM unnest($1::uuid[]) AS wanted (id)
        JOIN taskqueue.{table} ON {table}.id = ANY (ARRAY[wanted.id]) FOR UPDATE OF {table}"""


LOAD_LIVE: Final = _load("tasks")
LOAD_ENDED: Final = _load("archive")
"""Rows are locked in the order in which the ids are given."""

INSERT_PAYLOADS: Final = """
    INSERT INTO taskqueue.payloads SELECT * FROM unnest($1::bigint[], $2::bytea[])"""
INSERT_RESULTS: Final = """
    INSERT INTO taskqueue.results SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[])"""
FAILURE_COLUMNS: Final = ", ".join(_names(Failure))
INSERT_FAILURES: Final = f"""
    INSERT INTO taskqueue.failures (seq, {FAILURE_COLUMNS})
    SELECT * FROM unnest(
        $1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::text[], $6::text[], $7::text[])"""
INSERT_LOGS: Final = """
    INSERT INTO taskqueue.logs (seq, attempt, at, level, message)
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bigint[], $4::text[], $5::text[])"""
PUT_CHECKPOINTS: Final = """
    INSERT INTO taskqueue.checkpoints SELECT * FROM unnest($1::bigint[], $2::bytea[])
    ON CONFLICT (seq) DO UPDATE SET data = excluded.data"""
CHECKPOINTS: Final = """
    SELECT checkpoints.seq, data FROM unnest($1::bigint[]) AS wanted (seq)
    JOIN taskqueue.checkpoints ON checkpoints.seq = ANY (ARRAY[wanted.seq])"""
INSERT_LANES: Final = """
    INSERT INTO taskqueue.lanes SELECT * FROM unnest($1::text[], $2::smallint[])
    ON CONFLICT DO NOTHING"""
PAYLOADS: Final = """
    SELECT payloads.seq, data FROM unnest($1::bigint[]) AS wanted (seq)
    JOIN taskqueue.payloads ON payloads.seq = ANY (ARRAY[wanted.seq])"""

KEPT: Final = """
    SELECT kept.scope, kept.name, kept.key, answer, until
    FROM unnest($1::text[], $2::text[], $3::text[]) AS wanted (scope, name, key)
    JOIN taskqueue.kept ON kept.scope = ANY (ARRAY[wanted.scope])
        AND kept.name = ANY (ARRAY[wanted.name]) AND kept.key = ANY (ARRAY[wanted.key])
    WHERE until > $4"""
HOLD_UNIQUE_NAMES: Final = """
    SELECT kept.scope, kept.name, kept.key, answer, until
    FROM unnest($1::text[]) AS wanted (name)
    JOIN taskqueue.kept ON kept.scope = 'unique'
        AND kept.name = ANY (ARRAY[wanted.name]) AND kept.key = ANY (ARRAY[wanted.name])
    FOR UPDATE OF kept"""
"""Whoever has another task of these keys in mind waits; in the order in which they are given."""
FORGET_NAMED: Final = """
    DELETE FROM taskqueue.kept USING unnest($1::text[], $2::text[], $3::text[])
        AS old (scope, name, key)
    WHERE kept.scope = ANY (ARRAY[old.scope]) AND kept.name = ANY (ARRAY[old.name])
        AND kept.key = ANY (ARRAY[old.key])"""
KEEP: Final = """
    INSERT INTO taskqueue.kept
    SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[])
    ON CONFLICT (scope, name, key) DO UPDATE SET answer = excluded.answer, until = excluded.until
    WHERE kept.scope = 'claim' OR kept.until <= $6"""
KEEP_UNIQUE: Final = f"""
    UPDATE taskqueue.kept SET until = $1 + {LOOK_AGAIN} WHERE (scope, name, key) IN (
        SELECT scope, name, key FROM taskqueue.kept
        WHERE until <= $1 AND scope = 'unique' AND EXISTS (
            SELECT FROM taskqueue.tasks WHERE id = (answer::jsonb ->> 0)::uuid
                AND status IN ('pending', 'in_progress', 'failed'))
        ORDER BY until LIMIT $2 FOR UPDATE SKIP LOCKED)"""
"""A task that has not ended keeps its unique key, however old it is."""
FORGET_KEPT: Final = """
    DELETE FROM taskqueue.kept WHERE (scope, name, key) IN (
        SELECT scope, name, key FROM taskqueue.kept
        WHERE until <= $1 AND CASE WHEN scope = 'unique' THEN
            NOT EXISTS (
                SELECT FROM taskqueue.tasks WHERE id = (answer::jsonb ->> 0)::uuid
                    AND status IN ('pending', 'in_progress', 'failed'))
            ELSE true END
        ORDER BY until LIMIT $2 FOR UPDATE SKIP LOCKED)"""

KEY_COLUMNS: Final = ", ".join(_names(Key))
KEYS: Final = f"SELECT {KEY_COLUMNS} FROM taskqueue.keys ORDER BY created_at, id"
LOCK_KEYS: Final = "LOCK TABLE taskqueue.keys IN SHARE ROW EXCLUSIVE MODE"
SAVE_KEY: Final = f"""
    INSERT INTO taskqueue.keys ({KEY_COLUMNS})
    VALUES ({", ".join(f"${n}" for n in range(1, len(_names(Key)) + 1))})
    ON CONFLICT (id) DO UPDATE SET
        {", ".join(f"{name} = excluded.{name}" for name in _names(Key) if name != "id")}"""

AUDIT_COLUMNS: Final = ", ".join(_names(AuditEntry))
ENTER: Final = f"""
    INSERT INTO taskqueue.audit ({", ".join(_names(AuditEntry)[1:])})
    SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[],
        $7::text[])"""
FORGET_AUDIT: Final = """
    DELETE FROM taskqueue.audit WHERE number IN (
        SELECT number FROM taskqueue.audit
        WHERE at < $1 ORDER BY number LIMIT $2 FOR UPDATE SKIP LOCKED)"""

PROMOTE: Final = """
    WITH due AS MATERIALIZED (
        SELECT seq FROM taskqueue.tasks WHERE ready = 0 AND run_at >= $1 AND run_at <= $2
        ORDER BY run_at LIMIT $3 FOR UPDATE SKIP LOCKED)
    UPDATE taskqueue.tasks SET ready = 1 FROM due WHERE tasks.seq = ANY (ARRAY[due.seq])
    RETURNING tasks.seq, task_type, priority, run_at"""
NEXT_DUE: Final = """
    SELECT run_at FROM taskqueue.tasks WHERE ready = 0 AND run_at >= $1 ORDER BY run_at LIMIT 1"""

PURGE: Final = """
    DELETE FROM taskqueue.{table} WHERE seq IN (
        SELECT seq FROM taskqueue.{table}
        WHERE updated_at < $1 ORDER BY updated_at LIMIT $2 FOR UPDATE SKIP LOCKED)
    RETURNING seq, task_type, status, priority"""
PURGE_EXPIRED: Final = """
    DELETE FROM taskqueue.archive WHERE seq IN (
        SELECT seq FROM taskqueue.archive
        WHERE expires_at < $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED)
    RETURNING seq, task_type, status, priority"""
NOTES: Final = ("failures", "checkpoints", "logs")
"""The tables of what attempts leave, which have no partitions."""
DELETE_BYTES: Final = tuple(
    f"DELETE FROM taskqueue.{table} WHERE seq = ANY($1::bigint[])"
    for table in ("payloads", "results", *NOTES)
)

NOTE_BATCH: Final = """
    INSERT INTO taskqueue.batches SELECT number, $2::bigint, $3::bigint, $4::bigint[], $5::jsonb
    FROM taskqueue.brokers WHERE number = $1 FOR KEY SHARE"""
"""Nothing is inserted for a broker that was given up: nobody would count it."""
CLAIM_NUMBER: Final = """
    WITH known AS (
        SELECT number, folded FROM taskqueue.brokers WHERE number = $1 FOR NO KEY UPDATE
    ), claimed AS (
        INSERT INTO taskqueue.batches
        SELECT number, $2::bigint, 0, ARRAY[0, 0, 0], '[]' FROM known WHERE folded < $2
        ON CONFLICT (broker, number) DO UPDATE SET minute = batches.minute
        RETURNING xmax = 0 AS was_free
    )
    SELECT coalesce(was_free, false) FROM known LEFT JOIN claimed ON true"""
"""Whether the number was free; no row if the broker was given up, so that nobody can say. It writes
in any case, so that its own commit waits for a standby as the one in doubt should have."""
HOLD_TERM: Final = """
    SELECT term FROM taskqueue.leadership WHERE broker = $1 AND term = $2 FOR SHARE"""

ENDED_MEANWHILE: Final = """
    SELECT EXISTS (SELECT FROM taskqueue.archive WHERE id = ANY($1::uuid[]))"""
IS_SOMEWHERE: Final = """
    SELECT EXISTS (SELECT FROM taskqueue.tasks WHERE id = ANY($1::uuid[]))
        OR EXISTS (SELECT FROM taskqueue.archive WHERE id = ANY($1::uuid[]))"""

FROZEN_SECONDS: Final = 5
"""How long a broker that is frozen between two statements keeps others from its rows."""

BEGIN: Final = f"""
    BEGIN ISOLATION LEVEL READ COMMITTED;
    SET LOCAL idle_in_transaction_session_timeout = '{FROZEN_SECONDS}s';
    SET LOCAL lock_timeout = '2s';
    SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off; SET LOCAL enable_bitmapscan = off;
    SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off;
    SET LOCAL enable_material = off; SET LOCAL jit = off;
    SET LOCAL plan_cache_mode = force_generic_plan"""
"""How a transaction begins. Tables of a queue are empty one moment and full the next: what the
planner knows of them is never true, and each statement here has one right plan, by index. Rows are
joined to wanted ones by `= ANY (ARRAY[…])`, since for `=` the planner also considers to read a
whole index in its order, which looks cheap while a table is small. Neither limit holds for the wait
of a commit."""


@cache
def pick(levels: tuple[int, ...]) -> str:
    """The statement that picks ready tasks in claim order and locks them.

    `levels` has, from the highest priority down, how many lanes there are of it. Takes the limit,
    then for each lane its task type, its priority and the `run_at` to begin at. The lanes of a
    level are merged as they are read, and a level is read when those above are empty: no more is
    read than is picked. What others hold is passed over.
    """
    numbers = count()
    read = " UNION ALL ".join(
        f"SELECT place FROM ({_level([next(numbers) for _ in range(lanes)])}) AS level{n}"
        for n, lanes in enumerate(levels)
    )
    return f"""
        SELECT {task_columns("tasks")}, tasks.weight
        FROM ({read}) AS waiting JOIN taskqueue.tasks ON tasks.ctid = waiting.place
        WHERE tasks.ready IS NOT DISTINCT FROM 1 LIMIT $1 FOR UPDATE OF tasks SKIP LOCKED"""


def _level(lanes: list[int]) -> str:
    scans = " UNION ALL ".join(
        f"(SELECT ctid AS place, run_at, seq FROM taskqueue.tasks WHERE ready = 1"
        f" AND task_type = ${3 * n + 2} AND priority = ${3 * n + 3}::smallint"
        f" AND run_at >= ${3 * n + 4} ORDER BY run_at, seq)"
        for n in lanes
    )
    return f"SELECT place FROM ({scans}) AS lane ORDER BY run_at, seq"
