"""One connection to a broker: commands go out pipelined, answers come back in order."""

import asyncio
import socket
import ssl
from collections import deque
from functools import partial
from typing import Any, Final, cast

import hiredis

from taskqueue.client.address import BrokerAddress
from taskqueue.client.errors import remote_error
from taskqueue.wire import resp

CONNECT_SECONDS: Final = 5.0
"""For a connection to one broker, with TLS and the agreement on the protocol."""

SILENCE_SECONDS: Final = 30.0
"""A connection on which an answer is due and nothing has come for so long is given up; half of it
where another broker can be asked."""

UNACKNOWLEDGED_SECONDS: Final = 10
"""The same for bytes that the other machine has not even acknowledged: the way there is cut."""

_NOTHING_YET: Final = object()

_IN_WORDS: Final = {
    "WRONG_VERSION_NUMBER": "it does not speak TLS there; write tq:// instead of tqs://",
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "it wants a client certificate; name one with cert= and "
    "key= in the address, or TQ_CERT_FILE and TQ_KEY_FILE",
    "TLSV1_ALERT_UNKNOWN_CA": "it does not accept the client certificate",
}

_MENDED_BY_CA: Final = "name the file of the CA with ca= in the address, or TQ_CA_FILE"
_MENDED_BY: Final = {
    10: "it must be renewed at the broker",  # X509_V_ERR_CERT_HAS_EXPIRED
    62: "use a name that is in the certificate",  # X509_V_ERR_HOSTNAME_MISMATCH
    64: "use a name or address that is in the certificate",  # X509_V_ERR_IP_ADDRESS_MISMATCH
}

Answer = Any
"""What RESP3 can carry: bytes, int, float, bool, None, lists and dicts of them."""


class ConnectionLost(ConnectionError):
    """The connection ended before the answer came; what was asked may have been done."""


