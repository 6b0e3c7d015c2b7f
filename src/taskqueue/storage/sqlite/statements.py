"""The SQL of the engine, and how a batch's rows go over in few steps.

Each `sqlite3_step` gives up the interpreter lock and has to win it back from the event loop, so
nothing here steps row by row: rows go in by multi-row VALUES and come out as one JSON array.
"""

from collections.abc import Iterable, Sequence
from functools import cache
from itertools import chain
from typing import Any, Final

import apsw
from msgspec.structs import fields

from taskqueue.core.task import Task

TASK_COLUMNS: Final = ", ".join(field.name for field in fields(Task))
AS_JSON: Final = f"json_group_array(json_array({TASK_COLUMNS}))"
IS_FINISHED: Final = "status IN ('completed', 'cancelled')"

LOAD: Final = f"""
    SELECT {AS_JSON} FROM (
        SELECT tasks.* FROM json_each(?) AS wanted CROSS JOIN tasks ON tasks.id = wanted.value)"""

PAYLOADS: Final = """
    SELECT json_group_array(json_array(seq, length(data))), CAST(group_concat(data, '') AS BLOB)
    FROM (SELECT seq, data FROM json_each(?) AS wanted CROSS JOIN payloads ON seq = wanted.value)"""

DUE: Final = """
    SELECT json_group_array(json_array(seq, task_type)) FROM (
        SELECT seq, task_type FROM tasks WHERE ready = 0 AND run_at <= ? ORDER BY run_at LIMIT ?)"""
PROMOTE: Final = "UPDATE tasks SET ready = 1 WHERE seq IN (SELECT value FROM json_each(?))"
NEXT_DUE: Final = "SELECT min(run_at) FROM tasks WHERE ready = 0"

PAST_RETENTION: Final = f"""
    SELECT json_group_array(json_array(seq, task_type, status, priority)) FROM (
        SELECT * FROM tasks WHERE {IS_FINISHED} AND updated_at < ? ORDER BY updated_at LIMIT ?)"""
DELETIONS: Final = tuple(
    f"DELETE FROM {table} WHERE seq IN (SELECT value FROM json_each(?))"
    for table in ("tasks", "payloads", "results", "failures")
)

NOTE_COMMIT: Final = "UPDATE ledger SET commit_number = ?, next_seq = ?"


class BulkStatement:
    """A statement over many rows, cut into chunks of a few sizes that stay prepared."""

    SIZES: Final = (256, 64, 16, 4, 1)

    def __init__(self, head: str, width: int, tail: str = "") -> None:
        row = "(" + ", ".join("?" * width) + ")"
        self._texts = {size: head + ", ".join([row] * size) + tail for size in self.SIZES}

    def run(self, connection: apsw.Connection, rows: Sequence[tuple[Any, ...]]) -> None:
        """Carry it out for all rows."""
        done = 0
        for size, text in self._texts.items():
            while len(rows) - done >= size:
                connection.execute(text, tuple(chain(*rows[done : done + size])))
                done += size


INSERT_TASKS: Final = BulkStatement(f"INSERT INTO tasks ({TASK_COLUMNS}, ready) VALUES ", 20)
UPDATE_TASKS: Final = BulkStatement(
    """
    UPDATE tasks SET
        status = column2, ready = column3, run_at = column4, updated_at = column5,
        last_event = column6, retry_count = column7, token = column8, worker_id = column9,
        claimed_at = column10, deadline = column11, progress = column12, progress_note = column13
    FROM (VALUES """,
    13,
    ") WHERE seq = column1",
)
INSERT_PAYLOADS: Final = BulkStatement("INSERT INTO payloads VALUES ", 2)
INSERT_RESULTS: Final = BulkStatement("INSERT INTO results VALUES ", 3)
INSERT_FAILURES: Final = BulkStatement("INSERT INTO failures VALUES ", 7)
ADD_TO_COUNTERS: Final = BulkStatement(
    "INSERT INTO counters VALUES ",
    5,
    """ ON CONFLICT DO UPDATE SET
        present = present + excluded.present, entered = entered + excluded.entered""",
)
ADD_TO_MINUTE: Final = """
    INSERT INTO minutes VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET
        completed = completed + excluded.completed, failed = failed + excluded.failed,
        busy = busy + excluded.busy"""


def rows_of(
    connection: apsw.Connection, statement: str, bindings: Sequence[Any] = ()
) -> list[tuple[Any, ...]]:
    """All rows of a statement."""
    return connection.execute(statement, bindings).fetchall()


def row_of(
    connection: apsw.Connection, statement: str, bindings: Sequence[Any] = ()
) -> tuple[Any, ...]:
    """The one row of a statement that always has one."""
    return rows_of(connection, statement, bindings)[0]


@cache
def pick(types: int) -> str:
    """The statement that picks ready tasks of so many types in claim order.

    Takes, for each type, its name and the limit, then the limit once more.
    """
    one_type = f"""
        SELECT * FROM (
            SELECT {TASK_COLUMNS} FROM tasks WHERE ready = 1 AND task_type = ?
            ORDER BY priority DESC, run_at, seq LIMIT ?)"""
    return f"""
        SELECT json_group_array(json_array(
            json_array({TASK_COLUMNS}),
            (SELECT length(data) FROM payloads WHERE payloads.seq = picked.seq)
        ) ORDER BY priority DESC, run_at, seq)
        FROM (
            SELECT * FROM ({" UNION ALL ".join([one_type] * types)})
            ORDER BY priority DESC, run_at, seq LIMIT ?) AS picked"""


def as_json_numbers(numbers: Iterable[int]) -> str:
    """A JSON array of integers, for `json_each`."""
    return "[" + ",".join(map(str, numbers)) + "]"
