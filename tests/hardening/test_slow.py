"""Clients that are slow on purpose: to send, to read, to leave."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from taskqueue.doors import bounds
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.wire import messages as m
from taskqueue.wire.messages import LARGEST_PAYLOAD
from tests.hardening.attacker import Streams, a_native_client, all_of, answer_to, open_streams
from tests.hardening.bystander import log_of, memory_of, unharmed
from tests.hardening.frames import INITIAL_WINDOW_SIZE, call, connected, sent_all, setting
from tests.support.broker import BrokerProcess, a_broker_process, claimed
from tests.support.door import PATIENCE, until
from tests.support.grpc import a_channel
from tests.support.resp import words_of
from tests.support.rest import TASKS, a_rest_client, parsed

MIB = 1024 * 1024
GET = "/taskqueue.TaskQueue/GetTaskStatus"
HEALTH = b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
BODY = b'{"task_type": "slow", "payload": "eA=="}'
SUBMIT = (
    f"POST {TASKS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    f"Connection: close\r\nContent-Length: {len(BODY)}\r\n\r\n"
).encode() + BODY


async def a_large_result(broker: BrokerProcess) -> str:
    """The id of a task with the largest result there is."""
    async with a_native_client(broker.native) as client:
        task_id = await client.submit(task_type="large")
        [task] = await client.claim(task_type="large")
        result = b"r" * LARGEST_PAYLOAD
        assert await client.ask("TQ.COMPLETE", task_id, task[1], "RESULT", result) == b"completed"
    return task_id


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BrokerProcess]:
    """A broker that waits for readers longer than it takes them to ask for all its memory."""
    monkeypatch.setenv("TQ_HTTP_RECEIVE_SECONDS", "6")
    with a_broker_process(tmp_path / "data", "--rate-limit", "0") as process:
        yield process


async def test_answers_that_nobody_reads_take_bounded_memory(patient: BrokerProcess) -> None:
    """B16, F38: a hundred clients that ask for the largest answers and do not read them."""
    broker = patient
    task_id = await a_large_result(broker)
    request = f"GET {TASKS}/{task_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    before = highest = memory_of(broker)
    logged = len(log_of(broker))
    async with unharmed(broker):
        attackers = [await open_streams(broker.http, receive_buffer=4_096) for _ in range(100)]
        for _reader, writer in attackers:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(request * 3)

        def are_cut_off() -> bool:
            nonlocal highest
            highest = max(highest, memory_of(broker))
            return log_of(broker)[logged:].count("a client is dropped") == len(attackers)

        await until(are_cut_off)
        for _reader, writer in attackers:
            writer.transport.abort()
    # Together they ask for four gigabytes, and for more than one with their first requests.
    assert highest < before + 1_000 * MIB
    assert "all clients leave " in log_of(broker)


async def test_grpc_answers_that_nobody_reads_take_bounded_memory(broker: BrokerProcess) -> None:
    """B16, F38: one client that asks for a gigabyte of answers and has room for none."""
    request = pb.GetTaskStatusRequest(task_id=await a_large_result(broker)).SerializeToString()
    before = memory_of(broker)
    async with unharmed(broker), a_channel(int(broker.grpc.rpartition(":")[2])) as channel:
        get = channel.unary_unary(GET, None, None)
        _reader, writer = await connected(broker.grpc, setting(INITIAL_WINDOW_SIZE, 0))
        await sent_all(writer, b"".join(call(2 * n + 1, GET, request) for n in range(100)))
        refused = await outcomes(get, request, until_it_is=grpc.StatusCode.UNAVAILABLE)
        assert "unread" in str(refused)
        assert memory_of(broker) < before + 3 * bounds.LARGEST_BACKLOG_OF_ALL
        writer.transport.abort()
        answer = await outcomes(get, request, until_it_is=grpc.StatusCode.OK)
    assert len(pb.GetTaskStatusResponse.FromString(answer).result) == LARGEST_PAYLOAD


async def outcomes(get: Any, request: bytes, *, until_it_is: grpc.StatusCode) -> Any:
    """Call again until this is how it ends; what came of it then: an answer or an error."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                answer = await get(request)
            except grpc.aio.AioRpcError as error:
                answer = error
            code = answer.code() if isinstance(answer, grpc.RpcError) else grpc.StatusCode.OK
            if code is until_it_is:
                return answer
            await asyncio.sleep(0.01)


