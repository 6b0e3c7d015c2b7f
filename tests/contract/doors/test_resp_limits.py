"""What the native door takes from a client, and what it does with one that goes too far."""

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import hiredis
import pytest
import structlog

from taskqueue.core.task import TaskDetail
from taskqueue.doors import bounds
from taskqueue.doors.bounds import RespSettings
from taskqueue.wire import messages as m
from taskqueue.wire import resp
from tests.support.broker import claimed, submitted
from tests.support.door import until
from tests.support.resp import RespClient, RespHouse, a_resp_house, words_of

MIB = 1024 * 1024
LARGEST = m.LARGEST_PAYLOAD
PATIENT = RespSettings(slow_reader_seconds=3600)
HASTY = RespSettings(slow_reader_seconds=0.1)


async def pending_count(house: RespHouse) -> int:
    return (await house.broker.stats(m.NoRequest())).pending_count


async def hung_up(client: RespClient) -> None:
    """Read until the door has hung up, politely or not."""
    with suppress(ConnectionError):
        await client.rest()


@pytest.mark.parametrize(
    ("stream", "complaint"),
    [
        (b"*3000000000\r\n", "invalid multibulk length"),
        (b"*1\r\n$2000000000\r\n", "invalid bulk length"),
        (b"*1\r\n*1\r\n$4\r\nPING\r\n", "expected '$', got '*'"),
        (b"*1\r\n$4\r\nPINGxx", "expected CRLF after a bulk string"),
        (b"%1\r\n$1\r\na\r\n$1\r\nb\r\n", "expected '*', got '%'"),
        (b"\x00", "expected '*', got '\\x00'"),
        (b'PING "\r\n', "unbalanced quotes in request"),
    ],
)
async def test_what_is_not_resp_is_answered_in_its_turn_and_ends_the_connection(
    tmp_path: Path, stream: bytes, complaint: str
) -> None:
    async with a_resp_house(tmp_path) as house:
        client = await house.connect()
        client.send("TQ.SUBMIT", "work", "x")
        client.writer.write(stream + words_of("TQ.SUBMIT", "work", "never") + b"PING\r\n" * 1_000)
        assert len(await client.answer()) == 36
        error = await client.answer()
        assert str(error) == f"ERR Protocol error: {complaint}"
        await hung_up(client)
        assert await pending_count(house) == 1


@pytest.mark.parametrize("words", [(b"\r\n",), (b"\r\n", b"\xff"), (b"",), (b"\x00\xff",)])
async def test_a_command_of_odd_bytes_is_unknown_and_nothing_more(
    tmp_path: Path, words: tuple[bytes, ...]
) -> None:
    async with a_resp_house(tmp_path) as house:
        client = await house.connect()
        assert (await client.error(*words)).startswith("ERR unknown command ")
        assert await client.ask("PING") == b"PONG"


@pytest.mark.parametrize(
    "stream",
    [
        b"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\n\r\nTQ.SUBMIT work x\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\n" * 500,
    ],
)
async def test_http_and_tls_get_no_answer_and_one_line_in_the_log(
    tmp_path: Path, stream: bytes
) -> None:
    async with a_resp_house(tmp_path) as house:
        with structlog.testing.capture_logs() as lines:
            for _ in range(3):
                assert await house.raw(stream) == b""
        assert [(line["client"], line["log_level"]) for line in lines] == [("127.0.0.1", "warning")]
        assert await pending_count(house) == 0


