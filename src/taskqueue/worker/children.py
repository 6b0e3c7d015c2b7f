"""The child processes of a worker: as many as it has slots at most, one ready ahead of need."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Final

from taskqueue.core.errors import InvalidRequest
from taskqueue.worker.context import Claim, Context
from taskqueue.worker.memory import MEGABYTE
from taskqueue.worker.outcomes import ProcessError
from taskqueue.worker.place import AppPlace
from taskqueue.worker.process import ChildProcess
from taskqueue.worker.settings import WorkerSettings

LEAVE_SECONDS: Final = 5.0
"""How long a child may take to leave its lifespan; then it is killed."""

log = logging.getLogger("taskqueue.worker")


class Children:
    """Runs handlers in processes, at most as many as the worker has slots."""

    def __init__(self, place: AppPlace, settings: WorkerSettings) -> None:
        self._place = place
        self._limit = settings.concurrency
        self._tasks = settings.child_tasks
        self._memory = settings.child_memory_mb * MEGABYTE
        self._cancel_seconds = settings.cancel_seconds
        self._all: set[ChildProcess] = set()
        self._idle: list[ChildProcess] = []
        self._changed = asyncio.Event()
        self._background: set[asyncio.Task[Any]] = set()
        self._sparing: asyncio.Task[None] | None = None
        self._is_closing = False

    @property
    def pids(self) -> set[int]:
        """The ids of the processes there are."""
        return {child.pid for child in self._all if child.pid}

    async def open(self) -> None:
        """Start the first process. Raises InvalidRequest if it cannot run the app's handlers."""
        try:
            self._idle.append(await self._started())
        except ProcessError as error:
            raise InvalidRequest(f"no process for handlers can be started: {error}") from error

    async def run(
        self, claim: Claim, context: Context[Any], has_grace: Callable[[], bool]
    ) -> bytes:
        """The result of a handler. Raises ProcessError for what it raised, WorkerProcessDied.

        Cancelled, it kills the process, but where `has_grace` says so it lets the handler end by
        itself first; it returns when either has ended.
        """
        child = await self._take()
        self._keep_spare()
        try:
            result = await child.run(claim, context)
        except asyncio.CancelledError:
            await self._stop(child, self._cancel_seconds if has_grace() else 0.0)
            raise
        except ProcessError:
            self._give_back(child)
            raise
        self._give_back(child)
        return result

    async def close(self) -> None:
        """End all processes, in good order if they let themselves."""
        self._is_closing = True
        for child in self._idle:
            child.leave()
        idle, self._idle = self._idle, []
        if idle:
            await asyncio.wait([child.gone for child in idle], timeout=LEAVE_SECONDS)
        for child in self._all:
            child.kill()
        for task in list(self._background):
            await asyncio.wait([task])

    async def _stop(self, child: ChildProcess, grace: float) -> None:
        is_stopped = False
        try:
            is_stopped = grace > 0 and await child.stop(grace)
        finally:
            if is_stopped:
                self._give_back(child)
            else:
                child.kill()
        if not is_stopped:
            await asyncio.wait([child.gone], timeout=LEAVE_SECONDS)

    async def _take(self) -> ChildProcess:
        while True:
            while self._idle:
                child = self._idle.pop()
                if not child.gone.done():
                    return child
            if len(self._all) < self._limit:
                return await self._started()
            self._changed.clear()
            await self._changed.wait()

    async def _started(self) -> ChildProcess:
        child = ChildProcess(self._place)
        self._all.add(child)
        self._do(self._outlive(child))
        try:
            await child.start()
        except BaseException:
            child.kill()
            raise
        return child

    async def _outlive(self, child: ChildProcess) -> None:
        await child.gone
        self._all.discard(child)
        if child in self._idle:
            self._idle.remove(child)
        if child.orders:  # one that ends before it has done anything would do so for ever
            self._keep_spare()
        self._changed.set()

    def _give_back(self, child: ChildProcess) -> None:
        is_old = 0 < self._tasks <= child.orders
        is_large = 0 < self._memory < child.memory
        if is_old or is_large:
            log.info(
                "a process is replaced after %d tasks, with %d MB resident",
                child.orders,
                child.memory // MEGABYTE,
            )
            child.leave()
            self._do(self._see_off(child))
        elif not child.gone.done():
            self._idle.append(child)
        self._changed.set()

    async def _see_off(self, child: ChildProcess) -> None:
        await asyncio.wait([child.gone], timeout=LEAVE_SECONDS)
        child.kill()

    def _keep_spare(self) -> None:
        """Have one process ready for the next task, unless there are enough."""
        is_starting = self._sparing is not None and not self._sparing.done()
        if self._idle or is_starting or self._is_closing or len(self._all) >= self._limit:
            return
        self._sparing = self._do(self._start_spare())

    async def _start_spare(self) -> None:
        if len(self._all) >= self._limit:
            return  # a task has been faster
        try:
            self._idle.append(await self._started())
        except ProcessError as error:
            if not self._is_closing:
                log.warning("a process for handlers could not be started: %s", error)
        self._changed.set()

    def _do(self, work: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task
