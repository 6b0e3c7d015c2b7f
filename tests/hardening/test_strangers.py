"""Clients without a key that is good, where one is needed."""

import asyncio
import base64
from collections.abc import Iterator

import grpc
import pytest

from taskqueue.doors.grpc import taskqueue_pb2 as pb
from tests.hardening.attacker import a_native_client, all_of, answer_to, ask, open_streams
from tests.hardening.bystander import log_of, memory_of, unharmed
from tests.support.broker import BrokerProcess, a_broker_process
from tests.support.door import until
from tests.support.grpc import OPTIONS
from tests.support.resp import words_of
from tests.support.rest import TASKS, parsed

MIB = 1024 * 1024
KEY = "a-key-for-automation-of-32-characters-or-more"
STATS = "/taskqueue.TaskQueue/GetStats"
BASIC = base64.b64encode(f"admin:{KEY}".encode()).decode()

WRONG = [
    "",
    "Bearer",
    "Bearer ",
    KEY,
    f"Basic {BASIC}",
    f"Bearer {KEY[:-1]}",
    f"Bearer {KEY}x",
    f"Bearer {KEY} {KEY}",
    f"Bearer {KEY},{KEY}",
    f"Bearer={KEY}",
    f'Bearer "{KEY}"',
    f"Digest {KEY}",
    "Bearer " + "k" * 20_000,
    "Bearer tq_' OR 1=1 --",
    "Bearer %00",
    "Bearer null",
]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A broker that lets nobody in without a key."""
    folder = tmp_path_factory.mktemp("guarded") / "data"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TQ_BOOTSTRAP_KEY", KEY)
        environment.setenv("TQ_HTTP_RECEIVE_SECONDS", "1")
        environment.setenv("TQ_NATIVE_SLOW_READER_SECONDS", "1")
        with a_broker_process(folder, "--require-key", "--rate-limit", "0") as process:
            yield process


async def statistics(process: BrokerProcess) -> dict[str, object]:
    """The queue in figures."""
    reply = await ask(
        process.http, "GET", "/api/v1/stats", None, {"Authorization": f"Bearer {KEY}"}
    )
    figures: dict[str, object] = reply.json
    return figures


async def over_http(process: BrokerProcess, shown: str) -> tuple[int, str | None]:
    """What REST says to somebody who shows this."""
    reply = await ask(process.http, "GET", "/api/v1/stats", None, {"Authorization": shown})
    return reply.status, reply.code


async def over_resp(process: BrokerProcess, shown: str) -> str:
    """What the native door says to them."""
    async with a_native_client(process.native) as client:
        assert (await client.error("AUTH", shown)).startswith("AUTHENTICATION_FAILED ")
        return (await client.error("TQ.STATS")).partition(" ")[0]


async def over_grpc(channel: grpc.aio.Channel, *shown: tuple[str, str]) -> str:
    """What the gRPC door says to them."""
    stats = channel.unary_unary(
        STATS, pb.GetStatsRequest.SerializeToString, pb.GetStatsResponse.FromString
    )
    return str((await stats(pb.GetStatsRequest(), metadata=shown).code()).name)


async def test_whatever_is_not_the_key_opens_no_door(guarded: BrokerProcess) -> None:
    """B25: all forms of it, at all doors; who has the key is let in without delay meanwhile."""
    good = ("authorization", f"Bearer {KEY}")
    async with (
        unharmed(guarded, KEY),
        grpc.aio.insecure_channel(guarded.grpc, OPTIONS) as channel,
    ):
        statuses, errors, codes, others = await asyncio.gather(
            asyncio.gather(*(over_http(guarded, one) for one in WRONG)),
            # The native door takes the key itself, without the scheme.
            asyncio.gather(*(over_resp(guarded, one) for one in WRONG if one != KEY)),
            asyncio.gather(
                *(over_grpc(channel, ("authorization", one)) for one in WRONG if len(one) < 9_999)
            ),
            asyncio.gather(
                over_grpc(channel), over_grpc(channel, good, good), over_grpc(channel, ("key", KEY))
            ),
        )
    assert set(statuses) == {(401, "AUTHENTICATION_FAILED")}
    assert set(errors) == {"AUTHENTICATION_FAILED"}
    assert {*codes, *others} == {"UNAUTHENTICATED"}


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (f"Authorization: Bearer {KEY}\r\nAuthorization: Bearer {KEY}\r\n", 401),
        (f"Authorization: Bearer {KEY}\r\nAuthorization: Basic {BASIC}\r\n", 401),
        (f"Authorization: Bearer {KEY}\x00\r\n", 400),
        (f"Authorization: Bearer {KEY}\r\n folded\r\n", 400),
        (f"Authorization : Bearer {KEY}\r\n", 400),
        ("Authorization: Bearer " + "k" * MIB + "\r\n", 431),
        (f"X-Api-Key: {KEY}\r\n", 401),
        (f"Cookie: key={KEY}\r\n", 401),
        (f"Proxy-Authorization: Bearer {KEY}\r\n", 401),
        (f"authorization: bearer {KEY}\r\n", 200),
    ],
    ids=lambda value: str(value)[:50],
)
async def test_a_key_is_shown_in_one_way(guarded: BrokerProcess, lines: str, status: int) -> None:
    """B25."""
    request = f"GET /api/v1/stats HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{lines}\r\n"
    assert parsed(await answer_to(guarded.http, request.encode())).status == status


@pytest.mark.parametrize("name", ["key", "api_key", "access_token", "Authorization", "auth"])
async def test_a_key_in_the_url_is_not_read(guarded: BrokerProcess, name: str) -> None:
    """B25."""
    for path in ("/api/v1/stats", TASKS):
        assert (await ask(guarded.http, "GET", f"{path}?{name}={KEY}")).status == 401
    assert (await ask(guarded.http, "GET", f"http://x:{KEY}@x/api/v1/stats")).status in (400, 401)


async def test_a_stranger_takes_up_no_room(guarded: BrokerProcess) -> None:
    """B16 (CVE-2025-21605): neither with commands, nor with answers, nor with bodies."""
    before = memory_of(guarded)
    command = words_of("TQ.SUBMIT", "work", b"x" * 10_000)
    head = f"POST {TASKS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    body = f"{head}Content-Length: {14 * MIB}\r\n\r\n".encode() + b" " * MIB
    async with unharmed(guarded, KEY):
        attackers = [await open_streams(guarded.native, receive_buffer=4_096) for _ in range(20)]
        for _reader, writer in attackers:
            writer.write(command * 1_000)
        answers = await asyncio.gather(
            *(all_of(reader) for reader, _writer in attackers),
            *(answer_to(guarded.http, body) for _ in range(20)),
        )
        for _reader, writer in attackers:
            writer.transport.abort()
        for answer in answers[:20]:
            assert answer.count(b"\r\n") <= 11
        for answer in answers[20:]:
            assert parsed(answer).status == 401
    assert memory_of(guarded) < before + 60 * MIB


async def test_strangers_change_nothing(guarded: BrokerProcess) -> None:
    """B25: whatever they send."""
    before = await statistics(guarded)
    body = b'{"task_type": "work", "payload": ""}'
    async with a_native_client(guarded.native) as client:
        for words in (("TQ.SUBMIT", "work", "x"), ("TQ.CLAIM", "w1", "TYPES", "work")):
            assert (await client.error(*words)).startswith("AUTHENTICATION_FAILED ")
    for path in (TASKS, f"{TASKS}/batch", "/api/v1/keys"):
        assert (await ask(guarded.http, "POST", path, body)).status == 401
    assert await statistics(guarded) == before


async def test_no_key_that_was_shown_gets_into_the_log(guarded: BrokerProcess) -> None:
    """B25: neither a good one nor one that is nearly good, wherever it stood."""
    nearly = KEY[:-1] + "x"
    for secret in (KEY, nearly):
        await ask(guarded.http, "GET", "/api/v1/stats", None, {"Authorization": f"Bearer {secret}"})
        await ask(guarded.http, "GET", f"/api/v1/stats?key={secret}")
        await ask(guarded.http, "GET", f"/{secret}", None, {secret: secret})
        await answer_to(guarded.native, words_of("AUTH", "user", secret) + words_of("QUIT"))
        await answer_to(guarded.native, words_of(secret, secret) + words_of("QUIT"))
        await answer_to(guarded.native, b"AUTH " + secret.encode() + b' "\r\n')
    await until(lambda: "a key was refused" in log_of(guarded))
    assert KEY[8:-1] not in log_of(guarded)


async def test_addresses_that_are_only_claimed_do_not_get_around_the_limit(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """B28: and who is at the limit does not take others along."""
    folder = tmp_path_factory.mktemp("limited") / "data"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TQ_BOOTSTRAP_KEY", KEY)
        with a_broker_process(folder, "--rate-limit", "1") as process:
            names = ["X-Forwarded-For", "X-Real-IP", "Forwarded", "X-Client-IP", "CF-Connecting-IP"]
            statuses = [
                (
                    await ask(
                        process.http,
                        "GET",
                        "/api/v1/stats",
                        None,
                        {names[number % len(names)]: f"198.51.{number % 100}.{number // 100}"},
                    )
                ).status
                for number in range(200)
            ]
            assert statuses[0] == 401, "counted before it is asked for its key"
            assert set(statuses) == {401, 429}
            assert statuses.count(429) > 100, "one a second gets through"
            assert (await statistics(process))["pending_count"] == 0
