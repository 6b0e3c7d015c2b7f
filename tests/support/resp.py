"""A native door in this process, and a client that says exactly what a test wants said."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import hiredis

from taskqueue.broker.access import AccessSettings
from taskqueue.broker.broker import Broker, BrokerSettings
from taskqueue.core.clock import Clock, ManualClock
from taskqueue.doors.bounds import RespSettings
from taskqueue.doors.resp import RespDoor
from taskqueue.storage.port import Storage
from taskqueue.wire import resp
from tests.support.broker import a_broker
from tests.support.door import PATIENCE

Word = bytes | str | int


def words_of(*words: Word) -> bytes:
    """A command as a client sends it."""
    return resp.command(*(one if isinstance(one, bytes) else str(one).encode() for one in words))


def as_dict(flat: list[Any]) -> dict[str, Any]:
    """A map as RESP2 has it, with text keys."""
    return {key.decode(): value for key, value in zip(flat[::2], flat[1::2], strict=True)}


class RespClient:
    """One connection to a native door."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._parser = hiredis.Reader()

    def send(self, *words: Word) -> None:
        """Send a command and wait for nothing."""
        self.writer.write(words_of(*words))

    async def answer(self) -> Any:
        """The next answer; an error is returned, not raised."""
        async with asyncio.timeout(PATIENCE):
            while (answer := self._parser.gets()) is False:
                data = await self.reader.read(2**20)
                if not data:
                    raise EOFError("the door has hung up")
                self._parser.feed(data)
        return answer

    async def answers(self, number: int) -> list[Any]:
        """The next few answers."""
        return [await self.answer() for _ in range(number)]

    async def ask(self, *words: Word) -> Any:
        """Send a command; its answer."""
        self.send(*words)
        return await self.answer()

    async def rest(self) -> bytes:
        """All that still comes until the door hangs up."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()

    async def error(self, *words: Word) -> str:
        """Send a command that must fail; its error."""
        answer = await self.ask(*words)
        assert isinstance(answer, hiredis.ReplyError), answer
        return str(answer)

    async def submit(self, *options: Word, payload: Word = b"x", task_type: str = "work") -> str:
        """Submit a task; its id."""
        answer = await self.ask("TQ.SUBMIT", task_type, payload, *options)
        assert isinstance(answer, bytes), answer
        return answer.decode()

    async def claim(self, *options: Word, worker: str = "w1", task_type: str = "work") -> list[Any]:
        """Claim tasks; what came."""
        claimed = await self.ask("TQ.CLAIM", worker, *options, "TYPES", task_type)
        assert isinstance(claimed, list), claimed
        return claimed

    async def task(self, task_id: str) -> dict[str, Any]:
        """How a task stands."""
        return as_dict(await self.ask("TQ.GET", task_id))

    def hang_up(self) -> None:
        """Go away without a word."""
        self.writer.transport.abort()


class RespHouse:
    """A broker with a native door on a free port."""

    def __init__(self, broker: Broker, door: RespDoor, clients: AsyncExitStack) -> None:
        self.broker = broker
        self.door = door
        self._clients = clients

    @property
    def clock(self) -> ManualClock:
        """The broker's clock, to be moved."""
        assert isinstance(self.broker.clock, ManualClock)
        return self.broker.clock

    @property
    def connections(self) -> int:
        """Clients connected now."""
        return round(self.broker.metrics.connections["native"]())

    async def connect(self) -> RespClient:
        """A client more; it hangs up at the end."""
        client = RespClient(*await asyncio.open_connection("127.0.0.1", self.door.port))
        self._clients.callback(client.hang_up)
        return client

    async def raw(self, data: bytes) -> bytes:
        """Send bytes, hang up, and return all that comes back."""
        client = await self.connect()
        client.writer.write(data)
        client.writer.write_eof()
        return await client.rest()

    async def close(self) -> None:
        """End it in good order, as SIGTERM does."""
        await self.broker.close()
        await self.door.close()


@asynccontextmanager
async def a_resp_house(
    folder: Path,
    *,
    clock: Clock | None = None,
    storage: Storage | None = None,
    settings: RespSettings | None = None,
    broker_settings: BrokerSettings | None = None,
    access: AccessSettings | None = None,
) -> AsyncIterator[RespHouse]:
    """A broker with a native door, on SQLite in `folder` unless told otherwise."""
    async with (
        a_broker(
            folder, clock=clock, storage=storage, settings=broker_settings, access=access
        ) as broker,
        AsyncExitStack() as clients,
    ):
        door = RespDoor(broker, settings or RespSettings())
        await door.start("127.0.0.1", 0)
        house = RespHouse(broker, door, clients)
        try:
            yield house
        finally:
            await clients.aclose()
            await house.close()
