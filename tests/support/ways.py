"""Several addresses of one broker, as brokers on one database have: each can fail on its own."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import hiredis

from tests.support.hole import Hole

UNAVAILABLE = b"-BROKER_UNAVAILABLE The database was lost; nothing was changed, try again\r\n"


class Way(Hole):
    """A way to the broker that can be shut and opened again, on the same port."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.is_without_database = False
        """Whether those who connect are told that nothing can be done now."""
        self.refused = 0
        self.carried = 0
        """How many connections there are now."""
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self.serve, "127.0.0.1", self.port)
        self.port = int(self._server.sockets[0].getsockname()[1])

    async def shut(self) -> None:
        """Refuse connections, and cut those there are."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection, or refuse all that is asked on it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.carried += 1
        try:
            # One may have come just before the server was closed.
            if self._server is not None:
                await (self._refuse if self.is_without_database else super().serve)(reader, writer)
        except (asyncio.CancelledError, OSError):
            pass  # asyncio's server would log it
        finally:
            writer.transport.abort()
            self._tasks.discard(task)
            self.carried -= 1

    async def _refuse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        commands = hiredis.Reader()
        while data := await reader.read(65_536):
            commands.feed(data)
            while command := commands.gets():
                is_greeting = command[0] == b"HELLO"
                self.refused += not is_greeting
                writer.write(b"%0\r\n" if is_greeting else UNAVAILABLE)


@asynccontextmanager
async def some_ways(port: int, count: int = 2) -> AsyncIterator[list[Way]]:
    """So many open ways to the broker on `port`."""
    async with AsyncExitStack() as stack:
        ways = [Way(port) for _ in range(count)]
        for way in ways:
            await way.open()
            stack.push_async_callback(way.shut)
        yield ways


def url_of(ways: list[Way]) -> str:
    """All of them in one address."""
    return ",".join(way.url for way in ways)


def used(ways: list[Way]) -> Way:
    """The only one that carries connections."""
    [one] = [way for way in ways if way.carried]
    return one
