"""A child process as its worker sees it: started, given orders, killed, and its end told."""

import asyncio
import logging
import multiprocessing.spawn
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import msgspec

from taskqueue.client.connection import ConnectionLost
from taskqueue.core.errors import LeaseLost, TaskQueueError
from taskqueue.worker import pipe
from taskqueue.worker.child_logs import Logged
from taskqueue.worker.context import Claim, Context
from taskqueue.worker.memory import MEGABYTE, resident
from taskqueue.worker.outcomes import ProcessError, WorkerProcessDied
from taskqueue.worker.place import AppPlace

LOOK_SECONDS: Final = 0.25
"""How often it is seen how much memory a child has."""
LAST_WORDS_SECONDS: Final = 2.0
_SEARCH_PATH: Final = "TQ_CHILD_SEARCH_PATH"
_PROGRAM: Final = (
    "import os, sys; "
    f"sys.path[:] = os.environ.pop('{_SEARCH_PATH}').split(os.pathsep); "
    "from taskqueue.worker.child import main; main(*map(int, sys.argv[1:]))"
)


class ChildProcess:
    """One process that runs handlers, one at a time.

    `gone` is done when it has ended, in whatever way.
    """

    def __init__(self, place: AppPlace) -> None:
        self.orders = 0
        self.memory = 0
        self.gone: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._end = "could not be started"
        self._place = place
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._pid = 0
        self._is_reaped = False
        self._is_wanted = True
        self._outcome: asyncio.Future[bytes] = self._loop.create_future()
        self._context: Context[Any] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._answering: set[asyncio.Task[None]] = set()
        self._writer: asyncio.StreamWriter | None = None

    @property
    def pid(self) -> int:
        """Its process id; 0 until it has one."""
        return self._pid

    async def start(self) -> None:
        """Start it and return when it takes orders.

        Raises ProcessError if it cannot run the app's handlers, WorkerProcessDied.
        """
        ours, theirs = socket.socketpair()
        # The thread lives as long as the child: the kernel ends a child with the thread, not the
        # process, that has started it.
        threading.Thread(target=self._live, args=(theirs,), name="tq-child", daemon=True).start()
        reader, self._writer = await asyncio.open_unix_connection(sock=ours)
        self._serving = self._loop.create_task(self._serve(reader))
        self._say(pipe.Start(self._place, logging.getLogger().getEffectiveLevel()))
        await asyncio.shield(self._outcome)

    async def run(self, claim: Claim, context: Context[Any]) -> bytes:
        """Have a handler run. Raises ProcessError, WorkerProcessDied."""
        self.orders += 1
        self._context = context
        if self._serving is None or self._serving.done():
            raise self._death()
        outcome: asyncio.Future[bytes] = self._loop.create_future()
        self._outcome = outcome
        self._say(pipe.Order(claim))
        while not outcome.done():
            await asyncio.wait([outcome], timeout=LOOK_SECONDS)
            self.memory = resident(self._pid) or self.memory
        return outcome.result()

    async def stop(self, seconds: float) -> bool:
        """Tell the handler that it is to end; whether it has within so many seconds."""
        self._say(pipe.Stop())
        outcome = self._outcome
        await asyncio.wait([outcome], timeout=seconds)
        # Nobody waits for what it was, so that it is no news that it has failed.
        return outcome.done() and not isinstance(outcome.exception(), WorkerProcessDied)

    def leave(self) -> None:
        """Tell it to end in good order."""
        self._say(pipe.Leave())

    def kill(self) -> None:
        """End it and what its handler has started, at once."""
        with self._lock:
            self._is_wanted = False
            if self._pid and not self._is_reaped:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._pid, signal.SIGKILL)

    def _live(self, theirs: socket.socket) -> None:
        try:
            with theirs:
                process = self._spawn(theirs)
        except (OSError, ValueError) as error:
            self._end = f"could not be started: {error}"
        else:
            if process is not None:
                os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT)
                with self._lock:  # from here on the number may be another process's
                    self._is_reaped = True
                self._end = _said_of(process.wait())
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._set_gone)

    def _spawn(self, theirs: socket.socket) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if not self._is_wanted:
                return None
            process = subprocess.Popen(  # noqa: S603  our own program
                [
                    *(sys.executable, *_interpreter_flags(), "-c", _PROGRAM),
                    *(str(theirs.fileno()), str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                env=_environment(self._place),
                pass_fds=(theirs.fileno(),),
                # Ctrl-C is for the worker, and what handlers start can be killed with the child.
                start_new_session=True,
            )
            self._pid = process.pid
            return process

    def _set_gone(self) -> None:
        if not self.gone.done():
            self.gone.set_result(None)

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        listening = self._loop.create_task(self._listen(reader))
        await asyncio.wait([listening, self.gone], return_when=asyncio.FIRST_COMPLETED)
        # A child that has ended may have said something before; one that says no more has ended,
        # or else its handler has closed what was not its own.
        await asyncio.wait([listening, self.gone], timeout=LAST_WORDS_SECONDS)
        self.kill()
        await self.gone
        listening.cancel()
        if self._writer is not None:
            self._writer.close()
        if not self._outcome.done():
            self._outcome.set_exception(self._death())
            self._outcome.exception()  # where nobody waits for it, that is no news

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with suppress(EOFError, OSError, msgspec.MsgspecError):
            while True:
                self._hear(await pipe.read(reader, pipe.from_child))

    def _hear(self, message: pipe.FromChild) -> None:
        if isinstance(message, pipe.Said):
            answering = self._loop.create_task(self._pass_on(message))
            self._answering.add(answering)
            answering.add_done_callback(self._answering.discard)
            return
        if isinstance(message, Logged):
            message.log(self._pid, None if self._context is None else self._context.task_id)
            return
        if self._outcome.done():
            return  # nobody waits for it any more
        match message:
            case pipe.Ready(memory):
                self.memory = memory
                self._outcome.set_result(b"")
            case pipe.Completed(result, memory):
                self.memory = memory
                self._outcome.set_result(result)
            case pipe.Failed(failure, memory):
                self.memory = memory
                self._outcome.set_exception(ProcessError(failure))
            case pipe.Unable(failure):
                self._outcome.set_exception(ProcessError(failure))
            case _:
                pass

    async def _pass_on(self, word: pipe.Said) -> None:
        error, context = "", self._context
        try:
            if context is None or (context.task_id, context.token) != (word.task_id, word.token):
                raise LeaseLost("the attempt is over")
            await context.pass_on(word.note)
        except TaskQueueError as refusal:
            error = f"{refusal.code} {refusal.message}"
        except ConnectionLost:
            pass  # it is news, not work
        self._say(pipe.Heard(word.number, error))

    def _say(self, message: pipe.ToChild) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pipe.frame(message))

    def _death(self) -> WorkerProcessDied:
        seen = f"; it last had {self.memory / MEGABYTE:.0f} MB resident" if self.memory else ""
        return WorkerProcessDied(f"the process of the handler {self._end}{seen}")


def _said_of(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:  # a real-time signal has no name
        return f"was killed by signal {-code}"


def _environment(place: AppPlace) -> Mapping[str, str]:
    return {**os.environ, _SEARCH_PATH: os.pathsep.join(place.search_path)}


def _interpreter_flags() -> list[str]:
    # What multiprocessing gives to the interpreters it starts: -W, -X, -O and the like.
    command = multiprocessing.spawn.get_command_line()
    return command[1 : command.index("-c")]