async def test_the_largest_payload_and_result_pass_and_larger_ones_are_refused_by_name(
    tmp_path: Path,
) -> None:
    payload = b"\r\n" * (LARGEST // 2)
    async with a_resp_house(tmp_path, settings=PATIENT) as house:
        client = await house.connect()
        task_id = await client.submit(payload=payload)
        error = await client.error("TQ.SUBMIT", "work", payload + b"x")
        assert error.startswith("PAYLOAD_TOO_LARGE payload must be at most 10485760 bytes")
        [task] = await client.claim()
        assert task[3] == payload
        error = await client.error("TQ.COMPLETE", task_id, 1, "RESULT", payload + b"x")
        assert error.startswith("PAYLOAD_TOO_LARGE result must be at most 10485760 bytes")
        assert await client.ask("TQ.COMPLETE", task_id, 1, "RESULT", payload) == b"completed"
        assert (await client.task(task_id))["result"] == payload
        assert await pending_count(house) == 0


async def test_a_word_beyond_the_limit_ends_the_connection(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path) as house:
        client = await house.connect()
        client.writer.write(b"*3\r\n$9\r\nTQ.SUBMIT\r\n$4\r\nwork\r\n$%d\r\n" % (12 * MIB))
        assert str(await client.answer()) == "ERR Protocol error: invalid bulk length"
        await hung_up(client)


async def test_a_long_error_text_is_kept_cut_and_not_refused(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path) as house:
        client = await house.connect()
        task_id = await client.submit()
        await client.claim()
        long = b"\xff" + b"x" * (10 * MIB)
        words = ("TQ.FAIL", task_id, 1, long, "KIND", "E", "RETRYABLE", "no")
        assert await client.ask(*words) == b"dead_letter"
        error = (await client.task(task_id))["error"].decode()
        assert error.startswith("E: \ufffdxxx")
        assert error.endswith("[cut]")
        assert len(error) < 70_000


async def test_single_bytes_work_too(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path) as house:
        client = await house.connect()
        raw = client.writer.get_extra_info("socket")
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in words_of("TQ.SUBMIT", "work", "x") + b"PING\r\n":
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert len(await client.answer()) == 36
        assert await client.answer() == b"PONG"


async def test_one_client_too_many_is_told_so(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path, settings=RespSettings(max_connections=2)) as house:
        first, second = await house.connect(), await house.connect()
        await first.ask("PING")
        await second.ask("PING")
        third = await house.connect()
        assert await third.rest() == b"-ERR max number of clients reached\r\n"
        first.hang_up()
        await until(lambda: house.connections == 1)
        fourth = await house.connect()
        assert await fourth.ask("PING") == b"PONG"


async def test_a_client_that_never_reads_is_not_read_from_and_then_dropped(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path, settings=HASTY) as house:
        client = await house.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        with structlog.testing.capture_logs() as lines:
            for _ in range(64):
                client.send("ECHO", b"x" * MIB)
            await until(lambda: house.connections == 0)
        assert [line["event"] for line in lines] == ["a client is dropped"]
        assert "unread" in lines[0]["reason"]
        assert house.door.held_bytes == 0


async def test_what_a_client_leaves_unread_is_bounded(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path, settings=PATIENT) as house:
        client = await house.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        sent = 0
        while client.writer.transport.get_write_buffer_size() < MIB:
            client.writer.write(words_of("ECHO", b"x" * 1_000) * 1_000)
            sent += 1_000
            await asyncio.sleep(0.001)
        assert house.door.held_bytes < 3 * MIB
        other = await house.connect()
        assert await other.ask("PING") == b"PONG"
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert await client.answers(sent) == [b"x" * 1_000] * sent


async def test_answers_are_not_made_for_a_client_that_does_not_read_them(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path, settings=PATIENT) as house:
        client = await house.connect()
        task_id = await client.submit()
        await client.claim()
        await client.ask("TQ.COMPLETE", task_id, 1, "RESULT", b"r" * MIB)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(100):
            client.send("TQ.GET", task_id)
        await until(lambda: house.door.held_bytes > MIB)
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert house.door.commands < 60
        client.writer.transport.resume_reading()  # type: ignore[attr-defined]
        assert len(await client.answers(100)) == 100
        assert house.door.commands == 103


async def test_a_slow_client_that_goes_on_reading_stays(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path, settings=HASTY) as house:
        client = await house.connect()
        task_id = await client.submit(payload=b"y" * LARGEST)
        client.send("TQ.CLAIM", "w1", "TYPES", "work")
        parser = hiredis.Reader()
        while (answer := parser.gets()) is False:
            data = await client.reader.read(256 * 1024)
            assert data, "the door has hung up"
            parser.feed(data)
            await asyncio.sleep(0.01)
        assert (answer[0][0].decode(), len(answer[0][3])) == (task_id, LARGEST)
        assert house.connections == 1


async def test_commands_of_one_client_under_way_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "LARGEST_BACKLOG", 2 * MIB)
    async with a_resp_house(tmp_path, settings=PATIENT) as house:
        client = await house.connect()
        client.send("TQ.CLAIM", "w1", "BLOCK", 3_600_000, "TYPES", "work")
        for _ in range(32):
            client.send("ECHO", b"x" * MIB)
        await until(lambda: house.door.held_bytes > 2 * MIB)
        for _ in range(100):
            await asyncio.sleep(0.001)
        assert house.door.held_bytes < 4 * MIB
        await submitted(house.broker)
        answers = await client.answers(33)
        assert [len(one) for one in answers] == [1] + [MIB] * 32
        await until(lambda: house.door.held_bytes == 0)


