"""One attempt at a task: runs the handler and says, in one word for the broker, how it ended."""

import asyncio
import functools
import os
import traceback
from collections.abc import Callable
from concurrent.futures import Executor
from enum import Enum, auto
from types import TracebackType
from typing import Any, Final

import msgspec

from taskqueue.core.errors import PayloadTooLarge
from taskqueue.wire.messages import LARGEST_PAYLOAD
from taskqueue.worker.app import RawHandler
from taskqueue.worker.context import Claim, Context
from taskqueue.worker.handler import TaskHandler

FORKED_EXIT: Final = 70
"""Exit code of a process that a handler forked and did not end."""

Handler = TaskHandler[Any, Any] | RawHandler


class Ending(Enum):
    """Why a worker stops a handler before it has returned."""

    TIMED_OUT = auto()
    LOST = auto()
    RELEASED = auto()


class Attempt:
    """A claim that this worker is at work on."""

    __slots__ = ("claim", "ending", "has_started", "task", "thread", "timer")

    def __init__(self, claim: Claim) -> None:
        self.claim = claim
        self.ending: Ending | None = None
        self.has_started = False
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.thread: asyncio.Future[Any] | None = None

    def stop(self, ending: Ending) -> bool:
        """Stop the handler if it runs; one in a thread goes on, but nobody waits for it any more.

        Whether there was something to stop.
        """
        if self.ending is not None or self.task is None or self.task.done():
            return False
        self.ending = ending
        if self.has_started:
            self.task.cancel()
        return True

    async def run(
        self, handler: Handler, context: Context, threads: Executor
    ) -> list[bytes] | None:
        """Run the handler; returns the command that reports its end, or None if nobody asks.

        Whatever the handler raises, SystemExit included, is a failed attempt and no more.
        """
        self.has_started = True
        if self.ending is not None:
            return self._stopped()
        try:
            result = await self._result(handler, context, threads)
            if self.ending is not None:
                return self._stopped()  # it has not let itself be stopped, but it has been given up
            if len(result) > LARGEST_PAYLOAD:
                raise PayloadTooLarge(
                    f"the result must be at most {LARGEST_PAYLOAD} bytes, got {len(result)}"
                )
        except asyncio.CancelledError as error:
            if self.ending is None:
                return self._failed(error)
            return self._stopped()
        except BaseException as error:  # noqa: BLE001  a handler must not take the worker down
            return self._failed(error)
        return [b"TQ.COMPLETE", *self._names(), b"RESULT", result]

    def refused(self, error: Exception) -> list[bytes]:
        """The report of an attempt whose result the broker does not take."""
        return self._failed(error)

    async def _result(self, handler: Handler, context: Context, threads: Executor) -> bytes:
        if isinstance(handler, RawHandler):
            args = (context, self.claim.payload) if handler.takes_context else (self.claim.payload,)
            result = await self._call(handler, threads, *args)
            if not isinstance(result, bytes):
                raise TypeError(f"a raw handler must return bytes, got {type(result).__name__}")
            return result
        try:
            positional, keyword = handler.codec.decode_arguments(self.claim.payload)
        except msgspec.MsgspecError as error:
            raise TypeError(f"the payload does not fit the handler: {error}") from None
        if handler.codec.takes_context:
            positional.insert(0, context)
        result = await self._call(handler, threads, *positional, **keyword)
        return handler.codec.encode_result(result)

    async def _call(self, handler: Handler, threads: Executor, /, *args: Any, **kwargs: Any) -> Any:
        if handler.is_async:
            process = os.getpid()
            try:
                return await handler.function(*args, **kwargs)
            finally:
                _end_forked(process)
        work = functools.partial(_contained, handler.function, *args, **kwargs)
        self.thread = asyncio.get_running_loop().run_in_executor(threads, work)
        result, error = await asyncio.shield(self.thread)
        if error is not None:
            raise error
        return result

    def _stopped(self) -> list[bytes] | None:
        match self.ending:
            case Ending.TIMED_OUT:
                message = f"the attempt took longer than its {self.claim.timeout} s"
                return self._fail(b"TimedOut", message, "")
            case Ending.RELEASED:
                return [b"TQ.RELEASE", *self._names()]
            case _:
                return None

    def _failed(self, error: BaseException) -> list[bytes]:
        try:
            message = str(error)
        except BaseException:  # noqa: BLE001  an error that cannot even be shown is still an error
            message = "its message could not be made"
        error.__traceback__ = _handlers_part(error.__traceback__)
        # With its causes: what went wrong is often said there.
        text = "".join(traceback.format_exception(error))
        return self._fail(_clipped(type(error).__name__), message, text)

    def _fail(self, kind: bytes, message: str, text: str) -> list[bytes]:
        words = [b"TQ.FAIL", *self._names(), _clipped(message), b"KIND", kind]
        return [*words, b"TRACEBACK", _clipped(text)] if text else words

    def _names(self) -> tuple[bytes, bytes]:
        return self.claim.task_id.encode(), b"%d" % self.claim.token


def _contained(
    function: Callable[..., Any], *args: Any, **kwargs: Any
) -> tuple[Any, BaseException | None]:
    # A thread's SystemExit or StopIteration would not come through a future as it is.
    process = os.getpid()
    try:
        return function(*args, **kwargs), None
    except BaseException as error:  # noqa: BLE001  handed on to `run`
        return None, error
    finally:
        _end_forked(process)


def _end_forked(process: int) -> None:
    """End a process that a handler has forked and let come back: its sockets are the worker's."""
    if os.getpid() != process:
        os._exit(FORKED_EXIT)


def _handlers_part(frames: TracebackType | None) -> TracebackType | None:
    """A traceback without the worker's own frames at its top."""
    while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
        frames = frames.tb_next
    return frames


def _clipped(text: str) -> bytes:
    # The broker keeps 64 Ki characters; sending much more would only cost time.
    return text[:100_000].encode(errors="replace")
