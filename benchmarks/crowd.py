"""What a crowd of idle and of deliberately slow clients costs a healthy one."""

import asyncio
import contextlib
import resource
import statistics
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, Final

from benchmarks.brokers import MeasuredBroker
from benchmarks.clients import frame

IDLE: Final = 10_000
SLOW: Final = 200
PACE: Final = 100
"""Requests a second of the healthy client, over each of the two doors."""

Figures = dict[str, float]
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Ask = Callable[[Streams], Coroutine[Any, Any, None]]

_STATS: Final = b"GET /api/v1/stats HTTP/1.1\r\nHost: bench\r\n\r\n"
_TRICKLES: Final = (
    b"POST /api/v1/tasks HTTP/1.1\r\nHost: bench\r\nX-Slow: " + b"a" * 10_000,
    frame(b"TQ.SUBMIT", b"noop", b"x" * 10_000),
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00" * 10_000,
)


async def hold(broker: MeasuredBroker, seconds: float) -> Figures:
    """The p99 of a healthy client before and during 10,000 idle and 200 slow ones."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    before = await _healthy(broker, seconds)
    async with _crowd(broker):
        during = await _healthy(broker, seconds)
    return {
        **{f"p99 ms alone, {door}": ms for door, ms in before.items()},
        **{f"p99 ms among {IDLE + SLOW:,} others, {door}": ms for door, ms in during.items()},
        **{f"ratio, {door}": during[door] / before[door] for door in before},
    }


async def _healthy(broker: MeasuredBroker, seconds: float) -> Figures:
    native, rest = await asyncio.gather(
        _paced(broker.native, _submit_natively, seconds), _paced(broker.http, _ask_rest, seconds)
    )
    return {"native": native, "REST": rest}


async def _paced(address: str, ask: Ask, seconds: float) -> float:
    """The 99th percentile, in milliseconds, of requests at a steady pace."""
    host, _, port = address.rpartition(":")
    streams = await asyncio.open_connection(host, int(port))
    took: list[float] = []
    begun = time.perf_counter()
    for number in range(round(seconds * PACE)):
        await asyncio.sleep(max(0.0, begun + number / PACE - time.perf_counter()))
        sent = time.perf_counter()
        await ask(streams)
        took.append(time.perf_counter() - sent)
    streams[1].close()
    return statistics.quantiles(took, n=100)[98] * 1000


async def _submit_natively(streams: Streams) -> None:
    reader, writer = streams
    writer.write(frame(b"TQ.SUBMIT", b"noop", b"x" * 200))
    await reader.readline()
    await reader.readline()


async def _ask_rest(streams: Streams) -> None:
    reader, writer = streams
    writer.write(_STATS)
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)


@contextlib.asynccontextmanager
async def _crowd(broker: MeasuredBroker) -> AsyncIterator[None]:
    """Clients that have said something once and now say nothing, and those that never end."""
    writers: list[asyncio.StreamWriter] = []
    for start in range(0, IDLE, 500):
        some = await asyncio.gather(
            *(_idle(broker, number) for number in range(start, min(start + 500, IDLE)))
        )
        writers += some
    trickling = [asyncio.create_task(_trickle(broker, number)) for number in range(SLOW)]
    try:
        yield
    finally:
        for task in trickling:
            task.cancel()
        await asyncio.wait(trickling)
        for writer in writers:
            writer.transport.abort()


async def _idle(broker: MeasuredBroker, number: int) -> asyncio.StreamWriter:
    over_rest = number % 2 == 0
    host, _, port = (broker.http if over_rest else broker.native).rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(_STATS if over_rest else b"PING\r\n")
    await reader.read(1)
    return writer


async def _trickle(broker: MeasuredBroker, number: int) -> None:
    """Send a request byte by byte, for ever anew."""
    kind = number % len(_TRICKLES)
    address = (broker.http, broker.native, broker.grpc)[kind]
    host, _, port = address.rpartition(":")
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, int(port))
            try:
                for byte in _TRICKLES[kind]:
                    writer.write(bytes([byte]))
                    await writer.drain()
                    await asyncio.sleep(0.1)
            finally:
                writer.transport.abort()
        await asyncio.sleep(0.1)
