"""Load generators as thin as Python allows, so that what is measured is the broker."""

import asyncio
import time
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


class Submitter(asyncio.Protocol):
    """Keeps `window` submits under way on one native connection until told to stop."""

    def __init__(self, command: bytes, window: int) -> None:
        self.done = 0
        self.failure: bytes | None = None
        self.at_rest: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._command = command
        self._window = window
        self._received = 0
        self._under_way = 0
        self._left = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def begin(self, number: int) -> None:
        """Send `number` submits in all."""
        self._left = number
        self._send(min(self._window, number))

    def stop(self) -> None:
        """Send no more; `at_rest` is done once the last answer is here."""
        self._left = 0
        self._rest()

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"-"):
            self.failure = data
            self._left = self._under_way = 0
        else:
            self._received += len(data)
            answered, self._received = divmod(self._received, SUBMIT_REPLY)
            self.done += answered
            self._under_way -= answered
            self._send(min(answered, self._left))
        self._rest()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.at_rest.done():
            self.at_rest.set_exception(exc or ConnectionError("the broker hung up"))

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def _send(self, number: int) -> None:
        if number > 0 and self._transport is not None:
            self._left -= number
            self._under_way += number
            self._transport.write(self._command * number)

    def _rest(self) -> None:
        if not self._under_way and not self._left and not self.at_rest.done():
            self.at_rest.set_result(None)


class Poster(asyncio.Protocol):
    """Sends one REST submit at a time on one keep-alive connection until told to stop."""

    def __init__(self, request: bytes) -> None:
        self.done = 0
        self.failure: bytes | None = None
        self.at_rest: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._buffer = b""
        self._left = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def begin(self, number: int) -> None:
        """Send `number` requests in all."""
        self._left = number
        self._send()

    def stop(self) -> None:
        """Send no more after the present one."""
        self._left = 0

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
            self._left = 0
        self.done += 1
        self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.at_rest.done():
            self.at_rest.set_exception(exc or ConnectionError("the broker hung up"))

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.close()

    def _send(self) -> None:
        if self._left > 0 and self._transport is not None:
            self._left -= 1
            self._transport.write(self._request)
        elif not self.at_rest.done():
            self.at_rest.set_result(None)


async def drive(
    address: str,
    make: Callable[[], Submitter | Poster],
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
        client.close()
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
