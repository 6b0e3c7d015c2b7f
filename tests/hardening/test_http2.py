"""HTTP/2 and gRPC as an attacker speaks them, frame by frame."""

import asyncio
import gzip
import random
from contextlib import suppress
from pathlib import Path

import grpc
import pytest

from taskqueue.doors.grpc import taskqueue_pb2 as pb
from tests.hardening import frames
from tests.hardening.attacker import all_of, answer_to
from tests.hardening.bystander import log_of, memory_of, unharmed
from tests.hardening.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    WINDOW,
    call,
    call_head,
    connected,
    frame,
    header,
    message,
    sent_all,
    setting,
)
from tests.support.broker import BrokerProcess, until_parked
from tests.support.grpc import OPTIONS, a_grpc_client
from tests.support.resp import words_of

MIB = 1024 * 1024
STATS = "/taskqueue.TaskQueue/GetStats"
SUBMIT = "/taskqueue.TaskQueue/SubmitTask"
HEAD = call_head(STATS)
CANCELLED = b"\x00\x00\x00\x08"
STREAMS = range(1, 40_001, 2)

REMEMBERED = b"\x40\x01x\x7f\xbd\x1d" + b"y" * 3_900
"""A header line that the other side keeps; b"\xbe" repeats it."""

FLOODS = {
    "headers and resets (CVE-2023-44487)": b"".join(
        frame(HEADERS, one, HEAD, END_HEADERS) + frame(RST_STREAM, one, CANCELLED)
        for one in STREAMS
    ),
    "whole calls and resets": b"".join(
        call(one, STATS) + frame(RST_STREAM, one, CANCELLED) for one in STREAMS
    ),
    "resets that the server has to make (CVE-2025-8671)": b"".join(
        frame(HEADERS, one, HEAD, END_HEADERS) + frame(WINDOW, one, bytes(4)) for one in STREAMS
    ),
    "messages that cannot be": b"".join(
        frame(HEADERS, one, HEAD, END_HEADERS) + frame(DATA, one, b"\x09" + bytes(4), END_STREAM)
        for one in STREAMS
    ),
    "streams beyond the limit": b"".join(frame(HEADERS, one, HEAD, END_HEADERS) for one in STREAMS),
    "endless continuation (CVE-2024-27316)": frame(HEADERS, 1, HEAD)
    + frame(CONTINUATION, 1, header("x-more", "y" * 16_000)) * 2_000,
    "empty continuation": frame(HEADERS, 1, HEAD) + frame(CONTINUATION, 1) * 200_000,
    "pings": frame(PING, 0, bytes(8)) * 100_000,
    "settings": setting(frames.INITIAL_WINDOW_SIZE, 65_535) * 100_000,
    "priorities": frame(PRIORITY, 1, bytes(5)) * 100_000,
    "empty data": frame(HEADERS, 1, HEAD, END_HEADERS) + frame(DATA, 1) * 200_000,
    "header lines repeated": frame(HEADERS, 1, HEAD + REMEMBERED + b"\xbe" * 8_000, END_HEADERS)
    + frame(DATA, 1, message(b""), END_STREAM),
    "a promise of 4 GiB": frame(HEADERS, 1, HEAD, END_HEADERS)
    + frame(DATA, 1, b"\x00\xff\xff\xff\xff"),
    "noise": random.Random(1).randbytes(MIB),
}


async def flood(address: str, data: bytes) -> None:
    """Send it all, reading what comes back, until either side has had enough."""
    reader, writer = await connected(address)
    reading = asyncio.ensure_future(all_of(reader))
    sending = asyncio.ensure_future(sent_all(writer, data))
    await asyncio.wait([reading, sending], return_when=asyncio.FIRST_COMPLETED)
    for part in (reading, sending):
        part.cancel()
    await asyncio.wait([reading, sending])
    writer.transport.abort()


@pytest.mark.parametrize("name", FLOODS)
async def test_a_flood_harms_nobody(broker: BrokerProcess, name: str) -> None:
    """B19: others are served meanwhile, and memory stays bounded."""
    before = memory_of(broker)
    async with unharmed(broker):
        await asyncio.gather(*(flood(broker.grpc, FLOODS[name]) for _ in range(2)))
        assert memory_of(broker) < before + 100 * MIB


@pytest.mark.parametrize("name", ["pings", "settings"])
async def test_answers_to_a_flood_that_nobody_reads_do_not_pile_up(
    broker: BrokerProcess, name: str
) -> None:
    """B19, B16: the broker stops reading, or ends the connection."""
    before = memory_of(broker)
    async with unharmed(broker):
        _reader, writer = await connected(broker.grpc)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        with suppress(TimeoutError):
            async with asyncio.timeout(0.5):
                await sent_all(writer, FLOODS[name] * 20)
        assert memory_of(broker) < before + 50 * MIB
        writer.transport.abort()


async def test_a_window_that_is_never_opened_keeps_nobody_waiting_but_its_client(
    broker: BrokerProcess,
) -> None:
    """B19: a hundred calls on each of ten connections whose answers may not be sent."""
    before = memory_of(broker)
    calls = b"".join(call(one, STATS) for one in range(1, 200, 2))
    async with unharmed(broker):
        attackers = [
            await connected(broker.grpc, setting(frames.INITIAL_WINDOW_SIZE, 0)) for _ in range(10)
        ]
        for _reader, writer in attackers:
            assert await sent_all(writer, calls)
        assert memory_of(broker) < before + 50 * MIB
        for _reader, writer in attackers:
            writer.transport.abort()


