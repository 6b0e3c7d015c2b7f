"""A move that is cut short at any point: nobody can start on half of it, and a repeat ends it."""

import asyncio
import json
import signal
from pathlib import Path
from typing import Final

import pytest

from taskqueue.core.errors import StorageRefused
from taskqueue.storage.move import destination
from taskqueue.storage.move.move import move_tasks
from taskqueue.storage.postgres.connections import Connection, connect, database_at
from taskqueue.storage.postgres.engine import PostgresStorage
from taskqueue.storage.sqlite.engine import SqliteStorage
from tests.move.commands import a_move, tq_move
from tests.move.filling import Folder, filled
from tests.support.door import PATIENCE

MANY: Final = 14_000
STATUSES: Final = """
    SELECT status, count(*) FROM (
        SELECT status FROM taskqueue.tasks UNION ALL SELECT status FROM taskqueue.archive) AS every
    GROUP BY status"""


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return filled(tmp_path_factory.mktemp("many") / "data", MANY, 1_400)


@pytest.fixture
def large(many: Folder, tmp_path: Path) -> Folder:
    """A folder that takes a move a while."""
    return many.copy(tmp_path / "data")


async def until_copied(connection: Connection, number: int) -> None:
    """Wait until so many tasks are in the database."""
    exists = "SELECT to_regclass('taskqueue.move') IS NOT NULL"
    async with asyncio.timeout(PATIENCE):
        while not await connection.fetchval(exists):  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        reached = "SELECT coalesce(max(reached), 0) FROM taskqueue.move"
        while await connection.fetchval(reached) < number:  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def require_closed(dsn: str) -> None:
    """The database takes no broker while it has not everything."""
    with pytest.raises(StorageRefused, match=r"not all tasks .* run tq move"):
        await PostgresStorage(database_at(dsn)).open()


@pytest.mark.parametrize("copied", [1, MANY // 2], ids=["first", "half"])
async def test_one_that_is_killed_is_ended_by_a_repeat(
    large: Folder, dsn: str, copied: int
) -> None:
    connection = await connect(database_at(dsn), "read-write", "test")
    try:
        with a_move(large, dsn) as process:
            await until_copied(connection, copied)
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        await require_closed(dsn)
        await require_moved(large, dsn, connection)
    finally:
        await connection.close()


async def test_one_that_is_killed_while_it_checks_is_ended_by_a_repeat(
    large: Folder, dsn: str
) -> None:
    connection = await connect(database_at(dsn), "read-write", "test")
    try:
        with a_move(large, dsn) as process:
            assert process.stderr is not None
            while not (await asyncio.to_thread(process.stderr.readline)).startswith("checked"):
                assert process.poll() is None
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        await require_closed(dsn)
        await require_moved(large, dsn, connection)
    finally:
        await connection.close()


async def require_moved(folder: Folder, dsn: str, connection: Connection) -> None:
    """A repeat has everything in the database, once."""
    ran = await asyncio.to_thread(tq_move, folder, dsn, "-o", "json")
    assert ran.returncode == 0, ran.stderr
    told = {row["what"]: row["number"] for row in json.loads(ran.stdout)}
    assert told["tasks"] == MANY
    rows = await connection.fetch(STATUSES)
    assert {f"status {status}": number for status, number in rows} == {
        name: number for name, number in told.items() if name.startswith("status ")
    }
    storage = PostgresStorage(database_at(dsn))
    await storage.open()
    try:
        assert await storage.audit() == []
    finally:
        await storage.close()


async def test_one_that_is_killed_between_the_two_marks_leaves_both_closed(
    folder: Folder, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(destination.Destination, "finish", cut)
        with pytest.raises(Cut):
            await move_tasks(folder.path, database_at(dsn), 0, lambda _what, _number: None)
    with pytest.raises(StorageRefused, match="were moved to"):
        await SqliteStorage(folder.path).open()
    await require_closed(dsn)
    outcome = await move_tasks(folder.path, database_at(dsn), 0, lambda _what, _number: None)
    assert outcome.is_finished
    storage = PostgresStorage(database_at(dsn))
    await storage.open()
    await storage.close()


class Cut(Exception):
    """The end of a move, before its end."""


async def cut(_destination: destination.Destination) -> None:
    raise Cut


async def test_what_was_copied_wrongly_is_found(folder: Folder, dsn: str) -> None:
    """Cut off before its end, tampered with, and repeated: the check must see each kind."""
    connection = await connect(database_at(dsn), "read-write", "test")
    try:
        for wrong, right in (
            (
                "UPDATE taskqueue.payloads SET data = data || 'x' WHERE seq = "
                "(SELECT min(seq) FROM taskqueue.payloads)",
                "UPDATE taskqueue.payloads SET data = substr(data, 1, length(data) - 1) "
                "WHERE seq = (SELECT min(seq) FROM taskqueue.payloads)",
            ),
            (
                "UPDATE taskqueue.failures SET message = message || '!' WHERE number % 7 = 3",
                "UPDATE taskqueue.failures SET message = rtrim(message, '!') WHERE number % 7 = 3",
            ),
            (
                "UPDATE taskqueue.results SET crc = crc + 1",
                "UPDATE taskqueue.results SET crc = crc - 1",
            ),
            (
                "INSERT INTO taskqueue.payloads VALUES (7, 'orphan')",
                "DELETE FROM taskqueue.payloads WHERE seq = 7",
            ),
        ):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(destination.Destination, "analyze", cut)
                with pytest.raises(Cut):
                    await move_tasks(folder.path, database_at(dsn), 0, lambda _what, _number: None)
            await connection.execute(wrong)
            with pytest.raises(StorageRefused, match="not the same on both sides: task"):
                await move_tasks(folder.path, database_at(dsn), 0, lambda _what, _number: None)
            await connection.execute(right)
        outcome = await move_tasks(folder.path, database_at(dsn), 0, lambda _what, _number: None)
        assert outcome.is_finished
    finally:
        await connection.close()


async def test_rows_that_differ_or_do_not_belong_are_put_right(folder: Folder, dsn: str) -> None:
    """What a broker changed between two passes is as if rows in the database had changed."""
    connection = await connect(database_at(dsn), "read-write", "test")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(destination.Destination, "analyze", cut)
            with pytest.raises(Cut):
                await move_tasks(folder.path, database_at(dsn), 0, lambda _what, _number: None)
        await connection.execute(
            "UPDATE taskqueue.tasks SET token = token + 1 WHERE status = 'in_progress'"
        )
        await connection.execute(
            "WITH gone AS (DELETE FROM taskqueue.archive WHERE priority = 255 RETURNING seq), "
            "bytes AS (DELETE FROM taskqueue.payloads USING gone WHERE payloads.seq = gone.seq), "
            "more AS (DELETE FROM taskqueue.results USING gone WHERE results.seq = gone.seq) "
            "DELETE FROM taskqueue.failures USING gone WHERE failures.seq = gone.seq"
        )
        await connection.execute(
            "INSERT INTO taskqueue.tasks SELECT (tasks).* FROM "
            "(SELECT jsonb_populate_record(one, jsonb_build_object('seq', seq + 500000, "
            "'id', gen_random_uuid())) AS tasks FROM taskqueue.tasks AS one) AS many"
        )
        outcome = await move_tasks(folder.path, database_at(dsn), 0, lambda _what, _number: None)
        assert outcome.is_finished
    finally:
        await connection.close()
