"""What a move refuses, and who is refused after it."""

import asyncio
import json
import os
import re
from pathlib import Path

import asyncpg
import pytest

from taskqueue.core.errors import StorageRefused
from taskqueue.storage.move.destination import Destination
from taskqueue.storage.move.move import move_tasks
from taskqueue.storage.postgres import schema
from taskqueue.storage.postgres.connections import connect, database_at
from taskqueue.storage.postgres.engine import PostgresStorage
from taskqueue.storage.sqlite.engine import SqliteStorage
from taskqueue.storage.sqlite.moved import FILE_NAME, Note
from tests.move.commands import tq, tq_move, tq_serve
from tests.move.filling import Folder
from tests.support.postgres import PostgresServer, a_database
from tests.support.storage import Queue


async def a_move_to(dsn: str, folder: Folder) -> bool:
    outcome = await move_tasks(folder.path, database_at(dsn), 0, lambda _what, _number: None)
    return outcome.is_finished


async def test_a_moved_folder_takes_no_broker_unless_its_note_is_deleted(
    folder: Folder, dsn: str
) -> None:
    ran = await asyncio.to_thread(tq_move, folder, dsn)
    assert ran.returncode == 0, ran.stderr
    assert "--engine" in ran.stderr
    served = await asyncio.to_thread(tq_serve, "--data", str(folder.path))
    assert served.returncode == 2
    assert "were moved to postgresql://" in served.stderr
    assert FILE_NAME in served.stderr
    (folder.path / FILE_NAME).unlink()
    storage = SqliteStorage(folder.path)
    await storage.open()
    await storage.close()


async def test_a_second_run_says_so_and_changes_nothing(folder: Folder, dsn: str) -> None:
    assert await a_move_to(dsn, folder)
    storage = PostgresStorage(database_at(dsn))
    await storage.open()
    try:
        made = await Queue(storage, folder.clock).submit()
        ran = await asyncio.to_thread(tq_move, folder, dsn)
        assert (ran.returncode, ran.stdout) == (0, "")
        assert "was moved to" in ran.stderr
        assert await storage.get(made.id) is not None
        assert await storage.audit() == []
    finally:
        await storage.close()


async def test_a_dry_run_tells_and_leaves_nothing(folder: Folder, dsn: str) -> None:
    ran = await asyncio.to_thread(tq_move, folder, dsn, "--dry-run", "-o", "json")
    assert ran.returncode == 0, ran.stderr
    told = {row["what"]: row["number"] for row in json.loads(ran.stdout)}
    assert told["tasks"] == told["payloads"] > 1_000
    assert told["keys"] == 1
    connection = await connect(database_at(dsn), "read-write", "test")
    assert await schema.schema_version(connection) == 0
    await connection.close()
    assert not (folder.path / FILE_NAME).exists()
    storage = SqliteStorage(folder.path)
    await storage.open()
    await storage.close()


async def test_a_database_with_tasks_of_its_own_is_refused(folder: Folder, dsn: str) -> None:
    storage = PostgresStorage(database_at(dsn))
    await storage.open()
    ran = await asyncio.to_thread(tq_move, folder, dsn)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "a broker uses" in ran.stderr
    await Queue(storage, folder.clock).submit()
    await storage.close()
    for words in ((), ("--dry-run",)):
        ran = await asyncio.to_thread(tq_move, folder, dsn, *words)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert "rows of its own" in ran.stderr
    await storage_opens(dsn)


async def storage_opens(dsn: str) -> None:
    storage = PostgresStorage(database_at(dsn))
    await storage.open()
    await storage.close()


async def test_a_database_with_another_folder_is_refused(
    folder: Folder, dsn: str, tmp_path: Path
) -> None:
    assert await a_move_to(dsn, folder)
    other = Folder(tmp_path / "other")
    await other.fill(140)
    with pytest.raises(StorageRefused, match="has the tasks of another data folder"):
        await a_move_to(dsn, other)


async def test_a_moved_folder_is_not_moved_to_another_database(
    folder: Folder, dsn: str, server: PostgresServer
) -> None:
    assert await a_move_to(dsn, folder)
    async with a_database(server) as other:
        with pytest.raises(StorageRefused, match=r"were moved to .* already"):
            await a_move_to(other, folder)
        async with Destination.at(database_at(other)) as destination:
            assert not await destination.look(Note("someone else"))


async def test_of_two_databases_one_gets_the_folder(
    folder: Folder, dsn: str, server: PostgresServer
) -> None:
    """The first move was given up for another one; it must not be ended after that."""
    async with a_database(server) as other:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Destination, "analyze", never)
            with pytest.raises(NotImplementedError):
                await a_move_to(other, folder)
        assert await a_move_to(dsn, folder)
        with pytest.raises(StorageRefused, match=r"were moved to .* already"):
            await a_move_to(other, folder)


async def never(_destination: Destination) -> None:
    raise NotImplementedError


