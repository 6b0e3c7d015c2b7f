"""HTTP itself: requests without clear framing, without end, without measure, and slow ones."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from taskqueue.core.clock import ManualClock
from taskqueue.doors.http import RestSettings
from tests.support.broker import until_parked
from tests.support.rest import TASKS, RestClient, a_rest_client, parsed

HEALTH = b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n"
SUBMIT = f"POST {TASKS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
BODY = b'{"task_type": "work", "payload": ""}'
LAST = HEALTH + b"Connection: close\r\n\r\n"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[RestClient]:
    async with a_rest_client(tmp_path / "data", clock=ManualClock()) as client:
        yield client


@pytest.mark.parametrize(
    "request_bytes",
    [
        SUBMIT + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        SUBMIT + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        SUBMIT + b"Content-Length: +5\r\n\r\nhello",
        SUBMIT + b"Content-Length: -5\r\n\r\n",
        SUBMIT + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        SUBMIT + b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n",
        SUBMIT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /api/v1/health HTTP/1.1\nHost: x\n\n",
        HEALTH + b"X-A: b\r\n folded\r\n\r\n",
        HEALTH + b"X-A: b\x00c\r\n\r\n",
        HEALTH + b"X-A: b\rc\r\n\r\n",
        HEALTH + b"X-A : b\r\n\r\n",
        HEALTH + b"Host: y\r\n\r\n",
        b"GET /api/v1/health HTTP/1.1\r\n\r\n",
        b"GET /\xc3\xbc HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"x" * 200,
    ],
)
async def test_doubtful_framing_is_refused_and_ends_the_connection(
    client: RestClient, request_bytes: bytes
) -> None:
    answer = await client.raw(request_bytes + LAST)
    reply = parsed(answer)
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert reply.headers["connection"] == "close"
    assert answer.count(b"HTTP/1.1 ") == 1
    assert await client.broker.counts() == []


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (HEALTH + b"".join(b"X-%d: a\r\n" % n for n in range(100)) + b"\r\n", 431),
        (HEALTH + b"".join(b"X-%d: a\r\n" % n for n in range(100_000)) + b"\r\n", 431),
        (HEALTH + b"".join(b"X-%d: %s\r\n" % (n, b"a" * 4096) for n in range(9)) + b"\r\n", 431),
        (HEALTH + b"X: " + b"a" * 2**20 + b"\r\n\r\n", 431),
        (HEALTH + b"X: " + b"a" * 2**20, 431),
        (HEALTH + b"x" * 2**20, 431),
        (SUBMIT + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"y" * 2**20, 431),
        (b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET /" + b"a" * 2**20, 414),
    ],
)
async def test_what_grows_without_measure_is_cut(
    client: RestClient, request_bytes: bytes, status: int
) -> None:
    reply = parsed(await client.raw(request_bytes))
    assert (reply.status, reply.json["code"]) == (status, "INVALID_REQUEST")


async def test_large_but_measured_heads_are_taken(client: RestClient) -> None:
    headers = b"".join(b"X-%d: %s\r\n" % (n, b"a" * 300) for n in range(98))
    assert parsed(await client.raw(HEALTH + headers + b"Connection: close\r\n\r\n")).status == 200
    query = "task_type=" + "%61" * 255
    assert (await client.ask("GET", f"{TASKS}?{query}")).status == 200


async def test_trailers_do_not_pass_for_headers(client: RestClient) -> None:
    body = b"%x\r\n%s\r\n0\r\nContent-Type: text/plain\r\n\r\n" % (len(BODY), BODY)
    answer = await client.raw(SUBMIT + b"Transfer-Encoding: chunked\r\n\r\n" + body + LAST)
    assert answer.startswith(b"HTTP/1.1 201 ")


async def test_requests_may_be_sent_ahead_and_are_answered_in_order(client: RestClient) -> None:
    submit = SUBMIT + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    absent = HEALTH.replace(b"/api/v1/health", b"/none") + b"\r\n"
    answer = await client.raw((submit + absent) * 300 + LAST)
    statuses = [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"201", b"404"] * 300 + [b"200"]


async def test_a_flood_of_requests_sent_ahead_is_served(client: RestClient) -> None:
    answer = await client.raw((HEALTH + b"\r\n") * 10_000 + LAST)
    assert answer.count(b"HTTP/1.1 200 ") == 10_001


async def test_what_was_asked_before_a_broken_request_is_still_answered(
    client: RestClient,
) -> None:
    submit = SUBMIT + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    for broken in (b"BROKEN\x00\r\n\r\n", SUBMIT + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"):
        answer = await client.raw(submit * 3 + broken + LAST)
        assert answer.count(b"HTTP/1.1 201 ") == 3
        assert b"HTTP/1.1 200 " not in answer


async def test_nothing_is_read_after_a_request_that_ends_the_connection(
    client: RestClient,
) -> None:
    submit = SUBMIT + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
    answer = await client.raw(LAST + submit)
    assert answer.count(b"HTTP/1.1 ") == 1
    await until_parked()
    assert await client.broker.counts() == []


@pytest.mark.parametrize("offer", [b"h2c", b"websocket"])
async def test_an_offer_to_change_the_protocol_is_passed_over(
    client: RestClient, offer: bytes
) -> None:
    head = SUBMIT + b"Connection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n"
    submit = head + b"Upgrade: %s\r\nContent-Length: %d\r\n\r\n%s" % (offer, len(BODY), BODY)
    for size in (1, 7, len(submit)):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.door.port)
        for start in range(0, len(submit), size):
            writer.write(submit[start : start + size])
            await writer.drain()
        writer.write(LAST)
        answer = await asyncio.wait_for(reader.read(), 10)
        assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"201", b"200"]
        writer.close()


async def test_http_1_0_is_spoken(client: RestClient) -> None:
    reply = parsed(await client.raw(b"GET /api/v1/health HTTP/1.0\r\n\r\n"))
    assert (reply.status, reply.headers["connection"]) == (200, "close")


async def test_the_answer_reaches_a_client_that_goes_on_sending(client: RestClient) -> None:
    head = SUBMIT + b"Content-Length: 99999999\r\n\r\n"
    reply = parsed(await client.raw(head + b"x" * 8_000_000))
    assert reply.status == 413


async def test_a_client_that_goes_away_in_mid_request_leaves_nothing_behind(
    client: RestClient,
) -> None:
    tasks_before = len(asyncio.all_tasks())
    _reader, writer = await asyncio.open_connection("127.0.0.1", client.door.port)
    writer.write(SUBMIT + b"Content-Length: 100\r\n\r\n" + BODY)
    await until_parked()
    writer.transport.abort()
    await until_parked()
    assert len(asyncio.all_tasks()) == tasks_before
    assert client.broker.metrics.connections["rest"]() == 0
    assert await client.broker.counts() == []


async def test_a_request_that_does_not_arrive_in_time_is_cut_off(tmp_path: Path) -> None:
    beginnings = [
        b"GET /api",
        HEALTH,
        b"\r\n" + HEALTH,
        SUBMIT + b"Content-Length: 100\r\n\r\n" + BODY,
    ]
    hasty = RestSettings(receive_seconds=0.5)
    async with a_rest_client(tmp_path / "data", settings=hasty) as client:
        answers = await asyncio.gather(*map(client.raw, beginnings))
        silences = await asyncio.gather(client.raw(b""), client.raw(b"\r\n"))
    for answer in answers:
        reply = parsed(answer)
        assert (reply.status, reply.json["code"]) == (408, "INVALID_REQUEST")
    assert list(silences) == [b"", b""]


async def test_a_drip_does_not_put_the_deadline_off(tmp_path: Path) -> None:
    hasty = RestSettings(receive_seconds=0.5)
    async with a_rest_client(tmp_path / "data", settings=hasty) as client:
        reader, writer = await asyncio.open_connection("127.0.0.1", client.door.port)
        answer = asyncio.ensure_future(reader.read())
        writer.write(HEALTH)
        dripped = 0
        while not answer.done():
            writer.write(b"X: y\r\n")
            dripped += 1
            await asyncio.wait([answer], timeout=0.05)
        assert (await answer).startswith(b"HTTP/1.1 408 ")
        assert 1 < dripped < 90, "it was cut off by its time, not by the number of its headers"
        writer.close()


async def test_an_idle_connection_is_closed_after_its_time(tmp_path: Path) -> None:
    hasty = RestSettings(keep_alive_seconds=0)
    async with a_rest_client(tmp_path / "data", settings=hasty) as client:
        answer = await client.raw(HEALTH + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")


async def test_a_long_wait_is_not_cut_off_by_any_deadline(tmp_path: Path) -> None:
    hasty = RestSettings(receive_seconds=0.5, answer_seconds=0.5, keep_alive_seconds=0)
    async with a_rest_client(tmp_path / "data", settings=hasty) as client:
        task_id = await client.submit()
        assert (await client.ask("GET", f"{TASKS}/{task_id}?wait=0.7")).status == 200


async def test_more_connections_than_allowed_are_turned_away(tmp_path: Path) -> None:
    small = RestSettings(max_connections=1)
    async with a_rest_client(tmp_path / "data", settings=small) as client:
        _reader, writer = await asyncio.open_connection("127.0.0.1", client.door.port)
        await until_parked(5)
        reply = parsed(await client.raw(LAST))
        assert (reply.status, reply.json["code"]) == (503, "BROKER_UNAVAILABLE")
        assert reply.headers["retry-after"] == "1"
        writer.close()
        await until_parked(5)
        assert parsed(await client.raw(LAST)).status == 200


async def test_a_client_that_does_not_read_is_cut_off(tmp_path: Path) -> None:
    hasty = RestSettings(receive_seconds=0.5)
    async with a_rest_client(tmp_path / "data", settings=hasty) as client:
        _reader, writer = await asyncio.open_connection("127.0.0.1", client.door.port, limit=1)
        writer.write(b"GET /docs HTTP/1.1\r\nHost: x\r\n\r\n" * 3_000)
        while client.broker.metrics.connections["rest"]():  # noqa: ASYNC110  nothing to wait for
            await asyncio.sleep(0.05)
        writer.transport.abort()


async def test_a_taken_port_is_an_error_of_the_caller(client: RestClient, tmp_path: Path) -> None:
    other = type(client.door)(client.broker, RestSettings())
    with pytest.raises(OSError, match="in use"):
        await other.start("127.0.0.1", client.door.port)
    await other.close()
