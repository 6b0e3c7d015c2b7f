"""A way to a broker on which bytes can begin to vanish without either end being told."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Hole:
    """Passes bytes on, until told to swallow them; connections stay up all the while.

    Once bytes of a connection have vanished, no more come through it: TCP leaves no gaps.
    """

    def __init__(self, port: int) -> None:
        self.port = 0
        self.swallows_requests = False
        self.swallows_answers = False
        self.connections = 0
        self.held = 0
        """How many times answers have been held up since `hold_answers`."""
        self._may_answer = asyncio.Event()
        self._may_answer.set()
        self._broker_port = port
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def swallow(self) -> None:
        """Let nothing through any more."""
        self.swallows_requests = self.swallows_answers = True

    def heal(self) -> None:
        """Let everything through again that has no gap."""
        self.swallows_requests = self.swallows_answers = False

    def hold_answers(self) -> None:
        """Keep answers back until `let_go`."""
        self.held = 0
        self._may_answer.clear()

    def let_go(self) -> None:
        """Let answers through that were kept back."""
        self._may_answer.set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until both ends have closed it, or the broker has."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        there, back = await asyncio.open_connection("127.0.0.1", self._broker_port)
        ways = [
            asyncio.create_task(self._pass_on(reader, back, "swallows_requests")),
            asyncio.create_task(self._pass_on(there, writer, "swallows_answers")),
        ]
        try:
            await asyncio.wait([ways[1]])
        except asyncio.CancelledError:
            pass  # asyncio's server would log it
        finally:
            for way in ways:
                way.cancel()
            writer.transport.abort()
            back.transport.abort()
            self._tasks.discard(task)

    async def close(self) -> None:
        """Cut what is left."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, switch: str
    ) -> None:
        with suppress(OSError):
            is_cut = False
            while data := await reader.read(65_536):
                is_cut = is_cut or getattr(self, switch)
                if switch == "swallows_answers" and not self._may_answer.is_set():
                    self.held += 1
                    await self._may_answer.wait()
                if not is_cut:
                    writer.write(data)
        with suppress(OSError):
            writer.write_eof()


@asynccontextmanager
async def a_hole(port: int) -> AsyncIterator[Hole]:
    """A way to the broker on `port`."""
    hole = Hole(port)
    server = await asyncio.start_server(hole.serve, "127.0.0.1", 0)
    hole.port = int(server.sockets[0].getsockname()[1])
    try:
        yield hole
    finally:
        server.close()
        await hole.close()
