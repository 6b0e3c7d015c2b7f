"""Calls a handler: from the payload's bytes to the result's, in a coroutine or in a thread."""

import asyncio
import contextvars
import functools
import os
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Final

import msgspec

from taskqueue.core.errors import PayloadTooLarge
from taskqueue.wire.messages import LARGEST_PAYLOAD
from taskqueue.worker.context import Context
from taskqueue.worker.handler import Handler, RawHandler

FORKED_EXIT: Final = 70
"""Exit code of a process that a handler forked and did not end."""


class Execution:
    """One call of a handler; `thread` is set while it is in a thread, which nobody can end."""

    __slots__ = ("_threads", "thread")

    def __init__(self, threads: Executor) -> None:
        self.thread: asyncio.Future[Any] | None = None
        self._threads = threads

    async def run(self, handler: Handler, context: Context) -> bytes:
        """The result's bytes. Raises whatever the handler raises, SystemExit included.

        Raises TypeError if payload or result do not fit, ValueError or PayloadTooLarge if the
        result cannot be kept.
        """
        if isinstance(handler, RawHandler):
            args = (context, context.payload) if handler.takes_context else (context.payload,)
            result = await self._call(handler, *args)
            if not isinstance(result, bytes):
                raise TypeError(f"a raw handler must return bytes, got {type(result).__name__}")
            return checked(result)
        try:
            positional, keyword = handler.codec.decode_arguments(context.payload)
        except msgspec.MsgspecError as error:
            raise TypeError(f"the payload does not fit the handler: {error}") from None
        if handler.codec.takes_context:
            positional.insert(0, context)
        result = await self._call(handler, *positional, **keyword)
        return checked(handler.codec.encode_result(result))

    async def _call(self, handler: Handler, /, *args: Any, **kwargs: Any) -> Any:
        if handler.is_async:
            process = os.getpid()
            try:
                return await handler.function(*args, **kwargs)
            finally:
                _end_forked(process)
        work = functools.partial(_contained, handler.function, *args, **kwargs)
        run = contextvars.copy_context().run  # what middleware has set is seen in the thread
        self.thread = asyncio.get_running_loop().run_in_executor(self._threads, run, work)
        result, error = await asyncio.shield(self.thread)
        if error is not None:
            raise error
        return result


def checked(result: bytes) -> bytes:
    """A result that can be kept. Raises PayloadTooLarge."""
    if len(result) > LARGEST_PAYLOAD:
        raise PayloadTooLarge(
            f"the result must be at most {LARGEST_PAYLOAD} bytes, got {len(result)}"
        )
    return result


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