async def test_when_all_leave_too_much_unread_the_one_with_the_most_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B16: and the others get their answers, however slowly they read."""
    monkeypatch.setattr(bounds, "LARGEST_BACKLOG_OF_ALL", 10 * MIB)
    async with a_rest_client(tmp_path) as client:

        async def asks_and_does_not_read(size: int) -> Streams:
            task_id = await client.submit()
            [task] = await claimed(client.broker)
            word = m.CompleteRequest(task_id=task_id, token=task.task.token, result=b"r" * size)
            await client.broker.complete(word)
            address = f"127.0.0.1:{client.door.port}"
            reader, writer = await open_streams(address, receive_buffer=65_536)
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(f"GET {TASKS}/{task_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            return reader, writer

        with capture_logs() as lines:
            small, writer = await asks_and_does_not_read(4 * MIB)
            large, other = await asks_and_does_not_read(10 * MIB)
            await until(lambda: bool(lines))
        assert [line["event"] for line in lines] == ["a client is dropped"]
        assert "all clients leave " in lines[0]["reason"]
        for one in (writer, other):
            one.transport.resume_reading()  # type: ignore[attr-defined]
        with pytest.raises((ConnectionError, EOFError)):
            await large.readexactly(10 * MIB)
        assert len(await small.readexactly(5 * MIB)) == 5 * MIB
        for one in (writer, other):
            one.transport.abort()
        await until(lambda: client.broker.metrics.connections["rest"]() == 0)


async def test_a_client_that_hardly_reads_is_dropped_for_a_logged_reason(
    broker: BrokerProcess,
) -> None:
    """F38: at a kilobyte a second it would hold the largest answer for hours."""
    task_id = await a_large_result(broker)
    requests = {
        broker.http: f"GET {TASKS}/{task_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode(),
        broker.native: words_of("TQ.GET", task_id),
    }
    for address, request in requests.items():
        logged = len(log_of(broker))
        async with unharmed(broker):
            reader, writer = await open_streams(address, receive_buffer=4_096)
            writer.write(request)
            with suppress(ConnectionError):
                while await reader.read(1_024):
                    if "a client is dropped" in log_of(broker)[logged:]:
                        break
                    await asyncio.sleep(0.1)
            writer.transport.abort()
        assert "bytes of answers unread" in log_of(broker)[logged:]


async def test_a_slow_client_that_goes_on_reading_gets_the_whole_answer(
    broker: BrokerProcess,
) -> None:
    """F38: a large answer may take several times as long as a client may stand still."""
    task_id = await a_large_result(broker)
    path = f"{TASKS}/{task_id}"
    requests = {
        broker.http: f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode(),
        broker.native: words_of("TQ.GET", task_id) + words_of("QUIT"),
    }

    async def slowly_read(address: str) -> int:
        reader, writer = await open_streams(address, receive_buffer=65_536)
        writer.write(requests[address])
        size = 0
        async with asyncio.timeout(PATIENCE):
            while part := await reader.read(262_144):
                size += len(part)
                await asyncio.sleep(0.04)
        writer.transport.abort()
        return size

    async with unharmed(broker):
        sizes = await asyncio.gather(*map(slowly_read, requests))
    assert sizes[0] > LARGEST_PAYLOAD * 4 / 3
    assert sizes[1] > LARGEST_PAYLOAD


async def test_single_bytes_are_put_together(broker: BrokerProcess) -> None:
    """F38: on every door, while others go on."""

    async def in_single_bytes(address: str, data: bytes) -> bytes:
        reader, writer = await open_streams(address)
        plug = writer.get_extra_info("socket")
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in data:
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        answer = await all_of(reader)
        writer.transport.abort()
        return answer

    command = words_of("TQ.SUBMIT", "slow", "x") + words_of("QUIT")
    async with unharmed(broker):
        answers = await asyncio.gather(
            *(in_single_bytes(broker.http, SUBMIT) for _ in range(10)),
            *(in_single_bytes(broker.native, command) for _ in range(10)),
        )
    assert [answer[:12] for answer in answers[:10]] == [b"HTTP/1.1 201"] * 10
    assert {(answer[:5], answer[-5:]) for answer in answers[10:]} == {(b"$36\r\n", b"+OK\r\n")}


async def test_slow_senders_are_cut_off_at_the_deadline(broker: BrokerProcess) -> None:
    """F39: requests that stay unfinished are answered 408 or closed, and others served."""
    silent = [b"", b"\r\n"]
    unfinished = [b"G", HEALTH[:-2], SUBMIT[:-1], SUBMIT[: -len(BODY)]]
    async with unharmed(broker):
        silences, answers = await asyncio.gather(
            asyncio.gather(*(answer_to(broker.http, one) for one in silent * 20)),
            asyncio.gather(*(answer_to(broker.http, one) for one in unfinished * 50)),
        )
    assert set(silences) == {b""}
    assert {(parsed(answer).status, parsed(answer).code) for answer in answers} == {
        (408, "INVALID_REQUEST")
    }


async def test_a_drip_of_bytes_does_not_put_the_deadline_off(broker: BrokerProcess) -> None:
    """F39: slow-loris, in heads, bodies and chunks."""
    chunked = SUBMIT[: SUBMIT.index(b"Content-Length")] + b"Transfer-Encoding: chunked\r\n\r\n"
    drips = [
        (HEALTH[:-2], b"X: y\r\n"),
        (SUBMIT.replace(b"Content-Length: ", b"Content-Length: 1"), b" "),
        (chunked, b"1\r\n \r\n"),
    ]

    async def drip(beginning: bytes, drop: bytes) -> int:
        reader, writer = await open_streams(broker.http)
        answer = asyncio.ensure_future(all_of(reader))
        writer.write(beginning)
        while not answer.done():
            writer.write(drop)
            await asyncio.wait([answer], timeout=0.05)
        writer.transport.abort()
        return parsed(await answer).status

    async with unharmed(broker):
        statuses = await asyncio.gather(*(drip(*one) for one in drips * 20))
    assert set(statuses) == {408}


async def test_idle_connections_cost_little(broker: BrokerProcess) -> None:
    """F39: on each port."""
    before = memory_of(broker)
    async with unharmed(broker), AsyncExitStack() as clients:
        for address in [broker.native, broker.http, broker.grpc] * 700:
            await clients.enter_async_context(a_native_client(address))
        assert memory_of(broker) < before + 2_100 * 32 * 1024
