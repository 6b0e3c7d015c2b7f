"""The clients of an app, made when they are first needed."""

import asyncio
import threading

from taskqueue.client.aio import AsyncClient
from taskqueue.client.sync import LoopThread, SyncClient
from taskqueue.client.task import Task
from taskqueue.worker.middleware import SubmitMiddleware, submit_through


class Clients:
    """One asyncio client and one sync client on the same broker."""

    def __init__(self, url: str | None, api_key: str | None) -> None:
        self.url = url
        self.api_key = api_key
        self.middleware: list[SubmitMiddleware] = []
        self._aio: AsyncClient | None = None
        self._sync: SyncClient | None = None
        self._lock = threading.Lock()
        self._thread = LoopThread()

    def aio(self) -> AsyncClient:
        """The client for coroutines."""
        if self._aio is None:
            self._aio = AsyncClient(self.url, api_key=self.api_key)
        return self._aio

    def sync(self) -> SyncClient:
        """The client for other code."""
        with self._lock:  # handlers in several threads may be the first to ask
            if self._sync is None:
                self._sync = SyncClient(self.url, api_key=self.api_key)
            return self._sync

    async def submit(self, task: Task) -> str:
        """Submit a task through the middleware; its id."""
        if not self.middleware:
            return await self.aio().submit_task(task)
        return await submit_through(self.middleware, task, self.aio().submit_task)

    def submit_sync(self, task: Task) -> str:
        """As `submit`, for other code: the middleware runs on a loop in a thread of its own."""
        if not self.middleware:
            return self.sync().submit_task(task)

        async def send(changed: Task) -> str:
            return await asyncio.to_thread(self.sync().submit_task, changed)

        return self._thread.run(submit_through(self.middleware, task, send))

    async def close(self) -> None:
        """Hang up."""
        if self._aio is not None:
            await self._aio.close()
        if self._sync is not None:
            self._sync.close()
        self._thread.stop()
        self._aio = self._sync = None
