"""HTTP that is broken, endless, or of another mind than the broker about where a request ends."""

import asyncio
import gzip
import random

import pytest

from tests.hardening.attacker import answer_to, ask
from tests.hardening.bystander import memory_of, unharmed
from tests.support.broker import BrokerProcess
from tests.support.rest import TASKS, parsed

MIB = 1024 * 1024
HEALTH = b"GET /api/v1/health HTTP/1.1\r\nHost: x\r\n"
SUBMIT = f"POST {TASKS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()
BODY = b'{"task_type": "smuggled", "payload": ""}'
INNER = SUBMIT + b"Content-Length: %d\r\n\r\n%s" % (len(BODY), BODY)
"""A whole request, to be hidden within another one."""

LAST = HEALTH + b"Connection: close\r\n\r\n"

ORDINARY = {b"200", b"201", b"400", b"404", b"405", b"408", b"413", b"414", b"415", b"431"}

SMUGGLERS = {
    "CL+TE": SUBMIT + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "TE+CL": SUBMIT + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two CL": SUBMIT + b"Content-Length: 0\r\nContent-Length: 5\r\n\r\n",
    "equal CL": SUBMIT + b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "CL list": SUBMIT + b"Content-Length: 0, 0\r\n\r\n",
    "CL +5": SUBMIT + b"Content-Length: +0\r\n\r\n",
    "CL hex": SUBMIT + b"Content-Length: 0x0\r\n\r\n",
    "CL of 2**64": SUBMIT + b"Content-Length: 18446744073709551616\r\n\r\n",
    "xchunked": SUBMIT + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked twice": SUBMIT + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "identity last": SUBMIT + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "two TE": SUBMIT + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n\r\n",
    "TE by tab": SUBMIT + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "TE with space": SUBMIT + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "TE in 1.0": SUBMIT.replace(b"1.1", b"1.0") + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunk of 2**64": SUBMIT + b"Transfer-Encoding: chunked\r\n\r\n10000000000000000\r\n\r\n",
    "chunk of -1": SUBMIT + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "chunk of 0x0": SUBMIT + b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    "chunk too long": SUBMIT + b"Transfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
    "chunk ends in LF": SUBMIT + b"Transfer-Encoding: chunked\r\n\r\n0\n\n",
    "extension with LF": SUBMIT + b"Transfer-Encoding: chunked\r\n\r\n1;a\nb\r\nx\r\n0\r\n\r\n",
    "bare LF": b"GET /api/v1/health HTTP/1.1\nHost: x\n\n",
    "LF ends a header": HEALTH + b"X: y\nContent-Length: 5\r\n\r\n",
    "bare CR": HEALTH + b"X: y\rContent-Length: 5\r\n\r\n",
    "NUL": HEALTH + b"X: y\x00\r\n\r\n",
    "NUL in a name": HEALTH + b"X\x00: y\r\n\r\n",
    "folded": HEALTH + b"X: y\r\n Content-Length: 5\r\n\r\n",
    "folded first": b"GET / HTTP/1.1\r\n Host: x\r\n\r\n",
    "no colon": HEALTH + b"X\r\n\r\n",
    "no name": HEALTH + b": y\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": HEALTH + b"Host: y\r\n\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/0.9 with a host": b"GET / HTTP/0.9\r\nHost: x\r\n\r\n",
    "HTTP/2.0 with a host": b"GET / HTTP/2.0\r\nHost: x\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: x\r\n\r\n",
    "HTTP/2.0": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "path not ASCII": b"GET /\xc3\xa9 HTTP/1.1\r\nHost: x\r\n\r\n",
    "lower case": b"get / HTTP/1.1\r\nHost: x\r\n\r\n",
    "no such method": b"FROBNICATE / HTTP/1.1\r\nHost: x\r\n\r\n",
    "random": random.Random(1).randbytes(4_096),
}


