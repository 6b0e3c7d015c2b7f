"""A way to PostgreSQL on which a test decides what becomes of a statement, and of its answer.

A trap waits for one statement of one connection: what it does is done before the statement goes to
the server, or before its answer goes back.
"""

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final
from urllib.parse import urlsplit, urlunsplit

Act = Callable[["Link"], Awaitable[None]]

COMMITS: Final = "taskqueue commits"
"""What the connection is called on which a broker commits."""

CANCEL_CODE: Final = 80_877_102
ENCRYPTION_CODES: Final = (80_877_103, 80_877_104)


class Link:
    """One connection from a client to the server."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self.purpose = ""
        """The `application_name` that the client gave."""
        self.is_silent = False
        """Whether bytes vanish on the way, in both directions, for good."""
        self.awaited: Trap | None = None
        """The trap whose statement the server has not answered yet."""
        self._ends = (client, server)
        self._statements: dict[bytes, bytes] = {}

    def cut(self) -> None:
        """Reset the connection at both ends."""
        for end in self._ends:
            end.transport.abort()

    def statement_in(self, kind: bytes, body: bytes) -> bytes:
        """The statement that a message asks the server to carry out; empty for other messages."""
        if kind == b"Q":
            return body
        if kind == b"P":
            name, text, _ = body.split(b"\0", 2)
            self._statements[name] = text
        elif kind == b"B":
            _, name, _ = body.split(b"\0", 2)
            return self._statements.get(name, b"")
        return b""


class Trap:
    """What is to happen to the first statement that contains `word` on a connection `purpose`."""

    def __init__(self, word: bytes, purpose: str, asked: Act | None, answered: Act | None) -> None:
        self.word = word
        self.purpose = purpose
        self.asked = asked
        self.answered = answered
        self.sprung = asyncio.Event()
        """Set once the statement has come and what was to be done before it is done."""
        self.was_answered = asyncio.Event()
        """Set once the server has answered it, and what was to be done then is done."""


class PgProxy:
    """Carries connections to the server on a port of loopback."""

    def __init__(self, server_port: int) -> None:
        self.port = 0
        self.cancels = 0
        """How many times a client asked the server to cancel a statement."""
        self.links: list[Link] = []
        """Those that are up."""
        self.flows = asyncio.Event()
        """While it is not set, bytes wait on their way, and connections are not made."""
        self.flows.set()
        self.refuses = False
        """Whether new connections are reset at once."""
        self._server_port = server_port
        self._traps: list[Trap] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def dsn(self, direct: str) -> str:
        """The address of a database by way of here."""
        parts = urlsplit(direct)
        place = f"{parts.username}@127.0.0.1:{self.port}"
        return urlunsplit(parts._replace(netloc=place))

    def trap(
        self,
        word: str,
        *,
        asked: Act | None = None,
        answered: Act | None = None,
        purpose: str = COMMITS,
    ) -> Trap:
        """Set a trap; it works once."""
        trap = Trap(word.encode(), purpose, asked, answered)
        self._traps.append(trap)
        return trap

    def cut_all(self) -> None:
        """Reset every connection that is up."""
        for link in list(self.links):
            link.cut()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection until either end has closed it."""
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self.flows.wait()
            if self.refuses:
                raise ConnectionRefusedError
            there, back = await asyncio.open_connection("127.0.0.1", self._server_port)
        except (OSError, asyncio.CancelledError):
            writer.transport.abort()
            self._tasks.discard(task)
            return
        link = Link(writer, back)
        self.links.append(link)
        ways = [
            asyncio.create_task(self._requests(link, reader, back)),
            asyncio.create_task(self._answers(link, there, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # asyncio's server would log it
        finally:
            for way in ways:
                way.cancel()
            link.cut()
            self.links.remove(link)
            self._tasks.discard(task)

    async def close(self) -> None:
        """Cut what is left."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _requests(
        self, link: Link, reader: asyncio.StreamReader, server: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            await self._greet(link, reader, server)
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
                trap = self._sprung_by(link, link.statement_in(head[:1], body))
                if trap is not None:
                    if trap.asked is not None:
                        await trap.asked(link)
                    link.awaited = trap
                    trap.sprung.set()
                await self.flows.wait()
                if not link.is_silent:
                    server.write(head + body)

    async def _greet(
        self, link: Link, reader: asyncio.StreamReader, server: asyncio.StreamWriter
    ) -> None:
        code, body = ENCRYPTION_CODES[0], b""
        while code in ENCRYPTION_CODES:
            head = await reader.readexactly(8)
            length, code = struct.unpack("!II", head)
            body = await reader.readexactly(length - 8)
            server.write(head + body)
        if code == CANCEL_CODE:
            self.cancels += 1
        words = body.split(b"\0")
        if b"application_name" in words:
            link.purpose = words[words.index(b"application_name") + 1].decode()

    async def _answers(
        self, link: Link, reader: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        with suppress(OSError):
            while data := await reader.read(65_536):
                trap, link.awaited = link.awaited, None
                if trap is not None:
                    if trap.answered is not None:
                        await trap.answered(link)
                    trap.was_answered.set()
                await self.flows.wait()
                if not link.is_silent:
                    client.write(data)

    def _sprung_by(self, link: Link, statement: bytes) -> Trap | None:
        for trap in self._traps:
            if statement and trap.purpose == link.purpose and trap.word in statement:
                self._traps.remove(trap)
                return trap
        return None


async def cut(link: Link) -> None:
    """Reset the connection."""
    link.cut()
    link.is_silent = True


async def pass_by(_link: Link) -> None:
    """Do nothing."""


async def silence(link: Link) -> None:
    """Let no more bytes through; neither end is told."""
    link.is_silent = True


@asynccontextmanager
async def a_pg_proxy(server_port: int) -> AsyncIterator[PgProxy]:
    """A way to the server on `server_port`."""
    proxy = PgProxy(server_port)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    proxy.port = int(server.sockets[0].getsockname()[1])
    try:
        yield proxy
    finally:
        server.close()
        await proxy.close()
