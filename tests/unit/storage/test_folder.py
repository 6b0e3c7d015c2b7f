"""Whom a data folder belongs to, and what the engine refuses to open."""

from pathlib import Path

import apsw
import pytest

from taskqueue.core.errors import StorageRefused
from taskqueue.storage.engines import open_storage
from taskqueue.storage.sqlite import schema, writer
from tests.support.sqlite import an_open_storage, leave_as_after_a_crash, submitted
from tests.support.tasks import a_submit


async def test_a_data_folder_belongs_to_one_broker_also_through_a_link(tmp_path: Path) -> None:
    folder, link = tmp_path / "data", tmp_path / "link"
    async with an_open_storage(folder):
        link.symlink_to(folder)
        for path in (folder, link):
            with pytest.raises(StorageRefused, match="in use by another broker"):
                await open_storage(path).open()
    async with an_open_storage(link):
        pass


async def test_the_data_folder_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with an_open_storage(folder) as storage:
        await submitted(storage, a_submit())
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o600}


async def test_a_data_folder_that_cannot_be_made_is_refused_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageRefused, match="file/data"):
        await open_storage(tmp_path / "file" / "data").open()


@pytest.mark.parametrize("name", ["queue.db", "commit.mark", "broker.lock"])
async def test_a_file_that_cannot_be_used_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(StorageRefused, match=name):
        await open_storage(tmp_path).open()
    (tmp_path / name).rmdir()
    async with an_open_storage(tmp_path) as storage:  # and the refusal holds nothing back
        await submitted(storage, a_submit())


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "queue.db").write_bytes(b"My shopping list\n" * 500)
    with pytest.raises(StorageRefused, match=r"queue\.db cannot be opened.*backup"):
        await open_storage(tmp_path).open()


async def test_a_foreign_reader_does_not_keep_the_broker_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "BUSY_MS", 1)
    folder, crashed = tmp_path / "data", tmp_path / "crashed"
    async with an_open_storage(folder) as storage:
        await submitted(storage, a_submit())
        leave_as_after_a_crash(folder, crashed)
    with apsw.Connection(str(crashed / "queue.db")) as reader:
        assert reader.execute("SELECT count(*) FROM tasks").fetchall() == [(1,)]
        async with an_open_storage(crashed) as storage:
            await submitted(storage, a_submit())
            assert await storage.count(None, None) == 2
        assert reader.execute("SELECT count(*) FROM tasks").fetchall() == [(1,)]


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    async with an_open_storage(tmp_path):
        pass
    with apsw.Connection(str(tmp_path / "queue.db")) as connection:
        connection.execute("PRAGMA user_version = 999")
    with pytest.raises(StorageRefused, match="schema 999"):
        await open_storage(tmp_path).open()


async def test_a_half_done_migration_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = "CREATE TABLE half (x INTEGER); SELECT no_such_function();"
    with monkeypatch.context() as patch:
        patch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, (2, broken)])
        with pytest.raises(StorageRefused):
            await open_storage(tmp_path).open()
    with apsw.Connection(str(tmp_path / "queue.db")) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    assert "tasks" in tables
    assert "half" not in tables
    async with an_open_storage(tmp_path) as storage:
        await submitted(storage, a_submit())