async def smuggled(process: BrokerProcess) -> int:
    """How many tasks got in that were hidden within other requests."""
    reply = await ask(process.http, "GET", f"{TASKS}?task_type=smuggled")
    return int(reply.json["total"])


@pytest.mark.parametrize("name", SMUGGLERS)
async def test_nothing_is_read_after_a_doubt_about_the_framing(
    broker: BrokerProcess, name: str
) -> None:
    """B10."""
    answer = await answer_to(broker.http, SMUGGLERS[name] + INNER)
    reply = parsed(answer)
    assert (reply.status, reply.code) in ((400, "INVALID_REQUEST"), (415, None))
    assert reply.headers["connection"] == "close"
    assert answer.count(b"HTTP/1.1 ") == 1
    assert await smuggled(broker) == 0


async def test_a_storm_of_them_harms_nobody(broker: BrokerProcess) -> None:
    """B10: all kinds at once, from many connections."""
    streams = list(SMUGGLERS.values()) * 10
    random.Random(2).shuffle(streams)
    async with unharmed(broker):
        for start in range(0, len(streams), 100):
            await asyncio.gather(
                *(answer_to(broker.http, one + INNER) for one in streams[start : start + 100])
            )
    assert await smuggled(broker) == 0


async def test_random_bytes_within_a_request_harm_nobody(broker: BrokerProcess) -> None:
    """B10: whole requests in which a few bytes were changed, left out or put in."""
    chance = random.Random(3)

    def damaged() -> bytes:
        data = bytearray(INNER.replace(b"smuggled", b"mutation"))
        for _ in range(chance.randint(1, 4)):
            place = chance.randrange(len(data))
            match chance.randrange(3):
                case 0:
                    data[place] = chance.randrange(256)
                case 1:
                    del data[place]
                case _:
                    data[place:place] = chance.randbytes(chance.randint(1, 3))
        return bytes(data) + LAST

    async with unharmed(broker):
        for _ in range(10):
            answers = await asyncio.gather(*(answer_to(broker.http, damaged()) for _ in range(50)))
            for answer in answers:
                statuses = {part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]}
                assert statuses <= ORDINARY, answer


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("TRACE", "/api/v1/health", 405),
        ("CONNECT", "broker:443", 405),
        ("PUT", TASKS, 405),
        ("PATCH", TASKS, 405),
        ("OPTIONS", "*", 404),
        ("PROPFIND", "/", 404),
        ("GET", "/%2e%2e/%2e%2e/etc/passwd", 404),
        ("GET", "/../../etc/passwd", 404),
        ("GET", "/docs/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "//api/v1/health", 404),
        ("GET", "/api/v1/health/", 404),
        ("GET", "/api/v1/tasks/%00", 404),
        ("GET", "/api/v1/tasks/%ff", 404),
        ("GET", "/api/v1/tasks/%0d%0aX:%20y", 404),
        ("GET", "/" + "a" * 65_536, 414),
        ("GET", "/api/v1/tasks?" + "a=b&" * 16_384, 414),
        ("GET", "http://elsewhere/api/v1/health", 200),
    ],
    ids=lambda value: str(value)[:30],
)
async def test_a_path_leads_where_it_says_or_nowhere(
    broker: BrokerProcess, method: str, path: str, status: int
) -> None:
    """B10."""
    answer = await answer_to(
        broker.http, f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
    )
    reply = parsed(answer)
    assert reply.status == status
    assert status == 200 or set(reply.json) == {"error", "code", "timestamp"}
    assert b"root:" not in answer
    assert "X" not in reply.headers


async def test_ranges_are_not_heeded_however_many(broker: BrokerProcess) -> None:
    """B10: ten thousand ranges of a page cost what the page costs."""
    ranges = ",".join(f"{n}-{n}" for n in range(3_000))
    for path in ("/docs", "/openapi.json"):
        whole = await ask(broker.http, "GET", path)
        reply = await ask(broker.http, "GET", path, None, {"Range": f"bytes={ranges}"})
        assert (reply.status, reply.body) == (200, whole.body)
    reply = await ask(broker.http, "GET", "/docs", None, {"Range": f"bytes={ranges * 4}"})
    assert reply.status == 431


