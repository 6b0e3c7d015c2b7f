"""The event loop on which a queue in line runs its handlers."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar, cast

Value = TypeVar("Value")


class Home:
    """One event loop, and the ways to have something run there from elsewhere."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def settle(self) -> None:
        """Be at home on the running loop."""
        self._loop = asyncio.get_running_loop()

    def call(self, event: asyncio.Event) -> None:
        """Set an event there, from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(event.set)

    async def await_(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Run a coroutine there, from any loop."""
        if asyncio.get_running_loop() is self._loop:
            return await work
        return await asyncio.wrap_future(self._sent(work))

    def run(self, work: Coroutine[Any, Any, Value]) -> Value:
        """Run a coroutine there, from any thread; on the loop itself only if it need not wait."""
        if not self._is_here():
            return self._sent(work).result()
        try:
            work.send(None)
        except StopIteration as end:
            return cast(Value, end.value)
        work.close()
        raise _would_block()

    def start(self, work: Coroutine[Any, Any, Value]) -> Future[Value]:
        """Begin to run a coroutine there, for whoever waits in another thread."""
        if self._is_here():
            work.close()
            raise _would_block()
        return self._sent(work)

    def _sent(self, work: Coroutine[Any, Any, Value]) -> Future[Value]:
        if self._loop is None:
            work.close()
            raise RuntimeError("use it in a block: with InlineQueue(app) as queue")
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _is_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:  # there is none in this thread
            return False


def _would_block() -> RuntimeError:
    return RuntimeError("this would block the event loop; await the form without _sync")
