"""What the engine says when the disk lies, fails or fills up, and that it mends itself."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import apsw
import pytest

from taskqueue.core.batch import Applied, Batch
from taskqueue.core.clock import ManualClock
from taskqueue.core.commands import Claim, Command, Complete, Promote, Submit
from taskqueue.core.errors import (
    BrokerUnavailable,
    DataDamaged,
    OutcomeUnknown,
    StorageRefused,
    TaskQueueError,
)
from taskqueue.core.task import Status, Task
from taskqueue.storage.engines import open_storage
from taskqueue.storage.port import Storage, TaskQuery
from taskqueue.storage.sqlite import schema, writer
from tests.support.disk import a_failing_disk
from tests.support.tasks import a_submit

clock = ManualClock()


@asynccontextmanager
async def an_open_storage(folder: Path) -> AsyncIterator[Storage]:
    storage = open_storage(folder)
    await storage.open()
    try:
        yield storage
    finally:
        await storage.close()


async def apply(storage: Storage, *commands: Command) -> Applied:
    return await storage.apply(Batch(list(commands), clock.wall(), clock.steady()))


async def submitted(storage: Storage, submit: Submit) -> Task:
    outcome = (await apply(storage, submit)).outcomes[0]
    assert isinstance(outcome, Task)
    return outcome


async def test_a_failed_sync_is_unknown_and_the_repeat_is_harmless(tmp_path: Path) -> None:
    with a_failing_disk() as disk:
        async with an_open_storage(tmp_path) as storage:
            first = await submitted(storage, a_submit())
            doubtful = a_submit()
            disk.sync_fails = True
            with pytest.raises(OutcomeUnknown, match="repeat with the same id"):
                await apply(storage, doubtful)
            with pytest.raises(BrokerUnavailable):
                await apply(storage, a_submit())
            disk.sync_fails = False
            again = await submitted(storage, doubtful)
            assert again.id == doubtful.task.id
            assert await storage.count(None, None) in (2, 3)
            assert first.id in {task.id for task in [*await listed(storage)]}
            assert await storage.audit() == []


async def listed(storage: Storage) -> list[Task]:
    return await storage.find(TaskQuery())


@pytest.mark.parametrize("error", [apsw.FullError, apsw.IOError])
async def test_a_full_disk_refuses_writes_answers_reads_and_recovers_by_itself(
    tmp_path: Path, error: type[apsw.Error]
) -> None:
    with a_failing_disk() as disk:
        async with an_open_storage(tmp_path) as storage:
            task = await submitted(storage, a_submit())
            disk.write_fails, disk.write_error = True, error
            for _ in range(3):
                with pytest.raises(BrokerUnavailable):
                    await apply(storage, a_submit())
                detail = await storage.get(task.id)
                assert detail is not None
                assert detail.task == task
            disk.write_fails = False
            assert (await submitted(storage, a_submit())).status is Status.PENDING
            assert await storage.audit() == []


async def test_an_empty_batch_after_a_failure_proves_that_writing_works(tmp_path: Path) -> None:
    with a_failing_disk() as disk:
        async with an_open_storage(tmp_path) as storage:
            disk.write_fails = True
            with pytest.raises(BrokerUnavailable):
                await apply(storage, a_submit())
            with pytest.raises(BrokerUnavailable):
                await apply(storage, Promote(0))
            disk.write_fails = False
            assert (await apply(storage, Promote(0))).outcomes == [0]


async def test_idle_batches_write_nothing(tmp_path: Path) -> None:
    async with an_open_storage(tmp_path) as storage:
        await submitted(storage, a_submit())
        mark = (tmp_path / "commit.mark").read_bytes()
        await apply(storage, Claim("w", ("nobody",), 1), Promote(10))
        assert (tmp_path / "commit.mark").read_bytes() == mark


async def test_a_missing_tail_of_commits_is_noticed_at_start(tmp_path: Path) -> None:
    folder, copy = tmp_path / "data", tmp_path / "copy.db"
    async with an_open_storage(folder) as storage:
        await submitted(storage, a_submit())
    copy.write_bytes((folder / "queue.db").read_bytes())
    async with an_open_storage(folder) as storage:
        for _ in range(12):
            await submitted(storage, a_submit())
    (folder / "queue.db").write_bytes(copy.read_bytes())
    with pytest.raises(StorageRefused, match=r"commits 2-13 are missing.*commit\.mark"):
        await open_storage(folder).open()
    (folder / "commit.mark").unlink()
    async with an_open_storage(folder) as storage:
        assert await storage.count(None, None) == 1


async def test_a_truncated_log_is_noticed_at_start(tmp_path: Path) -> None:
    folder, victim = tmp_path / "data", tmp_path / "victim"
    async with an_open_storage(folder) as storage:
        for _ in range(20):
            await submitted(storage, a_submit())
        # What a crash leaves, with the second half of the log gone.
        victim.mkdir()
        for name in ("queue.db", "commit.mark"):
            (victim / name).write_bytes((folder / name).read_bytes())
        log = (folder / "queue.db-wal").read_bytes()
        (victim / "queue.db-wal").write_bytes(log[: len(log) // 2])
    with pytest.raises(StorageRefused, match="are missing"):
        await open_storage(victim).open()


async def test_what_a_crash_leaves_is_whole(tmp_path: Path) -> None:
    folder, crashed = tmp_path / "data", tmp_path / "crashed"
    async with an_open_storage(folder) as storage:
        ids = {(await submitted(storage, a_submit())).id for _ in range(20)}
        crashed.mkdir()
        for name in ("queue.db", "queue.db-wal", "commit.mark"):
            (crashed / name).write_bytes((folder / name).read_bytes())
    async with an_open_storage(crashed) as storage:
        assert {task.id for task in await listed(storage)} == ids
        assert await storage.audit() == []


async def test_a_damaged_payload_is_never_handed_out(tmp_path: Path) -> None:
    async with an_open_storage(tmp_path) as storage:
        damaged = await submitted(storage, a_submit(payload=b"as it was sent"))
        sound = await submitted(storage, a_submit(payload=b"sound"))
    with apsw.Connection(str(tmp_path / "queue.db")) as connection:
        connection.execute("UPDATE payloads SET data = x'00' WHERE seq = ?", (damaged.seq,))
    async with an_open_storage(tmp_path) as storage:
        with pytest.raises(DataDamaged):
            await storage.payload(damaged.id)
        [claimed] = (await apply(storage, Claim("w", ("work",), 10))).outcomes
        assert isinstance(claimed, list)
        assert [(one.task.id, one.payload) for one in claimed] == [(sound.id, b"sound")]
        detail = await storage.get(damaged.id)
        assert detail is not None
        assert detail.task.status is Status.DEAD_LETTER
        assert "checksum" in detail.failures[0].message
        assert await storage.audit() == []


async def test_a_damaged_result_is_never_handed_out(tmp_path: Path) -> None:
    async with an_open_storage(tmp_path) as storage:
        task = await submitted(storage, a_submit())
        await apply(storage, Claim("w", ("work",), 1))
        await apply(storage, Complete(task.id, 1, b"the result"))
    with apsw.Connection(str(tmp_path / "queue.db")) as connection:
        connection.execute("UPDATE results SET data = x'00'")
    async with an_open_storage(tmp_path) as storage:
        with pytest.raises(DataDamaged):
            await storage.get(task.id)


async def test_a_removed_database_is_noticed_and_nothing_is_acknowledged_into_it(
    tmp_path: Path,
) -> None:
    async with an_open_storage(tmp_path) as storage:
        task = await submitted(storage, a_submit())
        (tmp_path / "queue.db").rename(tmp_path / "elsewhere.db")
        with pytest.raises(BrokerUnavailable, match="removed or replaced"):
            await apply(storage, a_submit())
        (tmp_path / "elsewhere.db").rename(tmp_path / "queue.db")
        await submitted(storage, a_submit())
        assert task.id in {task.id for task in await listed(storage)}


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
    known = schema.known_migrations()
    with monkeypatch.context() as patch:
        patch.setattr(schema, "known_migrations", lambda: [*known, (2, broken)])
        with pytest.raises(StorageRefused):
            await open_storage(tmp_path).open()
    with apsw.Connection(str(tmp_path / "queue.db")) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
    assert "tasks" in tables
    assert "half" not in tables
    async with an_open_storage(tmp_path) as storage:
        await submitted(storage, a_submit())


async def test_bytes_of_every_kind_come_back_as_they_were(tmp_path: Path) -> None:
    payloads = [b"", b"\0", b"\0\xff\0", bytes(range(256)), "naïve ✓".encode(), os.urandom(70_000)]
    async with an_open_storage(tmp_path) as storage:
        sent = {
            (await submitted(storage, a_submit(payload=payload))).id: payload
            for payload in payloads
        }
        [claimed] = (await apply(storage, Claim("w", ("work",), 100))).outcomes
        assert isinstance(claimed, list)
        assert {one.task.id: one.payload for one in claimed} == sent
        for task_id, payload in sent.items():
            assert await storage.payload(task_id) == payload


async def test_a_claim_of_large_payloads_is_cut_to_what_memory_bears(tmp_path: Path) -> None:
    payload = bytes(7 * 1024 * 1024)
    async with an_open_storage(tmp_path) as storage:
        for _ in range(4):
            await submitted(storage, a_submit(payload=payload))
        applied = await apply(storage, Claim("a", ("work",), 10), Claim("b", ("work",), 10))
        assert [len(one) for one in applied.outcomes if isinstance(one, list)] == [2, 2]


async def test_a_random_flip_in_the_database_gives_a_refusal_or_the_right_bytes(
    tmp_path: Path,
) -> None:
    payload = bytes(range(256)) * 4
    folder = tmp_path / "data"
    async with an_open_storage(folder) as storage:
        ids = [(await submitted(storage, a_submit(payload=payload))).id for _ in range(30)]
    pristine = (folder / "queue.db").read_bytes()
    chance = random.Random(7)
    for _ in range(40):
        damaged = bytearray(pristine)
        damaged[chance.randrange(100, len(damaged))] ^= 1 << chance.randrange(8)
        (folder / "queue.db").write_bytes(damaged)
        (folder / "commit.mark").unlink(missing_ok=True)
        storage = open_storage(folder)
        try:
            await storage.open()
        except TaskQueueError:
            continue
        for task_id in ids:
            with suppress(TaskQueueError):
                assert await storage.payload(task_id) in (payload, None)
        await storage.close()


async def test_the_log_stays_bounded_under_steady_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CHECKPOINT_PAGES", 100)
    monkeypatch.setattr(writer, "MOST_WAL_PAGES", 200)
    async with an_open_storage(tmp_path) as storage:
        for _ in range(60):
            await apply(storage, *(a_submit(payload=bytes(20_000)) for _ in range(10)))
            await asyncio.sleep(0)
        assert (tmp_path / "queue.db-wal").stat().st_size < 6_000_000
