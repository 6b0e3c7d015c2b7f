"""`tq backup` and `tq restore`, with a broker at work on the folder and without one."""

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest

from taskqueue import SyncClient, Task
from taskqueue.cli.doctor_store import Folder
from tests.cli.running import Here
from tests.support.broker import a_broker_process


def test_a_backup_of_a_broker_at_work_has_all_it_acknowledged(here: Here, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    with (
        a_broker_process(tmp_path / "data", "--rate-limit", "0") as broker,
        SyncClient(broker.native) as client,
    ):
        tasks = [client.submit_task(Task("kept", b"%d" % number)) for number in range(50)]
        ran = here("backup", str(file), "--data", str(broker.folder), "-o", "json")
        client.submit_task(Task("later", b""))
    told = json.loads(ran.out)
    assert told == {"written": str(file), "tasks": 50, "size_bytes": file.stat().st_size}
    assert file.stat().st_mode & 0o777 == 0o600
    assert {path.name for path in tmp_path.glob("backup*")} == {"backup.db"}
    here("restore", str(file), "--data", str(tmp_path / "again"))
    with (
        a_broker_process(tmp_path / "again", "--rate-limit", "0") as broker,
        SyncClient(broker.native) as client,
    ):
        assert {one.task_id for one in client.list_tasks().tasks} == set(tasks)
        assert client.list_tasks().total == 50
        found = asyncio.run(Folder(tmp_path / "again").complaints())
        assert found == []


def test_what_is_there_is_never_written_over(here: Here, tmp_path: Path) -> None:
    with a_broker_process(tmp_path / "data", "--rate-limit", "0") as broker:
        file = tmp_path / "backup.db"
        here("backup", str(file), "--data", str(broker.folder))
        before = file.read_bytes()
        ran = here("backup", str(file), "--data", str(broker.folder), code=2)
        assert f"{file} is there already" in ran.err
        assert file.read_bytes() == before
        ran = here("restore", str(file), "--data", str(broker.folder), code=2)
        assert "in use by another broker" in ran.err
    ran = here("restore", str(file), "--data", str(tmp_path / "data"), code=2)
    assert "restore into an empty folder" in ran.err


@pytest.mark.parametrize("damage", ["no database", "another's", "newer", "torn"])
def test_what_is_no_whole_backup_is_refused_and_leaves_nothing(
    here: Here, tmp_path: Path, damage: str
) -> None:
    file, folder = tmp_path / "backup.db", tmp_path / "data"
    with a_broker_process(folder, "--rate-limit", "0") as broker:
        with SyncClient(broker.native) as client:
            for _ in range(200):
                client.submit_task(Task("kept", b"x" * 1_000))
        here("backup", str(file), "--data", str(folder))
    match damage:
        case "no database":
            file.write_bytes(b"something else" * 1_000)
        case "another's":
            file.unlink()
            sqlite3.connect(file).execute("CREATE TABLE tasks (id)").connection.close()
        case "newer":
            sqlite3.connect(file).execute("PRAGMA user_version = 99").connection.close()
        case _:
            with file.open("r+b") as handle:
                handle.seek(file.stat().st_size // 2)
                handle.write(b"\xff" * 20_000)
    ran = here("restore", str(file), "--data", str(tmp_path / "again"), code=2)
    assert str(file) in ran.err
    assert [one.name for one in (tmp_path / "again").iterdir()] == ["broker.lock"]


def test_there_must_be_something_to_copy(here: Here, tmp_path: Path) -> None:
    ran = here("backup", "b.db", "--data", str(tmp_path / "nowhere"), code=2)
    assert "there is no queue.db" in ran.err
    assert "there is no file" in here("restore", "b.db", "--data", "again", code=2).err
    (tmp_path / "tq.toml").write_text('[storage]\nengine = "postgresql://me:secret@db/queue"\n')
    ran = here("backup", "b.db", code=2)
    assert "pg_basebackup" in ran.err
    assert "secret" not in ran.err
