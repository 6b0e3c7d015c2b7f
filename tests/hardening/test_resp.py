"""RESP that is broken, endless or not RESP at all."""

import asyncio
import json
import random

import pytest

from tests.hardening.attacker import a_native_client, all_of, answer_to, ask, open_streams
from tests.hardening.bystander import log_of, memory_of, unharmed
from tests.support.broker import BrokerProcess
from tests.support.door import until
from tests.support.resp import words_of
from tests.support.rest import TASKS, parsed

MIB = 1024 * 1024
INNER = words_of("TQ.SUBMIT", "smuggled", "x")
"""A whole command, to come after what ends the connection."""

BROKEN = {
    "*3000000000": b"*3000000000\r\n",
    "*1025": b"*1025\r\n",
    "*99999999999999999999": b"*99999999999999999999\r\n",
    "*+1": b"*+1\r\n$4\r\nPING\r\n",
    "* 1": b"* 1\r\n$4\r\nPING\r\n",
    "*1_0": b"*1_0\r\n",
    "*NUL": b"*\x00\r\n",
    "*blabla": b"*blabla\r\n",
    "$-10": b"*1\r\n$-10\r\n",
    "$-1": b"*1\r\n$-1\r\n",
    "$2000000000": b"*1\r\n$2000000000\r\n",
    "$blabla": b"*1\r\n$blabla\r\n",
    "$NUL and endless": b"*1\r\n$\x00" + b"A" * MIB,
    "NUL and endless": b"\x00" + b"A" * MIB,
    "* and endless": b"*" + b"1" * MIB,
    "wrong type": b"*1\r\n:4\r\nPING\r\n",
    "no CRLF": b"*1\r\n$4\r\nPINGxx",
    "LF for CRLF": b"*1\r\n$4\r\nPING\n\n",
    "nested": b"*1\r\n*1\r\n$4\r\nPING\r\n",
    "nested deep": b"*1\r\n" * 10_000,
    "map": b"%1\r\n$1\r\na\r\n$1\r\nb\r\n",
    "set": b"~1\r\n$4\r\nPING\r\n",
    "push": b">1\r\n$4\r\nPING\r\n",
    "double": b",1.5\r\n",
    "bool": b"#t\r\n",
    "null": b"_\r\n",
    "big number": b"(1\r\n",
    "verbatim": b"=8\r\ntxt:PING\r\n",
    "attribute": b"|1\r\n$1\r\na\r\n$1\r\nb\r\n",
    "bulk": b"$4\r\nPING\r\n",
    "error": b"-ERR\r\n",
    "quotes": b'PING "\r\n',
    "more quotes": b"PING 'x\r\n",
    "long line": b"P" * 100_000,
    "words in a line": b"a " * 2_000 + b"\r\n",
    "frame": b"*1024\r\n"
    + (b"$%d\r\n" % (6 * MIB) + b"x" * (6 * MIB) + b"\r\n") * 2
    + b"$9999999\r\n",
}

FOREIGN = {
    "GET": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST": b"POST /api/v1/tasks HTTP/1.1\r\nHost: x\r\n\r\n",
    "CONNECT": b"CONNECT x:443 HTTP/1.1\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "Host": b"Host: x\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + random.Random(1).randbytes(500),
}


async def smuggled(process: BrokerProcess) -> int:
    """How many tasks got in behind what should have ended the connection."""
    reply = await ask(process.http, "GET", f"{TASKS}?task_type=smuggled")
    return int(reply.json["total"])


@pytest.mark.parametrize("name", BROKEN)
async def test_what_is_not_resp_gets_one_error_and_ends_the_connection(
    broker: BrokerProcess, name: str
) -> None:
    """B15."""
    answer = await answer_to(broker.native, BROKEN[name] + INNER)
    assert answer.startswith(b"-ERR Protocol error: ")
    assert answer.index(b"\r\n") == len(answer) - 2
    assert await smuggled(broker) == 0


