"""Every hot statement finds its rows by an index: no scan of the queue, no sort of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apsw
import pytest

from taskqueue.core.task import Status
from taskqueue.storage.port import TaskQuery
from taskqueue.storage.sqlite import reader
from taskqueue.storage.sqlite import statements as sql
from taskqueue.storage.sqlite.schema import migrate


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[apsw.Connection]:
    database = apsw.Connection(str(tmp_path / "queue.db"))
    migrate(database)
    yield database
    database.close()


def steps_of(
    connection: apsw.Connection, statement: str, bindings: Sequence[Any] = ()
) -> list[str]:
    return [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", bindings)]


def require_index(steps: list[str], index: str) -> None:
    """Tasks are reached by this index or by their number, and in no other way."""
    on_tasks = [step for step in steps if " tasks" in step or " found" in step]
    assert any(f"INDEX {index}" in step for step in on_tasks), steps
    for step in on_tasks:
        assert f"INDEX {index}" in step or "SEARCH tasks USING INTEGER PRIMARY KEY" in step, steps


@pytest.mark.parametrize(
    ("index", "statement", "bindings"),
    [
        ("by_readiness", sql.pick(1), ("a", 1, 1)),
        ("by_readiness", sql.pick(3), ("a", 1, "b", 1, "c", 1, 1)),
        ("by_id", sql.LOAD, ("[]",)),
        ("by_due_time", sql.DUE, (0, 1)),
        ("by_due_time", sql.NEXT_DUE, ()),
        ("by_end", sql.PAST_RETENTION, (0, 1)),
        ("by_holder", reader.HELD, ("[]",)),
        ("by_holder", reader.OVERDUE, ("[]", 0, 1)),
        ("by_holder", reader.HOLDERS, ()),
    ],
)
def test_the_statement_uses_its_index(
    connection: apsw.Connection, index: str, statement: str, bindings: tuple[object, ...]
) -> None:
    require_index(steps_of(connection, statement, bindings), index)


def count_rows(connection: apsw.Connection, task_type: str, status: Status, number: int) -> None:
    """Make the counters say so."""
    for name in (task_type, ""):
        connection.execute(
            "INSERT INTO counters VALUES (?1, ?2, 'low', ?3, ?3) "
            "ON CONFLICT DO UPDATE SET present = present + ?3",
            (name, status, number),
        )


@pytest.mark.parametrize("before_seq", [None, 77])
@pytest.mark.parametrize(
    ("status", "task_type", "index"),
    [
        *((status, None, "by_status") for status in Status if status is not Status.IN_PROGRESS),
        (Status.IN_PROGRESS, None, "by_holder"),
        (Status.IN_PROGRESS, "many", "by_holder"),
        (None, "many", "by_type"),
        (Status.PENDING, "many", "by_status"),
        (Status.COMPLETED, "few", "by_type"),
    ],
)
def test_a_list_goes_by_the_narrowest_index(
    connection: apsw.Connection,
    status: Status | None,
    task_type: str | None,
    index: str,
    before_seq: int | None,
) -> None:
    count_rows(connection, "many", Status.PENDING, 5)
    count_rows(connection, "many", Status.COMPLETED, 5_000)
    count_rows(connection, "few", Status.COMPLETED, 5)
    query = TaskQuery(status, task_type, before_seq=before_seq)
    steps = steps_of(connection, *reader.list_statement(connection, query))
    require_index(steps, index)
    if index != "by_holder":
        assert not any("TEMP B-TREE" in step for step in steps), steps


def test_a_list_of_everything_goes_backwards_through_the_table(
    connection: apsw.Connection,
) -> None:
    steps = steps_of(connection, *reader.list_statement(connection, TaskQuery()))
    assert not any("TEMP B-TREE" in step for step in steps), steps


@pytest.mark.parametrize("types", [1, 3])
def test_a_pick_never_sorts_the_queue(connection: apsw.Connection, types: int) -> None:
    """Each type's part comes out of its index in claim order; only the picked rows are merged."""
    bindings = [value for _ in range(types) for value in ("a", 1)]
    steps = [
        (row[1], str(row[3]))
        for row in connection.execute(f"EXPLAIN QUERY PLAN {sql.pick(types)}", [*bindings, 1])
    ]
    readers = {parent for parent, step in steps if "by_readiness" in step}
    sorters = {parent for parent, step in steps if "USE TEMP B-TREE" in step}
    assert not readers & sorters, steps
