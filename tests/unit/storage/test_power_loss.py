"""What a crash or a power cut leaves, at every write and sync of a workload."""

import random
from pathlib import Path

import pytest

from taskqueue.core.commands import Cancel, Complete, Fail, Release
from taskqueue.core.task import ClaimedTask, Task
from taskqueue.storage.port import TaskQuery
from taskqueue.storage.sqlite import writer
from tests.support.power import RecordingDisk, a_recording_disk
from tests.support.storage import Queue, a_queue

CUTS = 150


@pytest.fixture
async def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordingDisk:
    """A disk on which a workload ran, with checkpoints and restarts of the log in it."""
    return await a_record(tmp_path, monkeypatch)


async def a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RecordingDisk:
    # All checkpoints on the writer thread: one order of events, the same each time.
    monkeypatch.setattr(writer, "MOST_WAL_PAGES", 60)
    monkeypatch.setattr(writer, "CHECKPOINT_PAGES", 1_000_000)
    with a_recording_disk() as disk:
        async with a_queue("sqlite", tmp_path / "origin") as queue:
            await tell(disk, queue, tmp_path)
            for round_number in range(6):
                await work(disk, queue, tmp_path, round_number)
    return disk


async def work(disk: RecordingDisk, queue: Queue, tmp_path: Path, round_number: int) -> None:
    """A few transactions of every kind, each noted once it is acknowledged."""
    payload = bytes([round_number]) * 9_000
    await queue.apply(*(queue.a_submit(payload) for _ in range(5)))
    await tell(disk, queue, tmp_path)
    claimed = await queue.claim(limit=4)
    await tell(disk, queue, tmp_path)
    await queue.apply(*ends(claimed), queue.a_submit(b"later", delay=9))
    await tell(disk, queue, tmp_path)
    queue.clock.advance(1)


def ends(claimed: list[ClaimedTask]) -> list[Complete | Fail | Release | Cancel]:
    """Each task in another way."""
    first, second, third, fourth = (one.task for one in claimed)
    return [
        Complete(first.id, first.token, b"done" * 1_000),
        Fail(second.id, second.token, "E", "no", retryable=False),
        Fail(third.id, third.token, "E", "again"),
        Release(fourth.id, fourth.token),
        Cancel(third.id),
    ]


async def tell(disk: RecordingDisk, queue: Queue, tmp_path: Path) -> None:
    mark = (tmp_path / "origin" / "commit.mark").read_bytes()
    disk.note((mark, await everything(queue)))


async def everything(queue: Queue) -> list[Task]:
    return await queue.storage.find(TaskQuery(limit=1_000))


async def found_after(
    disk: RecordingDisk, moment: int, chance: random.Random | None, at: Path
) -> list[Task]:
    """What a broker finds that starts on what was left; its books must be in order."""
    disk.leave(moment, chance, at)
    note = disk.latest_note(moment)
    if note is not None:
        (at / "commit.mark").write_bytes(note[0])
    async with a_queue("sqlite", at) as queue:
        return await everything(queue)


@pytest.mark.parametrize("power_fails", [False, True])
async def test_each_transaction_is_wholly_there_or_wholly_absent_and_none_is_lost(
    recorded: RecordingDisk, tmp_path: Path, power_fails: bool
) -> None:
    states = [step.note[1] for step in recorded.steps if step.kind == "note"]
    chance = random.Random(20_240_229)
    moments = sorted(chance.sample(range(len(recorded.steps) + 1), CUTS))
    undone = done = 0
    for moment in moments:
        told = sum(step.kind == "note" for step in recorded.steps[:moment])
        cut = chance if power_fails else None
        found = await found_after(recorded, moment, cut, tmp_path / f"cut-{moment}")
        acknowledged = states[told - 1] if told else []
        under_way = states[told] if told < len(states) else acknowledged
        assert found in (acknowledged, under_way), f"after step {moment}"
        undone += found == acknowledged != under_way
        done += found == under_way != acknowledged
    assert undone
    assert done


async def test_the_record_is_of_a_log_that_was_synced_restarted_and_brought_in(
    recorded: RecordingDisk,
) -> None:
    done = [(step.kind, step.file) for step in recorded.steps]
    assert done.count(("sync", "queue.db-wal")) > 18
    assert done.count(("sync", "queue.db")) > 2
    restarts = [
        step
        for step in recorded.steps
        if (step.kind, step.file, step.offset) == ("write", "queue.db-wal", 0)
    ]
    assert len(restarts) > 2
