"""Watches how tasks end, any number of them over few connections."""

import asyncio
import queue
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, Final, TypeVar

from taskqueue.client.aio import AsyncClient, waits_at_once
from taskqueue.client.errors import WaitTimeout
from taskqueue.client.sync import SyncClient, begin
from taskqueue.client.task import TaskStatus
from taskqueue.core.errors import BrokerUnavailable, TaskQueueError
from taskqueue.worker.handle import Handle

ROUND_SECONDS: Final = 1.0
"""How long it takes to look after each of the tasks once, where they have to take turns."""

SHORTEST_LOOK: Final = 0.02
"""Seconds spent on one task then, at least; past a thousand tasks a round takes longer."""

PAUSE_SECONDS: Final = 0.5
"""Until the next try while the broker is away."""

Client = TypeVar("Client", AsyncClient, SyncClient)
End = TaskStatus | TaskQueueError
"""How a task has ended, or why that cannot be said."""

Ended = tuple[int, End]
"""The number of a handle, and its end."""


class Watch:
    """Tells how each of some tasks ends; so many seconds long, through one client."""

    def __init__(
        self, tasks: Iterable[tuple[int, str]], tell: Callable[[Ended], None], seconds: float
    ) -> None:
        self._new = deque(tasks)
        self._seen: deque[tuple[int, str]] = deque()
        self._left = len(self._new)
        self._tell = tell
        self._seconds = seconds
        self._ends_at = 0.0
        self._most = 0

    async def run(self, client: AsyncClient) -> None:
        """Watch until all have ended or the time is over; each is told of once."""
        self._ends_at = asyncio.get_running_loop().time() + self._seconds
        self._most = waits_at_once(client)
        async with asyncio.TaskGroup() as watchers:
            for _ in range(min(self._left, self._most)):
                watchers.create_task(self._look(client))
        for number, task_id in self._seen:
            error = WaitTimeout(f"task {task_id} goes on after {self._seconds:g} s")
            self._tell((number, error))

    async def _look(self, client: AsyncClient) -> None:
        # Each is asked for once, however little time there is.
        while self._new or (self._seen and self._time_left() > 0):
            task = self._new.popleft() if self._new else self._seen.popleft()
            end = await self._end(client, task[1])
            if end is None:
                self._seen.append(task)
            else:
                self._left -= 1
                self._tell((task[0], end))

    async def _end(self, client: AsyncClient, task_id: str) -> End | None:
        seconds = self._time_left()
        is_alone = self._left <= self._most
        if not is_alone:
            seconds = min(seconds, max(SHORTEST_LOOK, ROUND_SECONDS * self._most / self._left))
        try:
            return await client.wait_for_end(task_id, max(0.0, seconds))
        except WaitTimeout as error:
            return error if is_alone else None
        except BrokerUnavailable as error:
            if self._time_left() <= 0:
                return error
            await asyncio.sleep(min(PAUSE_SECONDS, self._time_left()))
            return None
        except TaskQueueError as error:
            return error

    def _time_left(self) -> float:
        return self._ends_at - asyncio.get_running_loop().time()


async def ends(handles: Sequence[Handle[Any]], seconds: float) -> AsyncGenerator[Ended, None]:
    """How the tasks end, each as soon as it has, with the number of its handle.

    Where the time is over the ends of the others are WaitTimeout.
    """
    told: asyncio.Queue[Ended | None] = asyncio.Queue()
    watches: list[asyncio.Task[None]] = []
    try:
        for client, tasks in _by_client(handles, [handle.client for handle in handles]):
            watch = Watch(tasks, told.put_nowait, seconds)
            work = asyncio.create_task(watch.run(client))
            work.add_done_callback(lambda _work: told.put_nowait(None))
            watches.append(work)
        for _ in range(len(handles)):
            while (one := await told.get()) is None:
                _raise_failure(watches)
            _note(handles, *one)
            yield one
    finally:
        for work in watches:
            work.cancel()


def ends_sync(handles: Sequence[Handle[Any]], seconds: float) -> Generator[Ended, None, None]:
    """As `ends`, for code without asyncio."""
    told: queue.SimpleQueue[Ended | None] = queue.SimpleQueue()
    watches: list[Future[None]] = []
    try:
        for client, tasks in _by_client(handles, [handle.sync_client for handle in handles]):
            work = begin(client, Watch(tasks, told.put, seconds).run)
            work.add_done_callback(lambda _work: told.put(None))
            watches.append(work)
        for _ in range(len(handles)):
            while (one := told.get()) is None:
                _raise_failure(watches)
            _note(handles, *one)
            yield one
    finally:
        for work in watches:
            work.cancel()


def _raise_failure(watches: Sequence[asyncio.Task[None] | Future[None]]) -> None:
    for watch in watches:
        if watch.done():
            watch.result()


def _by_client(
    handles: Sequence[Handle[Any]], clients: Sequence[Client]
) -> list[tuple[Client, list[tuple[int, str]]]]:
    groups: dict[int, tuple[Client, list[tuple[int, str]]]] = {}
    for number, (handle, client) in enumerate(zip(handles, clients, strict=True)):
        groups.setdefault(id(client), (client, []))[1].append((number, handle.task_id))
    return list(groups.values())


def _note(handles: Sequence[Handle[Any]], number: int, end: End) -> None:
    if isinstance(end, TaskStatus):
        handles[number].note_end(end)
