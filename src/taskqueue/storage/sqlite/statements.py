"""The SQL of the engine, and how a batch's rows go over in few steps.

Each `sqlite3_step` gives up the interpreter lock and has to win it back from the event loop, so
nothing here steps row by row: rows go in by multi-row VALUES and come out as one JSON array.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final, TypeVar

import apsw
import msgspec
from msgspec import Struct
from msgspec.structs import fields

from taskqueue.core.audit import AuditEntry
from taskqueue.core.errors import DataDamaged
from taskqueue.core.keys import Key
from taskqueue.core.repeats import LOOK_AGAIN, Kept
from taskqueue.core.task import Task

Rows = TypeVar("Rows")


def _columns(struct: type[Struct]) -> str:
    return ", ".join(field.name for field in fields(struct))


TASK_COLUMNS: Final = _columns(Task)
JSON_COLUMNS: Final = TASK_COLUMNS.replace("options", "json(options)")
AS_JSON: Final = f"json_group_array(json_array({JSON_COLUMNS}))"
KEY_COLUMNS: Final = _columns(Key)
KEYS: Final = f"""
    SELECT json_group_array(json_array({KEY_COLUMNS.replace("permissions", "json(permissions)")}))
    FROM (SELECT * FROM keys ORDER BY created_at, id)"""
SAVE_KEY: Final = f"INSERT OR REPLACE INTO keys ({KEY_COLUMNS}) VALUES ({', '.join('?' * 13)})"

AUDIT_COLUMNS: Final = _columns(AuditEntry)
ADD_TO_AUDIT: Final = "INSERT INTO audit VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)"
AUDIT_LOG: Final = f"""
    SELECT json_group_array(json_array({AUDIT_COLUMNS})) FROM (
        SELECT * FROM audit WHERE number < ? ORDER BY number DESC LIMIT ?)"""
FORGET_AUDIT: Final = """
    DELETE FROM audit WHERE number IN (
        SELECT number FROM audit WHERE at < ? ORDER BY number LIMIT ?)"""

KEPT: Final = f"""
    SELECT json_group_array(json_array({_columns(Kept)})) FROM (
        SELECT kept.* FROM json_each(?) AS wanted CROSS JOIN kept
        ON scope = wanted.value ->> 0 AND name = wanted.value ->> 1
        WHERE kept.key = wanted.value ->> 2 AND (until > ? OR scope = 'unique'))"""
KEEP: Final = "INSERT OR REPLACE INTO kept VALUES (?, ?, ?, ?, ?)"
_HOLDER_LIVES: Final = """
    EXISTS (
        SELECT 1 FROM tasks WHERE id = kept.answer ->> 0
        AND status IN ('pending', 'in_progress', 'failed'))"""
HOLD_UNIQUE: Final = f"""
    UPDATE kept SET until = ?1 + {LOOK_AGAIN} WHERE scope = 'unique' AND name IN (
        SELECT name FROM kept WHERE until <= ?1 AND scope = 'unique' AND {_HOLDER_LIVES}
        ORDER BY until LIMIT ?2)"""
"""A task that has not ended keeps its unique key, however old it is."""
FORGET_KEPT: Final = f"""
    DELETE FROM kept WHERE (scope, name) IN (
        SELECT scope, name FROM kept
        WHERE until <= ? AND CASE WHEN scope = 'unique' THEN NOT {_HOLDER_LIVES} ELSE true END
        ORDER BY until LIMIT ?)"""
IS_FINISHED: Final = "status IN ('completed', 'cancelled')"

# Where an index leads to a task, the row is read in a step of its own: SQLite takes a column from
# the index if it can, and would not show that a damaged one leads to another task.
LOAD: Final = f"""
    SELECT {AS_JSON} FROM (
        SELECT tasks.* FROM json_each(?) AS wanted
        CROSS JOIN tasks AS found ON found.id = wanted.value
        CROSS JOIN tasks ON tasks.seq = found.seq)"""

PAYLOADS: Final = """
    SELECT json_group_array(json_array(seq, length(data))), CAST(group_concat(data, '') AS BLOB)
    FROM (SELECT seq, data FROM json_each(?) AS wanted CROSS JOIN payloads ON seq = wanted.value)"""

DUE: Final = """
    SELECT json_group_array(json_array(seq, task_type)) FROM (
        SELECT seq, task_type FROM tasks WHERE ready = 0 AND run_at <= ? ORDER BY run_at LIMIT ?)"""
PROMOTE: Final = """
    UPDATE tasks SET ready = 1 WHERE seq IN (SELECT value FROM json_each(?)) AND ready = 0"""
NEXT_DUE: Final = "SELECT min(run_at) FROM tasks WHERE ready = 0"

PAST_RETENTION: Final = f"""
    SELECT json_group_array(json_array(tasks.seq, task_type, status, priority, updated_at))
    FROM (
        SELECT seq FROM tasks WHERE {IS_FINISHED} AND updated_at < ? ORDER BY updated_at LIMIT ?
    ) AS past CROSS JOIN tasks ON tasks.seq = past.seq"""
PAST_OWN_RETENTION: Final = f"""
    SELECT json_group_array(json_array(tasks.seq, task_type, status, priority, tasks.expires_at))
    FROM (
        SELECT seq FROM tasks WHERE {IS_FINISHED} AND expires_at IS NOT NULL AND expires_at < ?
        ORDER BY expires_at LIMIT ?
    ) AS past CROSS JOIN tasks ON tasks.seq = past.seq"""
DELETIONS: Final = tuple(
    f"DELETE FROM {table} WHERE seq IN (SELECT value FROM json_each(?))"
    for table in ("tasks", "payloads", "results", "failures", "checkpoints", "logs")
)

NOTE_COMMIT: Final = "UPDATE ledger SET commit_number = ?, next_seq = ?"


class BulkStatement:
    """A statement over many rows, cut into chunks of a few sizes that stay prepared."""

    SIZES: Final = (256, 64, 16, 4, 1)

    def __init__(self, head: str, width: int, tail: str = "") -> None:
        # Without spaces: the largest text must stay below what apsw keeps prepared, 16 KiB.
        row = "(" + ",".join("?" * width) + ")"
        self._texts = {size: head + ",".join([row] * size) + tail for size in self.SIZES}

    def run(self, connection: apsw.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Carry it out for all rows."""
        done = 0
        for size, text in self._texts.items():
            while len(rows) - done >= size:
                connection.execute(text, tuple(chain(*rows[done : done + size])))
                done += size


