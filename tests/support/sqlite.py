"""The SQLite engine on a real folder, spoken to in as few words as possible."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from taskqueue.core.batch import Applied, Batch
from taskqueue.core.clock import ManualClock
from taskqueue.core.commands import Command, Submit
from taskqueue.core.errors import TaskQueueError
from taskqueue.core.task import ClaimedTask, Task
from taskqueue.storage.engines import open_storage
from taskqueue.storage.port import Storage, TaskQuery

clock = ManualClock()


@asynccontextmanager
async def an_open_storage(folder: Path) -> AsyncIterator[Storage]:
    """A storage that is open for the block."""
    storage = open_storage(folder)
    await storage.open()
    try:
        yield storage
    finally:
        await storage.close()


async def apply(storage: Storage, *commands: Command) -> Applied:
    """One transaction."""
    return await storage.apply(Batch(list(commands), clock.wall(), clock.steady()))


async def submitted(storage: Storage, submit: Submit) -> Task:
    """A task, acknowledged."""
    outcome = (await apply(storage, submit)).outcomes[0]
    assert isinstance(outcome, Task)
    return outcome


async def claimed(storage: Storage, command: Command) -> list[ClaimedTask]:
    """What a claim alone gets; its error raised."""
    outcome = (await apply(storage, command)).outcomes[0]
    if isinstance(outcome, TaskQueueError):
        raise outcome
    assert isinstance(outcome, list)
    return outcome


async def listed(storage: Storage) -> list[Task]:
    """The newest tasks first."""
    return await storage.find(TaskQuery())


def leave_as_after_a_crash(folder: Path, victim: Path) -> None:
    """Copy what lies on the disk while the broker runs."""
    victim.mkdir()
    for name in ("queue.db", "queue.db-wal", "commit.mark"):
        (victim / name).write_bytes((folder / name).read_bytes())
