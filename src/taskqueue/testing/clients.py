"""The clients that an app has while its tasks run in line: what they say goes to no broker."""

import sys
from collections.abc import Coroutine, Iterable, Mapping
from concurrent.futures import Future
from datetime import datetime
from typing import Any, ClassVar, Protocol, TypeVar

import msgspec

from taskqueue.client.aio import AsyncClient
from taskqueue.client.connection import Answer
from taskqueue.client.errors import TaskFailed
from taskqueue.client.sync import LoopThread, SyncClient
from taskqueue.client.task import PriorityName, Task, TaskPage, TaskStatus, priority_in
from taskqueue.core.errors import BrokerUnavailable, TaskQueueError
from taskqueue.core.task import Status
from taskqueue.testing.home import Home
from taskqueue.wire.messages import ChangeRequest
from taskqueue.wire.workers import LogLineReply

Value = TypeVar("Value")


class Counter(Protocol):
    """What the clients ask of the queue."""

    def submit(self, task: Task) -> str: ...

    def status(self, task_id: str) -> TaskStatus: ...

    def cancel(self, task_id: str, *, running: bool = False) -> None: ...

    def retry(self, task_id: str) -> None: ...

    def change(self, request: ChangeRequest) -> None: ...

    def purge(self, task_id: str) -> None: ...

    def logs(self, task_id: str) -> list[LogLineReply]: ...

    def listed(self, status: Status | None, task_type: str | None) -> list[TaskStatus]: ...

    def error(self, task_id: str) -> BaseException | None: ...

    async def wait_for_end(self, task_id: str, timeout: float) -> TaskStatus: ...  # noqa: ASYNC109


class InlineClient(AsyncClient):
    """As AsyncClient, on a queue in this process. Has the methods that are about tasks."""

    _waits_at_once: ClassVar[int] = sys.maxsize  # a wait takes no connection

    def __init__(self, queue: Counter) -> None:
        # Nothing of the parent's: it would look for a broker's address.
        self._queue = queue

    async def close(self) -> None:
        """Do nothing: there is nobody to hang up on."""

    async def submit_task(self, task: Task) -> str:
        """See AsyncClient."""
        return self._queue.submit(task)

    async def submit_many(self, tasks: Iterable[Task]) -> list[str]:
        """See AsyncClient."""
        submits = list(tasks)
        for task in submits:
            task.command(None)  # what is wrong is told before anything is submitted
        ids: list[str] = []
        refusals: list[TaskQueueError] = []
        for task in submits:
            try:
                ids.append(self._queue.submit(task))
            except TaskQueueError as error:
                refusals.append(error)
        if refusals:
            raise refusals[0]
        return ids

    async def get_status(self, task_id: str) -> TaskStatus:
        """See AsyncClient."""
        return self._queue.status(task_id)

    async def wait_for_result(self, task_id: str, timeout: float = 60.0) -> bytes:  # noqa: ASYNC109
        """See AsyncClient; what the handler raised is the cause of TaskFailed."""
        try:
            return await super().wait_for_result(task_id, timeout)
        except TaskFailed as failed:
            raise failed from self._queue.error(task_id)

    async def wait_for_end(self, task_id: str, timeout: float = 60.0) -> TaskStatus:  # noqa: ASYNC109
        """Run what is due, and then see AsyncClient."""
        return await self._queue.wait_for_end(task_id, timeout)

    async def cancel(self, task_id: str, *, running: bool = False) -> None:
        """See AsyncClient."""
        self._queue.cancel(task_id, running=running)

    async def retry(self, task_id: str) -> None:
        """See AsyncClient."""
        self._queue.retry(task_id)

    async def change(
        self,
        task_id: str,
        *,
        priority: int | PriorityName | None = None,
        schedule_at: datetime | None = None,
        delay: float | None = None,
    ) -> None:
        """See AsyncClient."""
        self._queue.change(
            msgspec.convert(
                {
                    "task_id": task_id,
                    "priority": priority_in(priority),
                    "schedule_at": schedule_at,
                    "delay_seconds": delay,
                },
                ChangeRequest,
            )
        )

    async def purge(self, task_id: str) -> None:
        """See AsyncClient."""
        self._queue.purge(task_id)

    async def logs(self, task_id: str) -> list[LogLineReply]:
        """See AsyncClient."""
        return self._queue.logs(task_id)

    async def list_tasks(  # noqa: PLR0913  as AsyncClient has it
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
        """See AsyncClient."""
        wanted = None if status is None else Status(status)
        labels = set(tags), set((metadata or {}).items())
        found = [
            task
            for task in self._queue.listed(wanted, task_type)[::-1]
            if labels[0] <= set(task.tags) and labels[1] <= set(task.metadata.items())
        ]
        start = offset if cursor is None else int(cursor)
        page = found[start : start + limit]
        is_full = len(page) == limit
        return msgspec.convert(
            {
                "tasks": page,
                "total": len(found),
                "limit": limit,
                "offset": offset,
                "next_cursor": str(start + limit) if is_full else None,
            },
            TaskPage,
            from_attributes=True,
        )

    async def _call(self, *words: bytes, ends_at: float | None = None) -> Answer:  # noqa: ARG002
        return await self._call_once(*words)

    async def _call_once(self, *words: bytes) -> Answer:
        raise BrokerUnavailable(
            f"there is no broker to answer {words[0].decode()}: tasks run in line; "
            "the fixture taskqueue_broker gives a real one"
        )


class InlineSyncClient(SyncClient):
    """As SyncClient, on a queue in this process."""

    def __init__(self, client: InlineClient, home: Home) -> None:
        # Nothing of the parent's: it would look for a broker's address.
        self._client = client
        self._thread = _Elsewhere(home)


class _Elsewhere(LoopThread):
    def __init__(self, home: Home) -> None:
        super().__init__()
        self._home = home

    def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        return self._home.run(work)

    def start(self, work: Coroutine[Any, Any, Value]) -> Future[Value]:
        return self._home.start(work)
