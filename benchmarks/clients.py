"""Load generators as thin as Python allows, so that what is measured is the broker."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, cast

SUBMIT_REPLY = 43
"""Bytes of a submit's answer: `$36`, the id, two line ends."""


class Rate(NamedTuple):
    """How many were done in how many seconds."""

    done: int
    seconds: float

    @property
    def per_second(self) -> float:
        """The rate."""
        return self.done / self.seconds


def frame(*words: bytes) -> bytes:
    """A native command as it travels."""
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
    return b"".join(parts)


class Load(asyncio.Protocol, ABC):
    """One connection that makes requests until told to stop."""

    def __init__(self) -> None:
        self.done = 0
        self.failure: bytes | None = None
        self.at_rest: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done once the last answer is here."""
        self.left = 0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.at_rest.done():
            self.at_rest.set_exception(exc or ConnectionError("the broker hung up"))

    @abstractmethod
    def begin(self, number: int) -> None:
        """Make `number` requests in all."""

    def stop(self) -> None:
        """Begin no more of them."""
        self.left = 0

    def rest(self) -> None:
        """The last answer is here."""
        if not self.at_rest.done():
            self.at_rest.set_result(None)


class Submitter(Load):
    """Keeps `window` native submits under way."""

    def __init__(self, command: bytes, window: int) -> None:
        super().__init__()
        self._command = command
        self._window = window
        self._received = 0
        self._under_way = 0

    def begin(self, number: int) -> None:
        self.left = number
        self._send(min(self._window, number))

    def stop(self) -> None:
        super().stop()
        if not self._under_way:
            self.rest()

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"-"):
            self.failure = data
            self.left = self._under_way = 0
        else:
            self._received += len(data)
            answered, self._received = divmod(self._received, SUBMIT_REPLY)
            self.done += answered
            self._under_way -= answered
            self._send(min(answered, self.left))
        if not self._under_way and not self.left:
            self.rest()

    def _send(self, number: int) -> None:
        if number > 0:
            self.left -= number
            self._under_way += number
            self.transport.write(self._command * number)


class Poster(Load):
    """Makes one REST submit at a time."""

    def __init__(self, request: bytes) -> None:
        super().__init__()
        self._request = request
        self._buffer = b""

    def begin(self, number: int) -> None:
        self.left = number
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, separator, body = self._buffer.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._buffer = b""
        if not head.startswith(b"HTTP/1.1 201"):
            self.failure = head + body
            self.left = 0
        self.done += 1
        self._send()

    def _send(self) -> None:
        if self.left > 0:
            self.left -= 1
            self.transport.write(self._request)
        else:
            self.rest()


async def drive(
    address: str,
    make: Callable[[], Load],
    *,
    connections: int,
    number: int,
    seconds: float,
) -> Rate:
    """Load `address` over `connections` until `number` are done or `seconds` are over."""
    host, _, port = address.rpartition(":")
    loop = asyncio.get_running_loop()
    clients = [(await loop.create_connection(make, host, int(port)))[1] for _ in range(connections)]
    started = time.perf_counter()
    for index, client in enumerate(clients):
        client.begin(number // connections + (index < number % connections))
    await asyncio.wait([client.at_rest for client in clients], timeout=seconds)
    for client in clients:
        client.stop()
    await asyncio.gather(*(client.at_rest for client in clients))
    elapsed = time.perf_counter() - started
    for client in clients:
        client.transport.close()
        if client.failure:
            raise RuntimeError(client.failure.decode(errors="replace"))
    return Rate(sum(client.done for client in clients), elapsed)


async def submit_natively(
    address: str, command: bytes, *, connections: int, window: int, number: int, seconds: float
) -> Rate:
    """Submits over the native door, `window` under way on each connection."""
    return await drive(
        address,
        lambda: Submitter(command, window),
        connections=connections,
        number=number,
        seconds=seconds,
    )


async def submit_over_rest(
    address: str, body: bytes, *, connections: int, number: int, seconds: float
) -> Rate:
    """Submits over REST, one under way on each connection."""
    request = (
        b"POST /api/v1/tasks HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    )
    return await drive(
        address, lambda: Poster(request), connections=connections, number=number, seconds=seconds
    )