async def test_a_broker_that_looked_too_early_is_stopped_by_the_database(
    folder: Folder, dsn: str
) -> None:
    async with Destination.at(database_at(dsn)) as destination:
        assert not await destination.begin(Note("some folder"), str(folder.path))
        connection = await connect(database_at(dsn), "read-write", "test")
        with pytest.raises(asyncpg.RaiseError, match="not all are there yet"):
            await connection.execute(
                "INSERT INTO taskqueue.brokers (address, http, version) VALUES ('', '', '')"
            )
        await connection.close()


@pytest.mark.parametrize("has_rows", [False, True])
async def test_a_database_of_an_earlier_release_is_looked_at_too(
    folder: Folder, dsn: str, monkeypatch: pytest.MonkeyPatch, *, has_rows: bool
) -> None:
    connection = await connect(database_at(dsn), "read-write", "test")
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", schema.MIGRATIONS[:1])
        assert await schema.migrate(connection) == [1]
    if has_rows:
        await connection.execute("INSERT INTO taskqueue.minutes VALUES (0, 1, 0, 0)")
    await connection.close()
    for words in (("--dry-run",), ()):
        ran = await asyncio.to_thread(tq_move, folder, dsn, *words)
        assert ran.returncode == (2 if has_rows else 0)
        assert ("rows of its own (table minutes)" in ran.stderr) is has_rows
    connection = await connect(database_at(dsn), "read-write", "test")
    assert (await schema.schema_version(connection) == 1) is has_rows
    await connection.close()


async def test_a_role_with_too_few_rights_is_told_before_anything_is_copied(
    folder: Folder, dsn: str
) -> None:
    role = f"mover_{os.getpid()}"
    connection = await connect(database_at(dsn), "read-write", "test")
    await schema.migrate(connection)
    await connection.execute(f"CREATE ROLE {role} LOGIN")
    try:
        await connection.execute(f"GRANT USAGE, CREATE ON SCHEMA taskqueue TO {role}")
        await connection.execute(
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA taskqueue TO {role}"
        )
        ran = await asyncio.to_thread(tq_move, folder, re.sub("//[^@]*@", f"//{role}@", dsn))
        assert ran.returncode == 2
        assert "use the role that owns the schema" in ran.stderr
        assert await connection.fetchval("SELECT count(*) FROM taskqueue.move") == 0
    finally:
        await connection.execute(f"DROP OWNED BY {role}")
        await connection.execute(f"DROP ROLE {role}")
        await connection.close()


async def test_two_moves_at_once_do_not_mix(folder: Folder, dsn: str) -> None:
    connection = await connect(database_at(dsn), "read-write", "test")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("taskqueue.storage.move.destination.LOCK_PAUSE", 0.001)
            async with Destination.at(database_at(dsn)) as first:
                assert not await first.begin(Note("some folder"), "somewhere")
                with pytest.raises(StorageRefused, match="another tq move is at work"):
                    await a_move_to(dsn, folder)
    finally:
        await connection.close()


async def test_missing_commits_keep_a_folder_from_being_moved(folder: Folder, dsn: str) -> None:
    storage = SqliteStorage(folder.path)
    await storage.open()
    storage._mark.write(10**6)
    await storage.close()
    with pytest.raises(StorageRefused, match="are missing from the database"):
        await a_move_to(dsn, folder)


async def test_a_folder_that_contradicts_itself_is_not_switched(folder: Folder, dsn: str) -> None:
    storage = SqliteStorage(folder.path)
    await storage.open()
    connection = storage._writer._connection
    assert connection is not None
    connection.execute("UPDATE counters SET present = present + 1 WHERE status = 'pending'")
    await storage.close()
    with pytest.raises(StorageRefused, match=r"contradicts itself: counter of type"):
        await a_move_to(dsn, folder)
    storage = SqliteStorage(folder.path)
    await storage.open()
    await storage.close()


def test_what_is_no_data_folder_is_told(tmp_path: Path) -> None:
    ran = tq_move(tmp_path / "nowhere", "postgresql://nobody@127.0.0.1:1/none")
    assert ran.returncode == 2
    assert "name the data folder of a broker" in ran.stderr
    assert not (tmp_path / "nowhere").exists()


def test_without_a_database_it_says_how_to_name_one(tmp_path: Path) -> None:
    ran = tq("move", "--from", str(tmp_path))
    assert ran.returncode == 2
    assert "--to postgresql://" in ran.stderr


async def test_a_database_that_does_not_answer_is_told_without_its_password(
    folder: Folder,
) -> None:
    ran = await asyncio.to_thread(tq_move, folder, "postgresql://me:hunter2@127.0.0.1:1/none")
    assert ran.returncode == 7
    assert "hunter2" not in ran.stderr
    storage = SqliteStorage(folder.path)
    await storage.open()
    await storage.close()


async def test_a_pooler_is_refused(folder: Folder, dsn: str) -> None:
    with pytest.raises(StorageRefused, match="not a pooler"):
        await a_move_to(f"{dsn}?prepared_statements=false", folder)
