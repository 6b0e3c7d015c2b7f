"""A broker with its native door in this process, that can be stopped and started again."""

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

from taskqueue.broker.access import AccessSettings
from taskqueue.broker.broker import Broker, BrokerSettings
from taskqueue.client.address import BrokerAddress
from taskqueue.core.clock import Clock, SystemClock
from taskqueue.doors.bounds import RespSettings
from taskqueue.doors.resp import RespDoor
from tests.support.broker import a_broker

PATIENCE = 20.0
"""Seconds after which something that was to happen is called missing."""


class NativeDoor:
    """A running broker; it keeps its port and its data over `stop` and `start`."""

    def __init__(
        self,
        folder: Path,
        clock: Clock | None = None,
        settings: BrokerSettings | None = None,
        access: AccessSettings | None = None,
    ) -> None:
        self.broker: Broker
        self.door: RespDoor
        self.port = 0
        self.clock: Clock = clock or SystemClock()
        self._folder = folder
        self._settings = settings
        self._access = access
        self._parts = AsyncExitStack()

    @property
    def addresses(self) -> list[BrokerAddress]:
        """Where it listens, as the SDK says it inside."""
        return [BrokerAddress("127.0.0.1", self.port)]

    @property
    def url(self) -> str:
        """Where it listens, as a user writes it."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Open the storage, then the broker, then the door."""
        async with AsyncExitStack() as parts:
            self.broker = await parts.enter_async_context(
                a_broker(
                    self._folder, clock=self.clock, settings=self._settings, access=self._access
                )
            )
            self.door = RespDoor(self.broker, RespSettings())
            await self.door.start("127.0.0.1", self.port)
            self.port = self.door.port
            parts.push_async_callback(self._close)
            self._chores = asyncio.create_task(self.broker.upkeep.run())
            self._parts = parts.pop_all()

    async def stop(self) -> None:
        """End it in good order, as SIGTERM does."""
        await self._parts.aclose()

    async def _close(self) -> None:
        self._chores.cancel()
        await asyncio.wait([self._chores])
        # Waiting claims and readers are answered first; then the door can close.
        await self.broker.close()
        await self.door.close()


@asynccontextmanager
async def a_native_door(
    folder: Path,
    *,
    clock: Clock | None = None,
    settings: BrokerSettings | None = None,
    access: AccessSettings | None = None,
) -> AsyncIterator[NativeDoor]:
    """A broker with its native door on a free port, on the machine's clock by default."""
    door = NativeDoor(folder, clock, settings, access)
    await door.start()
    try:
        yield door
    finally:
        await door.stop()


@contextmanager
def no_longer_than(seconds: float) -> Iterator[None]:
    """Fails a test that waits for what never happens, whatever it waits in."""

    def give_up(_number: int, _frame: object) -> None:
        raise AssertionError(f"what the test waits for has not happened in {seconds:g} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that tells nobody when it happens."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0.002)


class CuttingProxy:
    """Stands between a client and a broker and cuts each connection after so many bytes.

    `cuts` has, for each connection to come, how many bytes pass to the broker and how many pass
    back before it ends; connections after those pass whole.
    """

    def __init__(self, port: int, cuts: list[tuple[int, int]]) -> None:
        self.port = 0
        self.connections = 0
        self._broker_port = port
        self._cuts = cuts
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> asyncio.Server:
        """Listen on a free port."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = int(server.sockets[0].getsockname()[1])
        return server

    async def close(self) -> None:
        """Cut what is left."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        there, back = self._cuts.pop(0) if self._cuts else (1 << 60, 1 << 60)
        self.connections += 1
        broker_reader, broker_writer = await asyncio.open_connection("127.0.0.1", self._broker_port)
        ways = [
            asyncio.create_task(_pass_on(reader, broker_writer, there)),
            asyncio.create_task(_pass_on(broker_reader, writer, back)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # asyncio's server would log it
        finally:
            for way in ways:
                way.cancel()
            writer.transport.abort()
            broker_writer.transport.abort()
            self._tasks.discard(task)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int) -> None:
    passed = 0
    while data := await reader.read(65_536):
        writer.write(data[: limit - passed])
        await writer.drain()
        passed += len(data)
        if passed >= limit:
            return


@asynccontextmanager
async def a_cutting_proxy(port: int, *cuts: tuple[int, int]) -> AsyncIterator[CuttingProxy]:
    """A proxy before the broker on `port`, cutting as told."""
    proxy = CuttingProxy(port, list(cuts))
    server = await proxy.run()
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
