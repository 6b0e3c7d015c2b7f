"""The program of a child process: runs handlers that its worker orders, one after the other.

It hears its worker in a thread, so that it notices whatever a handler does that the worker is gone.
"""

import asyncio
import ctypes
import faulthandler
import itertools
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final, NoReturn

from taskqueue.client.errors import remote_error
from taskqueue.worker import pipe
from taskqueue.worker.app import App
from taskqueue.worker.child_logs import PipeHandler
from taskqueue.worker.context import NO_STATE, Claim, Context
from taskqueue.worker.execution import Execution
from taskqueue.worker.handler import Handler
from taskqueue.worker.loops import loop_factory
from taskqueue.worker.memory import resident
from taskqueue.worker.notes import Note
from taskqueue.worker.outcomes import failure_of

SET_PARENT_DEATH_SIGNAL: Final = 1
OUT_OF_MEMORY_SCORE: Final = "500"


class Speech:
    """Says things to the worker, from any thread."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._lock = threading.Lock()

    def say(self, message: pipe.FromChild) -> None:
        """Send a message whole."""
        data = pipe.frame(message)
        with self._lock:
            self.connection.sendall(data)


class Child:
    """Runs the handlers of an app, one at a time, as its worker says."""

    def __init__(self, app: App, speech: Speech) -> None:
        self._app = app
        self._speech = speech
        self._state: object = NO_STATE
        self._threads = ThreadPoolExecutor(1, "tq-handler")
        self._orders: asyncio.Queue[Claim | None] = asyncio.Queue()
        self._stop: Callable[[], None] = _nothing
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[None]] = {}
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Take orders until told to leave."""
        async with AsyncExitStack() as stack:
            try:
                if self._app.lifespan is not None:
                    self._state = await stack.enter_async_context(self._app.lifespan(self._app))
            except BaseException as error:
                self._speech.say(pipe.Unable(failure_of(error)))
                raise
            threading.Thread(target=self._listen, name="tq-pipe", daemon=True).start()
            self._speech.say(pipe.Ready(resident()))
            while (claim := await self._orders.get()) is not None:
                self._speech.say(await self._execute(claim))
        await self._app.close()

    async def _execute(self, claim: Claim) -> pipe.FromChild:
        context: Context = Context(claim, self._loop, self._tell, self._state)
        handler = self._app.handlers[claim.task_type]
        # In a task of its own: what a handler does to its task is not done to this one.
        attempt = self._loop.create_task(self._attempt(handler, context))

        def stop() -> None:
            context.end()
            if handler.is_async:  # a thread cannot be cancelled, but it can look
                attempt.cancel()

        self._stop = stop
        try:
            return await attempt
        except asyncio.CancelledError as error:  # before it has begun
            return pipe.Failed(failure_of(error), resident())
        finally:
            self._stop = _nothing
            await context.lines_told()

    async def _attempt(self, handler: Handler, context: Context) -> pipe.FromChild:
        try:
            result = await Execution(self._threads).run(handler, context)
        except BaseException as error:  # noqa: BLE001  a failed attempt and no more
            return pipe.Failed(failure_of(error, handler.manner.allows_retry), resident())
        return pipe.Completed(result, resident())

    async def _tell(self, claim: Claim, note: Note) -> None:
        number = next(self._numbers)
        word = pipe.Said(number, claim.task_id, claim.token, note)
        answer = self._asked[number] = self._loop.create_future()
        self._speech.say(word)
        await answer

    def _listen(self) -> None:
        while True:
            try:
                message = pipe.receive(self._speech.connection, pipe.to_child)
            except (EOFError, OSError):
                end_at_once()
            with suppress(RuntimeError):  # the loop has ended, and the process is about to
                self._loop.call_soon_threadsafe(self._hear, message)

    def _hear(self, message: pipe.ToChild) -> None:
        match message:
            case pipe.Order(claim):
                self._orders.put_nowait(claim)
            case pipe.Stop():
                self._stop()
            case pipe.Heard(number, error):
                answer = self._asked.pop(number)
                if answer.done():
                    return  # the handler does not wait for it any more
                if error:
                    answer.set_exception(remote_error(error))
                else:
                    answer.set_result(None)
            case _:
                self._orders.put_nowait(None)


def _nothing() -> None:
    """No handler runs."""


def main(descriptor: int, worker: int) -> None:
    """Serve the worker at the other end of a socket."""
    os.set_inheritable(descriptor, False)
    connection = socket.socket(fileno=descriptor)
    _end_with(worker)
    _prefer_as_victim()
    faulthandler.enable()
    for number in (signal.SIGTERM, signal.SIGINT):
        # A supervisor may tell the whole group to end; the worker says when it is this one's turn.
        signal.signal(number, lambda _number, _frame: None)
    try:
        start = pipe.receive(connection, pipe.to_child)
    except (EOFError, OSError):
        end_at_once()
    if isinstance(start, pipe.Start):
        speech = Speech(connection)
        logging.basicConfig(level=start.log_level, handlers=[PipeHandler(speech.say)])
        app = _imported(start, speech)
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            runner.run(_serve(app, speech))


def _imported(start: pipe.Start, speech: Speech) -> App:
    try:
        return start.place.app()
    except BaseException as error:
        speech.say(pipe.Unable(failure_of(error)))
        raise


async def _serve(app: App, speech: Speech) -> None:
    await Child(app, speech).run()


def end_at_once() -> NoReturn:
    """End this process and those that its handlers have started."""
    os.killpg(0, signal.SIGKILL)
    os._exit(1)  # where it leads no group


def _end_with(worker: int) -> None:
    """See to it that the kernel ends this process when the worker is gone, even if it hangs."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != worker:  # it was gone before that
        end_at_once()


def _prefer_as_victim() -> None:
    """When memory runs out, this process is to be killed and not its worker."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(OUT_OF_MEMORY_SCORE)
