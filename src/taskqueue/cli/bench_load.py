"""The loads of `tq bench`: submits, workers that drain, and tasks one by one."""

import asyncio
import struct
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final

from taskqueue.cli.doctor_broker import ask
from taskqueue.client.address import BrokerAddress
from taskqueue.client.connection import Connection
from taskqueue.core.errors import BrokerUnavailable
from taskqueue.worker.app import App
from taskqueue.worker.runner import Worker
from taskqueue.worker.settings import WorkerSettings

SLOTS: Final = 250
"""Tasks that one worker runs at once."""

STOP_SECONDS: Final = 5.0
PER_SECOND: Final = 100.0
MOST_WAITS: Final = 1_000
LOOK_SECONDS: Final = 0.02


class Submits:
    """Submits over the native door, each acknowledged."""

    def __init__(self, address: BrokerAddress, task_type: str, payload: bytes) -> None:
        self.done = 0
        self._address = address
        self._words = (b"TQ.SUBMIT", task_type.encode(), payload)
        self._left = 0
        self._ends_at = 0.0

    async def run(self, connections: int, window: int, number: int, seconds: float) -> float:
        """Submits a second, with up to `window` under way on each connection.

        Ends after `number` or so many seconds. Raises what the broker refuses with.
        """
        before, self._left = self.done, number
        opened = [await Connection.connect(self._address) for _ in range(connections)]
        started = time.perf_counter()
        self._ends_at = started + seconds
        try:
            await asyncio.gather(*(self._fill(connection, window) for connection in opened))
        finally:
            for connection in opened:
                connection.close()
        return (self.done - before) / (time.perf_counter() - started)

    async def _fill(self, connection: Connection, window: int) -> None:
        while self._left > 0 and time.perf_counter() < self._ends_at:
            some = min(window, self._left)
            self._left -= some
            for future in [connection.send(*self._words) for _ in range(some)]:
                await future
                self.done += 1


class Drain:
    """Workers in this process, on one handler that does nothing but note when it began."""

    def __init__(self, address: BrokerAddress, task_type: str, workers: int) -> None:
        self.waits: list[float] = []
        """Milliseconds from submit to start, of the tasks that carry when they were submitted."""
        self._wanted = 0
        self._have_waited = asyncio.Event()
        self._address = address
        self._app = App()
        self._app.raw(task_type)(self._handle)
        self._number = workers
        self._type = task_type

    async def _handle(self, payload: bytes) -> bytes:
        if payload.startswith(STAMP):
            (sent,) = STAMPED.unpack_from(payload, len(STAMP))
            self.waits.append((time.perf_counter_ns() - sent) / 1e6)
            if len(self.waits) == self._wanted:
                self._have_waited.set()
        return b""

    async def has_waited(self, number: int) -> None:
        """Wait until so many stamped tasks have begun."""
        self._wanted = number
        if len(self.waits) < number:
            await self._have_waited.wait()

    @asynccontextmanager
    async def working(self) -> AsyncGenerator[None, None]:
        """The workers run for the block."""
        settings = WorkerSettings(concurrency=SLOTS, shutdown_seconds=STOP_SECONDS, stall_seconds=0)
        workers = [Worker(self._app, [self._address], settings) for _ in range(self._number)]
        running = [asyncio.create_task(worker.run()) for worker in workers]
        try:
            yield
        finally:
            for worker in workers:
                worker.stop()
            await asyncio.gather(*running)

    async def run(self, number: int, seconds: float) -> float:
        """Tasks completed a second, from the start until all are or the time is over."""
        connection = await Connection.connect(self._address)
        words = ("TQ.LIST", "STATUS", "completed", "TYPE", self._type, "LIMIT", "1")
        started = time.perf_counter()
        done, now = 0, started
        try:
            while done < number and now - started < seconds:
                await asyncio.sleep(LOOK_SECONDS)
                done, now = int((await ask(connection, *words))["total"]), time.perf_counter()
        finally:
            connection.close()
        return done / (now - started)


class Latency:
    """Tasks one after the other, at a steady pace that no worker is kept busy by."""

    def __init__(self, connection: Connection, task_type: str, drain: Drain) -> None:
        self._connection = connection
        self._type = task_type
        self._drain = drain

    async def run(self, number: int, seconds: float) -> dict[str, float]:
        """Milliseconds from submit to start, by percentile. Raises BrokerUnavailable if none is."""
        started = time.perf_counter()
        wanted = max(1, min(number, MOST_WAITS, int(seconds * PER_SECOND / 2)))
        for index in range(wanted):
            await asyncio.sleep(max(0.0, started + index / PER_SECOND - time.perf_counter()))
            stamp = STAMP + STAMPED.pack(time.perf_counter_ns())
            await self._connection.send(
                b"TQ.SUBMIT", self._type.encode(), stamp, b"PRIORITY", b"255"
            )
        left = seconds - (time.perf_counter() - started)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._drain.has_waited(wanted), max(0.1, left))
        waits = sorted(self._drain.waits)
        if not waits:
            raise BrokerUnavailable("no task was started in time; give it more --seconds")
        return {str(p): waits[min(len(waits) - 1, len(waits) * p // 100)] for p in (50, 95, 99)}


STAMP: Final = b"\x00tq.bench "
STAMPED: Final = struct.Struct("<q")
