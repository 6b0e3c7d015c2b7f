"""One attempt at a task: runs the handler and says, in one word for the broker, how it ended."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from enum import Enum, auto
from functools import partial
from typing import Any, NamedTuple

from taskqueue.worker.children import Children
from taskqueue.worker.context import Claim, Context
from taskqueue.worker.execution import Execution, checked
from taskqueue.worker.handler import Handler, Manner
from taskqueue.worker.middleware import Middleware, execute_through
from taskqueue.worker.outcomes import Failure, failure_of


class Means(NamedTuple):
    """What a worker runs handlers with; `children` only where a handler asks for a process."""

    threads: Executor
    children: Children | None
    middleware: Sequence[Middleware]


class Ending(Enum):
    """Why a worker stops a handler before it has returned."""

    TIMED_OUT = auto()
    CANCELLED = auto()
    LOST = auto()
    RELEASED = auto()


class Attempt:
    """A claim that this worker is at work on."""

    __slots__ = (
        "_context",
        "_execution",
        "_manner",
        "claim",
        "ending",
        "has_started",
        "task",
        "timer",
    )

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.ending: Ending | None = None
        self.has_started = False
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self._execution: Execution | None = None
        self._context: Context[Any] | None = None
        self._manner = Manner()

    @property
    def thread(self) -> asyncio.Future[Any] | None:
        """The thread that the handler runs in, if it has one."""
        return None if self._execution is None else self._execution.thread

    def stop(self, ending: Ending) -> bool:
        """Stop the handler if it runs: a coroutine is cancelled, a process is killed.

        Where somebody has cancelled the task, a process has a grace first. A handler in a thread
        goes on, but nobody waits for it any more.
        Whether there was something to stop.
        """
        if self.ending is not None or self.task is None or self.task.done():
            return False
        self.ending = ending
        if self._context is not None:
            self._context.end()
        if self.has_started:
            self.task.cancel()
        return True

    async def run(
        self, handler: Handler, context: Context[Any], means: Means
    ) -> list[bytes] | None:
        """Run the handler; returns the command that reports its end, or None if nobody asks.

        Whatever the handler raises, SystemExit included, is a failed attempt and no more.
        """
        self.has_started = True
        self._manner = handler.manner
        self._context = context
        if self.ending is not None:
            return self._stopped()
        try:
            if means.middleware:
                execute = partial(self._execute, handler, context, means)
                result = checked(await execute_through(means.middleware, context, execute))
            elif handler.manner.isolation is None:  # the short way for what is most common
                self._execution = Execution(means.threads)
                result = await self._execution.run(handler, context)
            else:
                result = await self._execute(handler, context, means)
            if self.ending is not None:
                return self._stopped()  # it has not let itself be stopped, but it has been given up
        except asyncio.CancelledError as error:
            return self.refused(error) if self.ending is None else self._stopped()
        except BaseException as error:  # noqa: BLE001  a handler must not take the worker down
            return self.refused(error)
        return [b"TQ.COMPLETE", *self._names(), b"RESULT", result]

    def refused(self, error: BaseException) -> list[bytes]:
        """The report of an attempt that raised, or whose result the broker does not take."""
        return self._fail(failure_of(error, self._manner.allows_retry))

    async def _execute(self, handler: Handler, context: Context[Any], means: Means) -> bytes:
        if handler.manner.isolation is not None and means.children is not None:
            return await means.children.run(self.claim, context, self._has_grace)
        self._execution = Execution(means.threads)
        return await self._execution.run(handler, context)

    def _has_grace(self) -> bool:
        # Otherwise the task may run elsewhere by now, or soon.
        return self.ending is Ending.CANCELLED

    def _stopped(self) -> list[bytes] | None:
        match self.ending:
            case Ending.TIMED_OUT:
                message = f"the attempt took longer than its {self.claim.timeout} s"
                return self._fail(Failure("TimedOut", message))
            case Ending.RELEASED:
                return [b"TQ.RELEASE", *self._names()]
            case _:
                return None

    def _fail(self, failure: Failure) -> list[bytes]:
        return failure.command(self.claim.task_id, self.claim.token)

    def _names(self) -> tuple[bytes, bytes]:
        return self.claim.task_id.encode(), b"%d" % self.claim.token
