"""The client for code without asyncio: the asyncio one, run on a loop in a thread of its own."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from datetime import datetime
from types import TracebackType
from typing import Any, TypeVar

from taskqueue.client.aio import AsyncClient
from taskqueue.client.task import PriorityName, Task, TaskPage, TaskStatus
from taskqueue.core.keys import Permission
from taskqueue.core.task import Status
from taskqueue.wire.administration import AuditEntryReply, KeyReply, NewKeyReply
from taskqueue.wire.cluster import ClusterReply
from taskqueue.wire.figures import HealthReply, StatsReply
from taskqueue.wire.workers import AnyOrder, LogLineReply, WorkerReply

Value = TypeVar("Value")


class LoopThread:
    """An event loop that runs in a daemon thread, started with its first work."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0

    @property
    def is_running(self) -> bool:
        """Whether there is a thread, of this very process."""
        return self._loop is not None and self._pid == os.getpid()

    def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Run a coroutine there and wait for what it comes to."""
        future = self.start(work)
        try:
            return future.result()
        finally:
            future.cancel()  # Ctrl-C while waiting: nobody wants the answer any more

    def start(self, work: Coroutine[Any, Any, Value]) -> Future[Value]:
        """Begin to run a coroutine there."""
        return asyncio.run_coroutine_threadsafe(work, self._running_loop())

    def stop(self) -> None:
        """End the thread."""
        with self._lock:
            loop, self._loop = self._loop, None
        if loop is not None and self._pid == os.getpid():
            loop.call_soon_threadsafe(loop.stop)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is not None and self._pid == os.getpid():
            return self._loop
        with self._lock:
            # A forked child has the loop, but not the thread that ran it.
            if self._loop is None or self._pid != os.getpid():
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                threading.Thread(
                    target=_run_until_stopped, args=(self._loop,), name="taskqueue", daemon=True
                ).start()
            return self._loop


class SyncClient:
    """Talks to a broker's native door. Safe to share between threads.

    Takes what AsyncClient takes; its methods are the same, not awaited.
    """

    def __init__(
        self, url: str | None = None, *, api_key: str | None = None, timeout: float = 30.0
    ) -> None:
        self._client = AsyncClient(url, api_key=api_key, timeout=timeout)
        self._thread = LoopThread()

    def __enter__(self) -> "SyncClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; calls under way fail."""
        if self._thread.is_running:
            self._thread.run(self._client.close())
            self._thread.stop()

    def submit_task(self, task: Task) -> str:
        """See AsyncClient.submit_task."""
        return self._thread.run(self._client.submit_task(task))

    def submit_many(self, tasks: Iterable[Task]) -> list[str]:
        """See AsyncClient.submit_many."""
        # A generator is run in the thread that made it, not in the client's.
        return self._thread.run(self._client.submit_many(list(tasks)))

    def get_status(self, task_id: str) -> TaskStatus:
        """See AsyncClient.get_status."""
        return self._thread.run(self._client.get_status(task_id))

    def wait_for_result(self, task_id: str, timeout: float = 60.0) -> bytes:
        """See AsyncClient.wait_for_result."""
        return self._thread.run(self._client.wait_for_result(task_id, timeout))

    def wait_for_end(self, task_id: str, timeout: float = 60.0) -> TaskStatus:
        """See AsyncClient.wait_for_end."""
        return self._thread.run(self._client.wait_for_end(task_id, timeout))

    def cancel(self, task_id: str, *, running: bool = False) -> None:
        """See AsyncClient.cancel."""
        self._thread.run(self._client.cancel(task_id, running=running))

    def retry(self, task_id: str) -> None:
        """See AsyncClient.retry."""
        self._thread.run(self._client.retry(task_id))

    def list_tasks(  # noqa: PLR0913  filters, all named
        self,
        *,
        status: Status | str | None = None,
        task_type: str | None = None,
        limit: int = 100,
        offset: int = 0,
        cursor: str | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> TaskPage:
        """See AsyncClient.list_tasks."""
        return self._thread.run(
            self._client.list_tasks(
                status=status,
                task_type=task_type,
                limit=limit,
                offset=offset,
                cursor=cursor,
                tags=list(tags),
                metadata=metadata,
            )
        )

    def change(
        self,
        task_id: str,
        *,
        priority: int | PriorityName | None = None,
        schedule_at: datetime | None = None,
        delay: float | None = None,
    ) -> None:
        """See AsyncClient.change."""
        self._thread.run(
            self._client.change(task_id, priority=priority, schedule_at=schedule_at, delay=delay)
        )

    def purge(self, task_id: str) -> None:
        """See AsyncClient.purge."""
        self._thread.run(self._client.purge(task_id))

    def logs(self, task_id: str) -> list[LogLineReply]:
        """See AsyncClient.logs."""
        return self._thread.run(self._client.logs(task_id))

    def workers(self) -> list[WorkerReply]:
        """See AsyncClient.workers."""
        return self._thread.run(self._client.workers())

    def order(self, worker_id: str, order: AnyOrder) -> None:
        """See AsyncClient.order."""
        self._thread.run(self._client.order(worker_id, order))

    def stats(self) -> StatsReply:
        """See AsyncClient.stats."""
        return self._thread.run(self._client.stats())

    def health(self) -> HealthReply:
        """See AsyncClient.health."""
        return self._thread.run(self._client.health())

    def cluster(self) -> ClusterReply:
        """See AsyncClient.cluster."""
        return self._thread.run(self._client.cluster())

    def create_key(
        self,
        name: str,
        permissions: Iterable[Permission | str],
        *,
        task_type_prefix: str | None = None,
        rate_limit: int | None = None,
        expires_in: int | None = None,
    ) -> NewKeyReply:
        """See AsyncClient.create_key."""
        return self._thread.run(
            self._client.create_key(
                name,
                list(permissions),
                task_type_prefix=task_type_prefix,
                rate_limit=rate_limit,
                expires_in=expires_in,
            )
        )

    def list_keys(self) -> list[KeyReply]:
        """See AsyncClient.list_keys."""
        return self._thread.run(self._client.list_keys())

    def rotate_key(self, key_id: str, *, overlap: int = 86_400) -> NewKeyReply:
        """See AsyncClient.rotate_key."""
        return self._thread.run(self._client.rotate_key(key_id, overlap=overlap))

    def revoke_key(self, key_id: str) -> None:
        """See AsyncClient.revoke_key."""
        self._thread.run(self._client.revoke_key(key_id))

    def audit_log(self, *, limit: int = 100, before: int | None = None) -> list[AuditEntryReply]:
        """See AsyncClient.audit_log."""
        return self._thread.run(self._client.audit_log(limit=limit, before=before))


def begin(
    client: SyncClient, work: Callable[[AsyncClient], Coroutine[Any, Any, Value]]
) -> Future[Value]:
    """Begin something with the asyncio client under a client, on its loop."""
    thread = client._thread  # pyright: ignore[reportPrivateUsage]
    return thread.start(work(client._client))  # pyright: ignore[reportPrivateUsage]


def _run_until_stopped(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        # Threads that still wait for an answer are told that there will be none.
        unfinished = asyncio.all_tasks(loop)
        for task in unfinished:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*unfinished, return_exceptions=True))
        loop.close()
