"""A real worker against a real broker, both in this process."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from taskqueue import App, TaskStatus
from taskqueue.broker.broker import BrokerSettings
from taskqueue.core.clock import ManualClock
from taskqueue.core.task import Event
from taskqueue.wire import messages as m
from taskqueue.worker.runner import Worker
from taskqueue.worker.settings import WorkerSettings
from tests.support.door import PATIENCE, NativeDoor, a_native_door, no_longer_than


class Bench:
    """A broker, an app on it, and the workers that a test starts."""

    def __init__(self, door: NativeDoor, app: App, workers: AsyncExitStack) -> None:
        self.door = door
        self.app = app
        self._workers = workers

    async def work(self, **settings: Any) -> Worker:
        """Start a worker; it is stopped at once at the end of the test."""
        return await self._workers.enter_async_context(a_worker(self.app, self.door, **settings))

    async def take_back(self, task_id: str) -> None:
        """Take a task from its worker, as the broker does with a lost one's."""
        detail = await self.door.broker.get(m.WaitRequest(task_id=task_id))
        await self.door.broker.upkeep.take_back([detail.task], Event.LOSE, "it fell silent")

    async def ended(self, handle: Any) -> TaskStatus:
        """How a submitted task stands at its end."""
        return await self.app.client.wait_for_end(handle.task_id)

    async def failure(self, handle: Any) -> str:
        """Why the only attempt of a task failed."""
        status = await self.ended(handle)
        assert status.status == "dead_letter", status
        return str(status.error)

    async def failed(self, task_id: str) -> TaskStatus:
        """How a task stands once its first attempt has failed; others get the processor, too."""
        async with asyncio.timeout(PATIENCE):
            status = await self.app.client.get_status(task_id)
            while status.status != "failed":
                await asyncio.sleep(0.005)
                status = await self.app.client.get_status(task_id)
        return status


@asynccontextmanager
async def a_worker(app: App, door: NativeDoor, **settings: Any) -> AsyncIterator[Worker]:
    worker = Worker(app, door.addresses, WorkerSettings(**{"concurrency": 3} | settings))
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        worker.stop()
        await running


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    with no_longer_than(2 * PATIENCE):
        yield


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """The broker's clock stands still: only the worker ends attempts."""
    async with a_bench(tmp_path, BrokerSettings()) as bench:
        yield bench


@pytest.fixture
async def beating(tmp_path: Path) -> AsyncIterator[Bench]:
    """As `bench`, with leases so short that workers beat all the time."""
    async with a_bench(tmp_path, BrokerSettings(lease_seconds=0.06)) as bench:
        yield bench


@asynccontextmanager
async def a_bench(folder: Path, settings: BrokerSettings) -> AsyncIterator[Bench]:
    async with (
        a_native_door(folder / "data", clock=ManualClock(), settings=settings) as door,
        AsyncExitStack() as stack,
    ):
        app = App(door.url)
        stack.push_async_callback(app.close)
        workers = await stack.enter_async_context(AsyncExitStack())
        yield Bench(door, app, workers)
