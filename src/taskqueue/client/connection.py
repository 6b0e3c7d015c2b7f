"""One connection to a broker: commands go out pipelined, answers come back in order."""

import asyncio
from collections import deque
from typing import Any, Final, cast

import hiredis

from taskqueue.client.address import BrokerAddress
from taskqueue.client.errors import remote_error
from taskqueue.wire import resp

CONNECT_SECONDS: Final = 10.0

Answer = Any
"""What RESP3 can carry: bytes, int, float, bool, None, lists and dicts of them."""


class ConnectionLost(ConnectionError):
    """The connection ended before the answer came; what was asked may have been done."""


class Connection(asyncio.Protocol):
    """A connection that speaks RESP3. Make one with `connect`."""

    def __init__(self) -> None:
        self.is_open = False
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Answer]] = deque()
        self._outgoing: list[bytes] = []
        self._transport: asyncio.Transport | None = None

    @classmethod
    async def connect(cls, address: BrokerAddress) -> "Connection":
        """Connect and agree on the protocol. Raises OSError if that fails."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_SECONDS):
            _, connection = await loop.create_connection(cls, address.host, address.port)
            try:
                hello = [b"HELLO", b"3"]
                if address.key is not None:
                    hello += [b"AUTH", b"default", address.key.encode()]
                await connection.send(*hello)
            except BaseException:
                connection.close()
                raise
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not False:
                self._settle(answer)
        except hiredis.ProtocolError as error:
            self._fail(ConnectionLost(f"the answer is not RESP: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        self._fail(ConnectionLost(f"the broker hung up: {exc or 'end of stream'}"))

    def send(self, *words: bytes) -> asyncio.Future[Answer]:
        """Send a command; the future has its answer, or the error it was answered with.

        The commands of one turn of the loop leave in one write.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()
        if not self.is_open:
            future.set_exception(ConnectionLost("the connection is closed"))
            return future
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(resp.command(*words))
        self._waiting.append(future)
        return future

    def close(self) -> None:
        """Hang up; what is unanswered fails."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def _flush(self) -> None:
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        if self._transport is not None and self.is_open:
            self._transport.write(data)

    def _settle(self, answer: Answer) -> None:
        future = self._waiting.popleft()
        if future.done():
            return
        if isinstance(answer, hiredis.ReplyError):
            future.set_exception(remote_error(str(answer)))
            future.exception()  # whoever asked may have stopped waiting; nobody else need hear
        else:
            future.set_result(answer)

    def _fail(self, error: Exception) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(error)
                future.exception()  # whoever still waits sees it; nobody else need hear of it