INSERT_TASKS: Final = BulkStatement(f"INSERT INTO tasks ({TASK_COLUMNS}, ready) VALUES ", 24)
UPDATE_TASKS: Final = BulkStatement(
    """
    UPDATE tasks SET
        status = column2, ready = column3, run_at = column4, updated_at = column5,
        last_event = column6, retry_count = column7, token = column8, worker_id = column9,
        claimed_at = column10, deadline = column11, progress = column12, progress_note = column13,
        losses = column14, priority = column15, expires_at = column16, logged = column17
    FROM (VALUES """,
    17,
    ") WHERE seq = column1",
)
INSERT_PAYLOADS: Final = BulkStatement("INSERT INTO payloads VALUES ", 2)
INSERT_RESULTS: Final = BulkStatement("INSERT INTO results VALUES ", 3)
INSERT_FAILURES: Final = BulkStatement("INSERT INTO failures VALUES ", 7)
INSERT_LOGS: Final = BulkStatement("INSERT INTO logs VALUES ", 5)
PUT_CHECKPOINTS: Final = BulkStatement("INSERT OR REPLACE INTO checkpoints VALUES ", 2)
CHECKPOINTS: Final = """
    SELECT seq, data FROM json_each(?) AS wanted CROSS JOIN checkpoints ON seq = wanted.value"""
ADD_TO_COUNTERS: Final = BulkStatement(
    "INSERT INTO counters VALUES ",
    5,
    """ ON CONFLICT DO UPDATE SET
        present = present + excluded.present, entered = entered + excluded.entered""",
)
FORGET_MINUTES: Final = "DELETE FROM minutes WHERE minute < ?"
ADD_TO_MINUTE: Final = """
    INSERT INTO minutes VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET
        completed = completed + excluded.completed, failed = failed + excluded.failed,
        busy = busy + excluded.busy"""


def rows_of(
    connection: apsw.Connection, statement: str, bindings: Sequence[Any] = ()
) -> list[tuple[Any, ...]]:
    """All rows of a statement. Raises DataDamaged for text that is none."""
    try:
        return connection.execute(statement, bindings).fetchall()
    except UnicodeDecodeError as error:
        raise DataDamaged(f"a stored row holds text that cannot be read: {error}") from error


def row_of(
    connection: apsw.Connection, statement: str, bindings: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """The one row of a statement that always has one."""
    return rows_of(connection, statement, bindings)[0]


def decoded(
    connection: apsw.Connection,
    decoder: msgspec.json.Decoder[Rows],
    statement: str,
    bindings: Sequence[Any] = (),
) -> Rows:
    """What a statement returns as one JSON array. Raises DataDamaged where it makes no sense."""
    try:
        return decoder.decode(row_of(connection, statement, bindings)[0])
    except (apsw.SQLError, msgspec.MsgspecError, ValueError) as error:
        raise DataDamaged(f"a stored row makes no sense: {error}") from error


@cache
def pick(types: int) -> str:
    """The statement that picks ready tasks of so many types in claim order.

    Takes, for each type, its name and the limit, then the limit once more.
    """
    one_type = """
        SELECT * FROM (
            SELECT seq AS number, priority AS rank, run_at AS since FROM tasks
            WHERE ready = 1 AND task_type = ? ORDER BY priority DESC, run_at, seq LIMIT ?)"""
    return f"""
        SELECT json_group_array(json_array(
            json_array({JSON_COLUMNS}),
            coalesce((SELECT length(data) FROM payloads WHERE payloads.seq = number), 0)
        ) ORDER BY rank DESC, since, number)
        FROM (
            SELECT * FROM ({" UNION ALL ".join([one_type] * types)})
            ORDER BY rank DESC, since, number LIMIT ?) CROSS JOIN tasks ON seq = number"""


def as_json_numbers(numbers: Iterable[int]) -> str:
    """A JSON array of integers, for `json_each`."""
    return "[" + ",".join(map(str, numbers)) + "]"