async def test_a_bomb_is_not_unpacked(broker: BrokerProcess) -> None:
    """B18: a third of a mebibyte that would become three hundred."""
    bomb = message(gzip.compress(bytes(300 * MIB)), is_compressed=True)
    head = call_head(SUBMIT, {"grpc-encoding": "gzip"})
    data = frame(HEADERS, 1, head, END_HEADERS)
    for start in range(0, len(bomb), 16_000):
        data += frame(DATA, 1, bomb[start : start + 16_000])
    before = memory_of(broker)
    async with unharmed(broker):
        await flood(broker.grpc, data + frame(DATA, 1, b"", END_STREAM))
        assert memory_of(broker) < before + 50 * MIB


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        ((("x-large", "y" * MIB),), "RESOURCE_EXHAUSTED"),
        (tuple((f"x-{n}", "y" * 100) for n in range(1_000)), "RESOURCE_EXHAUSTED"),
        ((("authorization", "y" * 15_000),), "OK"),
        ((("x-bad-bin", bytes(range(256))),), "OK"),
        ((("grpc-previous-rpc-attempts", "nonsense"),), "OK"),
        ((("x-forwarded-for", "nonsense, , 1.2.3.4.5"),), "OK"),
    ],
    ids=["a mebibyte", "a thousand", "a long key", "all bytes", "attempts", "addresses"],
)
async def test_metadata_is_taken_up_to_its_limit(
    broker: BrokerProcess, metadata: tuple[tuple[str, str | bytes], ...], code: str
) -> None:
    """B18."""
    async with unharmed(broker), grpc.aio.insecure_channel(broker.grpc, OPTIONS) as channel:
        stats = channel.unary_unary(
            STATS, pb.GetStatsRequest.SerializeToString, pb.GetStatsResponse.FromString
        )
        called = stats(pb.GetStatsRequest(), metadata=metadata)
        assert (await called.code()).name == code


@pytest.mark.parametrize(
    "lines",
    [
        {"x-bad-bin": "%%%not base64"},
        {"grpc-timeout": "1n"},
        {"grpc-timeout": "99999999999H"},
        {"grpc-timeout": "-1S"},
        {"grpc-timeout": "soon"},
        {"grpc-encoding": "brotli"},
        {"content-type": "text/plain"},
        {"x-nul": b"a\x00b"},
        {"x-lines": b"a\r\nb: c"},
        {"Upper": "x"},
        {":path": "/taskqueue.TaskQueue/../GetStats"},
        {":path": ""},
        {":path": "/" + "x" * 15_000},
        {":method": "GET"},
        {":scheme": "gopher"},
        {":unknown": "x"},
        {"connection": "close"},
        {"transfer-encoding": "chunked"},
        {"content-length": "5"},
    ],
    ids=str,
)
async def test_a_call_with_a_head_that_makes_no_sense_harms_nobody(
    broker: BrokerProcess, lines: dict[str, str | bytes]
) -> None:
    """B18: refused, answered or dropped; the next call is served."""
    head = frame(HEADERS, 1, call_head(STATS, lines), END_HEADERS)
    async with unharmed(broker):
        await asyncio.gather(
            *(flood(broker.grpc, head + frame(DATA, 1, message(b""), END_STREAM)) for _ in range(5))
        )
    assert "\r\nb: c" not in log_of(broker)


async def test_random_bytes_within_calls_harm_nobody(broker: BrokerProcess) -> None:
    """B18: whole calls in which a few bytes were changed, left out or put in."""
    chance = random.Random(3)
    request = pb.SubmitTaskRequest(task_type="mutation", payload=b"x" * 30, priority=7)
    whole = b"".join(call(one, SUBMIT, request.SerializeToString()) for one in (1, 3))

    def damaged() -> bytes:
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[place] = chance.randrange(256)
                case 1:
                    del data[place]
                case _:
                    data[place:place] = bytes([chance.randrange(256)])
        return bytes(data)

    async with unharmed(broker):
        for _ in range(10):
            await asyncio.gather(*(flood(broker.grpc, damaged()) for _ in range(50)))


@pytest.mark.parametrize("path", [b"/taskqueue.TaskQueue/\xf6", b"/\xff/GetStats", b"\x80"])
async def test_a_path_that_is_not_text_does_not_close_the_door(tmp_path: Path, path: bytes) -> None:
    """B18: a single call, for which nobody needs a key."""
    head = call_head(STATS, {":path": path})
    evil = frame(HEADERS, 1, head, END_HEADERS) + frame(DATA, 1, message(b""), END_STREAM)
    async with a_grpc_client(tmp_path) as client:
        address = f"127.0.0.1:{client.door.port}"
        for _ in range(3):
            await flood(address, evil)
            await until_parked()
        await client.submit()


@pytest.mark.parametrize(
    "stream",
    [
        words_of("TQ.SUBMIT", "smuggled", "x"),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.Random(2).randbytes(500),
    ],
    ids=["RESP", "HTTP/1.1", "TLS"],
)
async def test_other_protocols_on_the_grpc_port_end_the_connection(
    broker: BrokerProcess, stream: bytes
) -> None:
    """B17."""
    async with unharmed(broker):
        answer = await answer_to(broker.grpc, stream)
    assert b"200" not in answer
    assert len(answer) < 200
