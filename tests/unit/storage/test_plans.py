"""Every hot statement finds its rows by an index: no scan of the queue, no sort of it."""

from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from taskqueue.storage.sqlite import statements as sql
from taskqueue.storage.sqlite.schema import migrate


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[apsw.Connection]:
    database = apsw.Connection(str(tmp_path / "queue.db"))
    migrate(database)
    yield database
    database.close()


LIST = "SELECT seq FROM tasks {} ORDER BY seq DESC LIMIT 10 OFFSET 0"
HELD = """SELECT tasks.* FROM json_each('[]') AS holder CROSS JOIN tasks
    ON status = 'in_progress' AND worker_id = holder.value"""


@pytest.mark.parametrize(
    ("index", "statement", "bindings"),
    [
        ("by_readiness", sql.pick(1), ("a", 1, 1)),
        ("by_readiness", sql.pick(3), ("a", 1, "b", 1, "c", 1, 1)),
        ("by_id", sql.LOAD, ("[]",)),
        ("by_due_time", sql.DUE, (0, 1)),
        ("by_due_time", sql.NEXT_DUE, ()),
        ("by_end", sql.PAST_RETENTION, (0, 1)),
        ("by_holder", HELD, ()),
        ("by_holder", HELD + " AND deadline <= 5", ()),
        ("by_type", LIST.format("WHERE task_type = 'a'"), ()),
        (
            "by_status",
            LIST.format("WHERE status = 'pending' AND status <> 'in_progress'"),
            (),
        ),
    ],
)
def test_the_statement_uses_its_index(
    connection: apsw.Connection, index: str, statement: str, bindings: tuple[object, ...]
) -> None:
    steps = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", bindings)]
    on_tasks = [step for step in steps if " tasks" in step]
    assert on_tasks, steps
    for step in on_tasks:
        assert f"INDEX {index}" in step or "PRIMARY KEY" in step, steps


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