class Connection(asyncio.Protocol):
    """A connection that speaks RESP3. Make one with `connect`."""

    def __init__(self, address: BrokerAddress, has_others: bool = False) -> None:
        self.address = address
        self.is_open = False
        """Whether it takes commands."""
        self._loop = asyncio.get_running_loop()
        # Told apart from every answer: RESP3's `false` is one.
        self._reader = hiredis.Reader(notEnoughData=_NOTHING_YET)
        self._waiting: deque[asyncio.Future[Answer]] = deque()
        self._outgoing: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._has_room = asyncio.Event()
        self._is_retired = False
        self._patience = SILENCE_SECONDS / 2 if has_others else SILENCE_SECONDS
        self._heard_at = 0.0
        self._silence_timer: asyncio.TimerHandle | None = None

    @classmethod
    async def connect(cls, address: BrokerAddress, has_others: bool = False) -> "Connection":
        """Connect and agree on the protocol, to one of several brokers if it `has_others`.

        Raises OSError if that fails, and as what it is an error that the broker answers.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                return await cls._agreed(address, has_others)
        except TimeoutError as error:
            raise TimeoutError(f"it does not answer within {CONNECT_SECONDS:g} s") from error

    @classmethod
    async def _agreed(cls, address: BrokerAddress, has_others: bool) -> "Connection":
        loop = asyncio.get_running_loop()
        context = None if address.tls is None else address.tls.context()
        _, connection = await loop.create_connection(
            partial(cls, address, has_others), address.host, address.port, ssl=context
        )
        try:
            await connection.send(*greeting(address))
        except BaseException:
            connection.close()
            raise
        return connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        notice_cuts(transport.get_extra_info("socket"))
        self._has_room.set()
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        self._heard_at = self._loop.time()
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not _NOTHING_YET:
                self._settle(answer)
        except hiredis.ProtocolError as error:
            self._give_up(f"the answer is not RESP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self._give_up(f"the broker hung up: {in_words(exc) if exc else 'end of stream'}")

    def pause_writing(self) -> None:
        self._has_room.clear()

    def resume_writing(self) -> None:
        self._has_room.set()

    async def wait_for_room(self) -> None:
        """Wait while the broker takes bytes more slowly than they are sent."""
        await self._has_room.wait()

    def send(self, *words: bytes) -> asyncio.Future[Answer]:
        """Send a command; the future has its answer, or the error it was answered with.

        The commands of one turn of the loop leave in one write.
        """
        future: asyncio.Future[Answer] = self._loop.create_future()
        if not self.is_open:
            future.set_exception(ConnectionLost("the connection is closed"))
            future.exception()  # whoever asked may not come back for it
            return future
        if not self._waiting:
            self._heard_at = self._loop.time()
            if self._silence_timer is None:
                self._listen_for(self._patience)
        if not self._outgoing:
            self._loop.call_soon(self._flush)
        self._outgoing.append(resp.command(*words))
        self._waiting.append(future)
        return future

    def close(self) -> None:
        """Hang up; what is unanswered fails."""
        self._give_up("the connection is closed")

    def retire(self) -> None:
        """Take no more commands, and hang up once those sent have been answered."""
        if not self._waiting:
            self.close()
        self.is_open = False
        self._is_retired = True

    def send_no_more(self) -> None:
        """Tell the broker that no command follows: one that blocks is answered at once."""
        if self._transport is not None and self.is_open:
            self._flush()
            self.is_open = False
            if self._transport.can_write_eof():
                self._transport.write_eof()
            else:  # TLS ends both ways at once; what the broker answers then it takes back
                self._transport.close()

    def _flush(self) -> None:
        data = b"".join(self._outgoing)
        self._outgoing.clear()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _settle(self, answer: Answer) -> None:
        if not self._waiting:
            self._give_up(f"the broker hung up: {answer}")  # it says why before it does
            return
        future = self._waiting.popleft()
        if self._is_retired and not self._waiting:
            self.close()
        if future.done():
            return
        if isinstance(answer, hiredis.ReplyError):
            future.set_exception(remote_error(str(answer)))
            future.exception()  # whoever asked may have stopped waiting; nobody else need hear
        else:
            future.set_result(answer)

    def _listen_for(self, seconds: float) -> None:
        self._silence_timer = self._loop.call_later(seconds, self._check_silence)

    def _check_silence(self) -> None:
        self._silence_timer = None
        if not self._waiting:
            return
        left = self._heard_at + self._patience - self._loop.time()
        if left > 0:
            self._listen_for(left)
        else:
            self._give_up(f"the broker has been silent for {self._patience:g} s")

    def _give_up(self, why: str) -> None:
        self.is_open = False
        self._has_room.set()
        if self._silence_timer is not None:
            self._silence_timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_exception(ConnectionLost(why))
                future.exception()  # whoever still waits sees it; nobody else need hear of it


def greeting(address: BrokerAddress) -> list[bytes]:
    """The command that opens every connection."""
    hello = [b"HELLO", b"3"]
    return hello if address.key is None else [*hello, b"AUTH", b"default", address.key.encode()]


def in_words(error: Exception) -> str:
    """What is wrong with a connection, and what to do if it is the set-up of TLS."""
    if isinstance(error, ssl.SSLCertVerificationError):
        what_to_do = _MENDED_BY.get(error.verify_code, _MENDED_BY_CA)
        why = error.verify_message.rstrip(".")
        return f"its certificate cannot be trusted: {why}; {what_to_do}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return _IN_WORDS.get(error.reason) or error.reason.lower().replace("_", " ")
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def notice_cuts(connection: socket.socket) -> None:
    """Have the system find out that the other end cannot be reached any more."""
    for option, value in (
        ("TCP_NODELAY", 1),
        ("TCP_KEEPIDLE", UNACKNOWLEDGED_SECONDS),
        ("TCP_KEEPINTVL", 5),
        ("TCP_KEEPCNT", 3),
        ("TCP_USER_TIMEOUT", UNACKNOWLEDGED_SECONDS * 1000),
    ):
        if hasattr(socket, option):  # not every system has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
