"""What the engine says when the disk lies, fails or fills up, and that it mends itself."""

import resource
from pathlib import Path

import apsw
import pytest

from taskqueue.core.commands import Claim, Promote
from taskqueue.core.errors import BrokerUnavailable, OutcomeUnknown, StorageRefused
from taskqueue.core.task import Status
from taskqueue.storage.engines import open_storage
from taskqueue.storage.sqlite import writer
from taskqueue.storage.sqlite.mark import CommitMark
from tests.support.disk import a_failing_disk
from tests.support.sqlite import (
    an_open_storage,
    apply,
    leave_as_after_a_crash,
    listed,
    submitted,
)
from tests.support.tasks import a_submit


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


@pytest.mark.parametrize("has_readers", [False, True])
async def test_after_a_failed_sync_the_log_is_begun_anew_before_anything_is_acknowledged(
    tmp_path: Path, has_readers: bool
) -> None:
    # The kernel may hold pages of the old log as clean that the disk does not have.
    log = tmp_path / "queue.db-wal"
    with a_failing_disk() as disk:
        async with an_open_storage(tmp_path) as storage:
            if has_readers:
                await listed(storage)
            await submitted(storage, a_submit(payload=bytes(500_000)))
            disk.sync_fails = True
            for _ in range(3):
                with pytest.raises(BrokerUnavailable):
                    await apply(storage, a_submit(payload=bytes(500_000)))
            disk.sync_fails = False
            await submitted(storage, a_submit())
            assert log.stat().st_size < 200_000
            assert await storage.audit() == []


async def test_a_failed_sync_hides_nothing_that_was_acknowledged_before(tmp_path: Path) -> None:
    with a_failing_disk() as disk:
        async with an_open_storage(tmp_path) as storage:
            known = [await submitted(storage, a_submit()) for _ in range(5)]
            disk.sync_fails = True
            with pytest.raises(OutcomeUnknown):
                await apply(storage, Claim("w", ("work",), 2))
            assert [task.id for task in await listed(storage)][-5:] == [
                task.id for task in reversed(known)
            ]
            disk.sync_fails = False
            applied = await apply(storage, Claim("w", ("work",), 10))
            assert applied.pending == await storage.count(Status.PENDING, None)


async def test_acknowledged_commits_that_vanish_under_a_running_broker_stop_it_for_good(
    tmp_path: Path,
) -> None:
    with a_failing_disk() as disk:
        async with an_open_storage(tmp_path) as storage:
            await submitted(storage, a_submit())
            disk.sync_fails = True
            with pytest.raises(OutcomeUnknown):
                await apply(storage, a_submit())
            disk.sync_fails = False
            mark = CommitMark(tmp_path)
            mark.write(1_000)
            mark.close()
            for _ in range(3):
                with pytest.raises(StorageRefused, match="-1000 are missing"):
                    await apply(storage, a_submit())


async def test_a_file_size_limit_is_met_like_a_full_disk(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with an_open_storage(tmp_path) as storage:
        task = await submitted(storage, a_submit())
        too_large = a_submit(payload=bytes(3_000_000))
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
        try:
            with pytest.raises(BrokerUnavailable):
                await apply(storage, too_large)
            assert await listed(storage) == [task]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        await submitted(storage, too_large)
        assert await storage.audit() == []


async def test_a_database_file_that_cannot_grow_stops_checkpoints_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CHECKPOINT_PAGES", 20)
    monkeypatch.setattr(writer, "MOST_WAL_PAGES", 40)
    with a_failing_disk() as disk:
        async with an_open_storage(tmp_path) as storage:
            disk.database_fails = True
            for _ in range(20):
                await submitted(storage, a_submit(payload=bytes(20_000)))
            assert len(await listed(storage)) == 20
            disk.database_fails = False
            await submitted(storage, a_submit())
            assert await storage.audit() == []


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


@pytest.mark.parametrize("place", [0.3, 0.6, 0.97])
async def test_a_flipped_bit_in_the_log_is_noticed_and_what_may_be_salvaged_is_kept(
    tmp_path: Path, place: float
) -> None:
    folder, victim = tmp_path / "data", tmp_path / "victim"
    async with an_open_storage(folder) as storage:
        for _ in range(20):
            await submitted(storage, a_submit())
        leave_as_after_a_crash(folder, victim)
    log = bytearray((victim / "queue.db-wal").read_bytes())
    log[int(len(log) * place)] ^= 4
    (victim / "queue.db-wal").write_bytes(log)
    for _ in range(2):
        with pytest.raises(StorageRefused, match=r"commits \d+-20 are missing"):
            await open_storage(victim).open()
        assert (victim / "queue.db-wal").read_bytes() == log


@pytest.mark.parametrize("torn", [b"", b"0000", b"99999999999999999999 00000000\n", b"\0" * 30])
async def test_a_torn_mark_tells_nothing_and_stops_nothing(tmp_path: Path, torn: bytes) -> None:
    async with an_open_storage(tmp_path) as storage:
        await submitted(storage, a_submit())
    (tmp_path / "commit.mark").write_bytes(torn)
    async with an_open_storage(tmp_path) as storage:
        assert await storage.count(None, None) == 1
        await submitted(storage, a_submit())
    assert (tmp_path / "commit.mark").read_bytes().startswith(b"%020d " % 2)


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


async def test_a_database_removed_during_a_commit_is_noticed_and_no_number_is_used_twice(
    tmp_path: Path,
) -> None:
    def remove() -> None:
        (tmp_path / "queue.db").rename(tmp_path / "elsewhere.db")
        disk.after_sync = lambda: None

    with a_failing_disk() as disk:
        async with an_open_storage(tmp_path) as storage:
            first = await submitted(storage, a_submit())
            disk.after_sync = remove
            doubtful = a_submit()
            with pytest.raises(OutcomeUnknown, match="removed or replaced"):
                await apply(storage, doubtful)
            (tmp_path / "elsewhere.db").rename(tmp_path / "queue.db")
            last = await submitted(storage, a_submit())
            again = await submitted(storage, doubtful)
            assert [task.id for task in await listed(storage)] == [last.id, again.id, first.id]
            assert await storage.audit() == []


async def test_a_removed_log_is_noticed_and_what_it_alone_held_is_saved(tmp_path: Path) -> None:
    folder, copy = tmp_path / "data", tmp_path / "copy"
    async with an_open_storage(folder) as storage:
        known = [(await submitted(storage, a_submit())).id for _ in range(5)]
        (folder / "queue.db-wal").unlink()
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match=r"queue\.db-wal was removed.*restart"):
                await apply(storage, a_submit())
        copy.mkdir()
        for name in ("queue.db", "commit.mark"):
            (copy / name).write_bytes((folder / name).read_bytes())
    for path in (folder, copy):
        async with an_open_storage(path) as storage:
            assert [task.id for task in await listed(storage)][::-1] == known
            await submitted(storage, a_submit())


async def test_a_replaced_database_is_not_written_to(tmp_path: Path) -> None:
    async with an_open_storage(tmp_path / "other") as storage:
        await submitted(storage, a_submit())
    async with an_open_storage(tmp_path / "data") as storage:
        await submitted(storage, a_submit())
        (tmp_path / "other" / "queue.db").rename(tmp_path / "data" / "queue.db")
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match="removed or replaced"):
                await apply(storage, a_submit())