@pytest.mark.parametrize(
    ("stream", "answer"),
    [
        (words_of("HELLO", 4), b"-NOPROTO "),
        (words_of("MULTI"), b"-ERR unknown command 'MULTI'"),
        (words_of("SUBSCRIBE", "x"), b"-ERR unknown command 'SUBSCRIBE'"),
        (words_of("EVAL", "return 1", 0), b"-ERR unknown command 'EVAL'"),
        (words_of("CONFIG", "GET", "*"), b"-ERR unknown command 'CONFIG'"),
        (words_of("DEBUG", "SLEEP", 10), b"-ERR unknown command 'DEBUG'"),
        (words_of("MONITOR"), b"-ERR unknown command 'MONITOR'"),
        (words_of("SHUTDOWN"), b"-ERR unknown command 'SHUTDOWN'"),
        (words_of("FLUSHALL"), b"-ERR unknown command 'FLUSHALL'"),
        (words_of("x" * 10_000), b"-ERR unknown command 'xxxx"),
        (words_of("TQ.SUBMIT"), b"-INVALID_REQUEST "),
        (b"*0\r\n*-1\r\n*-10\r\n\r\n \r\n", b""),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_what_is_resp_but_no_command_leaves_the_connection_as_it_was(
    broker: BrokerProcess, stream: bytes, answer: bytes
) -> None:
    """B15."""
    got = await answer_to(broker.native, stream + words_of("PING") + words_of("QUIT"))
    assert got.startswith(answer)
    assert got.endswith(b"+PONG\r\n+OK\r\n")
    assert len(got) < 600


async def test_a_storm_of_them_harms_nobody(broker: BrokerProcess) -> None:
    """B15: all kinds at once, from many connections."""
    streams = [*BROKEN.values(), *FOREIGN.values()] * 4
    random.Random(2).shuffle(streams)
    async with unharmed(broker):
        for start in range(0, len(streams), 40):
            await asyncio.gather(
                *(answer_to(broker.native, one + INNER) for one in streams[start : start + 40])
            )
    assert await smuggled(broker) == 0


async def test_random_bytes_within_commands_harm_nobody(broker: BrokerProcess) -> None:
    """B15: whole commands in which a few bytes were changed, left out or put in."""
    chance = random.Random(3)
    whole = words_of("TQ.SUBMIT", "random", "x" * 30, "PRIORITY", 7) + words_of("PING")

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
                    data[place:place] = chance.randbytes(chance.randint(1, 3))
        return bytes(data)

    async def attack() -> bytes:
        reader, writer = await open_streams(broker.native)
        writer.write(damaged())
        writer.write_eof()
        answer = await all_of(reader)
        writer.transport.abort()
        return answer

    async with unharmed(broker):
        for _ in range(20):
            for answer in await asyncio.gather(*(attack() for _ in range(50))):
                assert b"INTERNAL_ERROR" not in answer
                assert answer == b"" or answer.endswith(b"\r\n")


@pytest.mark.parametrize("name", FOREIGN)
async def test_other_protocols_get_no_answer_from_the_native_door(
    broker: BrokerProcess, name: str
) -> None:
    """B17."""
    assert await answer_to(broker.native, FOREIGN[name] + INNER) == b""
    assert await smuggled(broker) == 0


async def test_another_protocol_is_logged_once_for_each_address(broker: BrokerProcess) -> None:
    """B17."""
    for stream in [*FOREIGN.values(), *list(BROKEN.values())[:5]]:
        await answer_to(broker.native, stream)
    lines = [json.loads(line) for line in log_of(broker).splitlines() if line.startswith("{")]
    told = [line for line in lines if "does not speak RESP" in line["message"]]
    assert [line["client"] for line in told] == ["127.0.0.1"]


@pytest.mark.parametrize(
    "stream",
    [INNER, b"PING\r\n", FOREIGN["HTTP/2"], FOREIGN["TLS"]],
    ids=["RESP", "inline", "HTTP/2", "TLS"],
)
async def test_the_http_port_recognises_other_protocols(
    broker: BrokerProcess, stream: bytes
) -> None:
    """B17."""
    answer = await answer_to(broker.http, stream)
    assert parsed(answer).status == 400
    assert answer.count(b"HTTP/1.1 ") == 1
    assert await smuggled(broker) == 0


async def test_a_million_pings_that_nobody_reads_the_answers_of(broker: BrokerProcess) -> None:
    """B16: the broker stops reading, keeps a megabyte or so, and hangs up after its time."""
    pings = words_of("PING") * 1_000_000
    before = memory_of(broker)
    async with unharmed(broker):
        attackers = [await open_streams(broker.native, receive_buffer=4_096) for _ in range(2)]
        for _reader, writer in attackers:
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(pings)
        highest = 0

        def are_cut_off() -> bool:
            nonlocal highest
            highest = max(highest, memory_of(broker))
            return all(writer.transport.is_closing() for _reader, writer in attackers)

        await until(are_cut_off)
        assert highest < before + 2 * 16 * MIB
    assert "of answers unread" in log_of(broker)


async def test_promises_of_much_take_no_memory(broker: BrokerProcess) -> None:
    """B15: ten thousand bytes announced for each that is sent."""
    before = memory_of(broker)
    promise = b"*1024\r\n$%d\r\n" % (10 * MIB)
    async with unharmed(broker):
        attackers = [await open_streams(broker.native) for _ in range(300)]
        for _reader, writer in attackers:
            writer.write(promise + b"x")
        async with a_native_client(broker.native) as client:
            assert await client.ask("PING") == b"PONG"
        assert memory_of(broker) < before + 20 * MIB
        for _reader, writer in attackers:
            writer.transport.abort()


async def test_what_is_reflected_stays_on_its_line(broker: BrokerProcess) -> None:
    """B13: nothing that a client sends ends an error early or colours a terminal."""
    evil = "a\r\n+OK\r\n\x1b[31m\x00\u202e"
    commands = [
        (evil,),
        ("TQ.SUBMIT", evil, "x"),
        ("TQ.SUBMIT", "work", "x", evil, 1),
        ("TQ.SUBMIT", "work", "x", "PRIORITY", evil),
        ("TQ.CLAIM", evil, "TYPES", "work"),
        ("TQ.CLAIM", "w1", "TYPES", evil),
        ("TQ.GET", evil),
        ("TQ.LIST", "STATUS", evil),
        ("CLIENT", evil),
        ("COMMAND", evil),
        ("TQ.KEY.CREATE", evil, "PERMISSIONS", evil),
    ]
    for words in commands:
        answer = await answer_to(broker.native, words_of(*words) + words_of("QUIT"))
        error, ok = answer.decode().split("\r\n")[:2]
        assert error.startswith("-")
        assert error.isprintable()
        assert ok == "+OK"
    assert "\x1b" not in log_of(broker)