@pytest.mark.parametrize("said", [len(BODY) - 1, len(BODY) + 1])
async def test_a_length_that_lies_makes_no_task(broker: BrokerProcess, said: int) -> None:
    """B01: neither what is cut short nor what runs into the next request."""
    head = SUBMIT + b"Content-Length: %d\r\n\r\n" % said
    statuses = [
        part[:3] for part in (await answer_to(broker.http, head + BODY)).split(b"HTTP/1.1 ")[1:]
    ]
    assert statuses in ([b"400"], [b"408"], [b"400", b"400"], [b"400", b"408"])
    assert await smuggled(broker) == 0


async def test_a_bomb_is_not_unpacked(broker: BrokerProcess) -> None:
    """B09: a compressed body is refused before a byte of it is read."""
    bomb = gzip.compress(bytes(100 * MIB))
    before = memory_of(broker)
    async with unharmed(broker):
        for coding in ("gzip", "deflate", "br", "zstd", "gzip, identity", "x-gzip"):
            reply = await ask(broker.http, "POST", TASKS, bomb, {"Content-Encoding": coding})
            assert (reply.status, reply.code) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert memory_of(broker) < before + 50 * MIB


async def test_bodies_of_every_size_pass_or_are_refused_in_bounded_memory(
    broker: BrokerProcess,
) -> None:
    """B01: bodies above the cap, from many at once, by length and in chunks."""
    before = memory_of(broker)
    chunked = SUBMIT + b"Transfer-Encoding: chunked\r\n\r\n"
    chunk = b"100000\r\n" + b" " * MIB + b"\r\n"
    promised = SUBMIT + b"Content-Length: %d\r\n\r\n" % (2**62)
    async with unharmed(broker):
        answers = await asyncio.gather(
            *(answer_to(broker.http, chunked + chunk * 15) for _ in range(8)),
            *(answer_to(broker.http, promised + b" " * MIB) for _ in range(50)),
        )
    assert {parsed(answer).code for answer in answers} == {"PAYLOAD_TOO_LARGE"}
    assert memory_of(broker) < before + 300 * MIB


async def test_a_flood_of_requests_sent_ahead_holds_up_nobody(broker: BrokerProcess) -> None:
    """B10: ten thousand of them on one connection."""
    async with unharmed(broker):
        answer = await answer_to(broker.http, (HEALTH + b"\r\n") * 10_000 + LAST)
    assert answer.count(b"HTTP/1.1 200 ") == 10_001


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b'{"task_type": "deep", "payload": "", "priority": ' + b"[" * 100_000,
        b'{"tasks": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"tasks": [' + b'{"tasks": [' * 50_000,
        b"{" + b",".join(b'"k%d":1' % number for number in range(1_000_000)) + b"}",
        b'{"task_type": "' + b'\\"' * 5_000_000 + b'", "payload": ""}',
        b'{"tasks": [' + b"{}," * 299_999 + b"{}]}",
        b'{"tasks": [' + b"1," * 1_000_000 + b"1]}",
        b'{"task_type": "deep", "payload": "", "priority": ' + b"9" * 5_000_000 + b"}",
        b'{"task_type": "deep", "payload": "", "delay_seconds": 1e' + b"9" * 1_000_000 + b"}",
    ],
    ids=lambda body: repr(body[:24]),
)
@pytest.mark.parametrize("path", [TASKS, f"{TASKS}/batch"])
async def test_json_that_costs_much_to_read_is_refused_beside_others(
    broker: BrokerProcess, path: str, body: bytes
) -> None:
    """B08."""
    async with unharmed(broker):
        replies = await asyncio.gather(*(ask(broker.http, "POST", path, body) for _ in range(4)))
    for reply in replies:
        assert (reply.status, reply.code) == (400, "INVALID_REQUEST")
        assert len(reply.body) < 500
