"""The engines that must all behave alike, and a small language to talk to them in tests."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from taskqueue.core.batch import Applied, Batch
from taskqueue.core.clock import ManualClock
from taskqueue.core.commands import Claim, Command, Submit
from taskqueue.core.errors import TaskQueueError
from taskqueue.core.task import ClaimedTask, Task, TaskDetail
from taskqueue.storage.engines import open_storage
from taskqueue.storage.port import Storage
from taskqueue.storage.postgres.connections import database_at
from taskqueue.storage.postgres.engine import PostgresStorage
from tests.support.model import ModelStorage
from tests.support.postgres import RELEASES, a_database, shared_server
from tests.support.tasks import a_submit

EMBEDDED: dict[str, Callable[[Path], Storage]] = {
    "model": lambda _folder: ModelStorage(),
    "sqlite": open_storage,
}
ENGINES = (*EMBEDDED, *(f"postgresql-{release}" for release in RELEASES))


class Queue:
    """A storage and a clock, with a verb for each thing a test says."""

    def __init__(self, storage: Storage, clock: ManualClock) -> None:
        self.storage = storage
        self.clock = clock

    async def apply(self, *commands: Command) -> Applied:
        """One transaction."""
        return await self.storage.apply(
            Batch(list(commands), self.clock.wall(), self.clock.steady())
        )

    async def do(self, command: Command) -> Any:
        """One command alone: its outcome, or its error raised."""
        outcome = (await self.apply(command)).outcomes[0]
        if isinstance(outcome, TaskQueueError):
            raise outcome
        return outcome

    def a_submit(self, payload: bytes = b"x", **fields: Any) -> Submit:
        """A submit at this moment; `delay` in seconds puts it off."""
        delay = round(fields.pop("delay", 0) * 1_000_000)
        now = self.clock.wall()
        return a_submit(payload, now=now, run_at=now + delay, **fields)

    async def submit(self, payload: bytes = b"x", **fields: Any) -> Task:
        """A task in the queue."""
        task: Task = await self.do(self.a_submit(payload, **fields))
        return task

    async def claim(
        self, *task_types: str, worker_id: str = "w", limit: int = 1
    ) -> list[ClaimedTask]:
        """Tasks in the hands of a worker."""
        claimed: list[ClaimedTask] = await self.do(Claim(worker_id, task_types or ("work",), limit))
        return claimed

    async def running(self, **fields: Any) -> Task:
        """A task that is submitted and claimed."""
        task = await self.submit(**fields)
        [claimed] = await self.claim(task.task_type)
        assert claimed.task.id == task.id
        return claimed.task

    async def detail(self, task_id: str) -> TaskDetail:
        """All that is kept of a task."""
        detail = await self.storage.get(task_id)
        assert detail is not None
        return detail


@asynccontextmanager
async def a_storage(engine: str, folder: Path) -> AsyncIterator[Storage]:
    """An engine with nothing in it, not open yet."""
    if engine in EMBEDDED:
        yield EMBEDDED[engine](folder)
        return
    with shared_server(engine.removeprefix("postgresql-")) as server:
        async with a_database(server) as dsn:
            yield PostgresStorage(database_at(dsn))


@asynccontextmanager
async def a_queue(engine: str, folder: Path) -> AsyncIterator[Queue]:
    """An empty queue on an engine; at the end its counters must equal its rows."""
    async with a_storage(engine, folder) as storage:
        await storage.open()
        try:
            yield Queue(storage, ManualClock())
            assert await storage.audit() == []
        finally:
            await storage.close()