async def test_when_all_clients_hold_too_much_the_largest_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "LARGEST_BACKLOG_OF_ALL", 6 * MIB)
    half = words_of("TQ.SUBMIT", "work", b"x" * (9 * MIB))
    async with a_resp_house(tmp_path, settings=PATIENT) as house:
        small, large = await house.connect(), await house.connect()
        small.writer.write(half[: 2 * MIB])
        await until(lambda: house.door.held_bytes == 2 * MIB)
        with structlog.testing.capture_logs() as lines:
            large.writer.write(half[: 8 * MIB])
            await hung_up(large)
        assert [line["event"] for line in lines] == ["a client is dropped"]
        assert house.door.held_bytes == 2 * MIB
        monkeypatch.setattr(bounds, "LARGEST_BACKLOG_OF_ALL", 20 * MIB)
        small.writer.write(half[2 * MIB :])
        assert len(await small.answer()) == 36
        await until(lambda: house.door.held_bytes == 0)


async def test_many_large_answers_are_not_read_all_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_resp_house(tmp_path, settings=PATIENT) as house:
        client = await house.connect()
        task_id = await client.submit()
        await client.claim()
        await client.ask("TQ.COMPLETE", task_id, 1, "RESULT", b"r" * MIB)
        storage = house.broker._storage
        get, under_way = storage.get, [0]

        async def counting_get(task_id: str) -> TaskDetail | None:
            under_way.append(under_way[-1] + 1)
            try:
                return await get(task_id)
            finally:
                under_way.append(under_way[-1] - 1)

        monkeypatch.setattr(storage, "get", counting_get)
        for _ in range(100):
            client.send("TQ.GET", task_id)
        for _ in range(100):
            fields = await client.answer()
            assert fields[fields.index(b"result") + 1] == b"r" * MIB
        assert len(under_way) == 201
        assert 1 < max(under_way) <= bounds.MOST_READS


async def test_half_a_command_is_forgotten_with_its_client(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path) as house:
        client = await house.connect()
        whole = words_of("TQ.SUBMIT", "work", b"x" * MIB)
        client.writer.write(whole + whole[: MIB // 2])
        assert len(await client.answer()) == 36
        await until(lambda: MIB // 2 - 100 < house.door.held_bytes <= MIB // 2)
        client.hang_up()
        await until(lambda: house.connections == 0)
        assert house.door.held_bytes == 0
        assert await pending_count(house) == 1


async def test_waits_behind_a_hang_up_are_not_begun(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path) as house:
        claim = words_of("TQ.CLAIM", "w1", "BLOCK", 3_600_000, "TYPES", "work")
        answer = await house.raw(claim * 3 + words_of("TQ.SUBMIT", "work", "x"))
        lines = answer.split(b"\r\n")
        assert [line[:19] for line in lines[:3]] == [b"-BROKER_UNAVAILABLE"] * 3
        assert len(lines[4]) == 36
        assert len(await claimed(house.broker)) == 1


async def test_closing_answers_those_who_wait_and_hangs_up(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path) as house:
        claimers = [await house.connect() for _ in range(50)]
        for client in claimers:
            client.send("TQ.CLAIM", "w1", "BLOCK", 3_600_000, "TYPES", "work")
        waiter, idle, busy = [await house.connect() for _ in range(3)]
        task_id = await waiter.submit(task_type="other")
        waiter.send("TQ.WAIT", task_id, 3_600_000)
        await idle.ask("PING")
        await until(lambda: house.door.commands == 52)
        for _ in range(100):
            busy.send("TQ.SUBMIT", "other", "x")
        await until(lambda: house.door.commands == 152)
        await house.close()
        assert [await client.answer() for client in claimers] == [[]] * 50
        assert b"pending" in await waiter.answer()
        assert {len(one) for one in await busy.answers(100)} == {36}
        for client in (*claimers, waiter, idle, busy):
            assert await client.rest() == b""


async def test_closing_does_not_wait_for_clients_that_do_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "FLUSH_SECONDS", 0.1)
    async with a_resp_house(tmp_path, settings=PATIENT) as house:
        client = await house.connect()
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        for _ in range(32):
            client.send("ECHO", b"x" * MIB)
        await until(lambda: house.door.held_bytes > MIB)
        await house.close()
        await until(lambda: house.connections == 0)


async def test_a_command_that_meets_a_fault_of_the_broker_says_so_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_arguments: object) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(m, "claimed_reply", broken)
    async with a_resp_house(tmp_path) as house:
        client = await house.connect()
        await client.submit()
        with structlog.testing.capture_logs() as lines:
            error = await client.error("TQ.CLAIM", "w1", "TYPES", "work")
        assert error == "INTERNAL_ERROR The broker failed; its log says how"
        assert [line["log_level"] for line in lines] == ["error"]
        monkeypatch.setattr(house.broker.workers, "renew", broken)
        assert (await client.error("TQ.CLAIM", "w1", "TYPES", "work")).startswith("INTERNAL_ERROR")
        assert await client.ask("PING") == b"PONG"


def test_the_door_takes_words_as_large_as_the_reader_says() -> None:
    assert m.LARGEST_PAYLOAD < resp.LARGEST_WORD < resp.LARGEST_FRAME
