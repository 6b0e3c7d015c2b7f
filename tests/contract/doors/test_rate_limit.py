"""The rate limit, request ids, trusted proxies and CORS of the REST door."""

import asyncio
from pathlib import Path

import pytest

from taskqueue.broker.access import AccessSettings, Caller
from taskqueue.core.clock import SECOND, ManualClock
from taskqueue.core.keys import Permission
from taskqueue.doors.http import RestSettings
from taskqueue.doors.visit import Proxies
from taskqueue.wire.administration import CreateKeyRequest
from tests.support.rest import TASKS, Reply, RestClient, a_rest_client

KEY = "a-key-for-automation-of-32-characters-or-more"
LIMITED = AccessSettings(rate_limit=5)


def limits(reply: Reply) -> tuple[int, int, int]:
    """Limit, remaining and reset as an answer tells them."""
    names = ("limit", "remaining", "reset")
    limit, remaining, reset = (int(reply.headers[f"x-ratelimit-{name}"]) for name in names)
    return limit, remaining, reset


async def ask(client: RestClient, path: str = "/api/v1/stats", **headers: str) -> Reply:
    """A request, with headers whose names have underscores."""
    return await client.ask("GET", path, None, {k.replace("_", "-"): v for k, v in headers.items()})


async def test_as_many_requests_as_the_limit_may_come_at_once_then_they_wait(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    async with a_rest_client(tmp_path, access=LIMITED, clock=clock) as client:
        for left in (4, 3, 2, 1, 0):
            reply = await ask(client)
            assert (reply.status, limits(reply)[:2]) == (200, (5, left))
        reply = await ask(client)
        assert (reply.status, reply.code) == (429, "RATE_LIMIT_EXCEEDED")
        assert limits(reply) == (5, 0, clock.wall() // SECOND + 1)
        wait = int(reply.headers["retry-after"])
        assert wait == 1
        clock.advance(wait)
        assert (await ask(client)).status == 200


async def test_a_refused_submit_leaves_nothing_behind(tmp_path: Path) -> None:
    async with a_rest_client(tmp_path, access=AccessSettings(rate_limit=1)) as client:
        assert (await ask(client)).status == 200
        reply = await client.ask("POST", TASKS, {"task_type": "work", "payload": ""})
        assert reply.status == 429
        assert (await client.broker.totals()).counts == []


@pytest.mark.parametrize("path", ["/nowhere", "/api/v1/tasks/x", "/docs", "/openapi.json"])
async def test_every_answer_tells_how_the_limit_stands(tmp_path: Path, path: str) -> None:
    async with a_rest_client(tmp_path, access=LIMITED) as client:
        assert limits(await ask(client, path))[:2] == (5, 4)
        assert limits(await client.ask("PUT", path))[:2] == (5, 3)


async def test_also_answers_to_what_is_no_http_tell_it(tmp_path: Path) -> None:
    async with a_rest_client(tmp_path, access=LIMITED) as client:
        answer = await client.raw(b"GET / HTTP/1.1\r\nbroken header\r\n\r\n")
        assert b"\r\nx-ratelimit-limit: 5\r\n" in answer
        assert b"\r\nx-request-id: " in answer


async def test_health_costs_nothing(tmp_path: Path) -> None:
    async with a_rest_client(tmp_path, access=AccessSettings(rate_limit=1)) as client:
        await ask(client)
        for _ in range(3):
            reply = await ask(client, "/api/v1/health")
            assert (reply.status, limits(reply)[:2]) == (200, (1, 0))


async def test_without_a_limit_there_are_no_such_headers(tmp_path: Path) -> None:
    async with a_rest_client(tmp_path, access=AccessSettings(rate_limit=0)) as client:
        assert not any(name.startswith("x-ratelimit") for name in (await ask(client)).headers)


async def test_a_burst_may_differ_from_the_rate(tmp_path: Path) -> None:
    access = AccessSettings(rate_limit=1, rate_burst=3)
    async with a_rest_client(tmp_path, access=access) as client:
        assert [(await ask(client)).status for _ in range(4)] == [200, 200, 200, 429]


async def test_keys_and_strangers_are_counted_apart(tmp_path: Path) -> None:
    access = AccessSettings(rate_limit=1, bootstrap_key=KEY)
    async with a_rest_client(tmp_path, access=access) as client:
        made = [
            await client.broker.keys.create(
                CreateKeyRequest(name=name, permissions=[Permission.READ_TASKS], rate_limit=rate),
                Caller("192.0.2.1"),
            )
            for name, rate in (("usual", None), ("busy", 3), ("free", 0))
        ]
        statuses = {
            key.name: [
                (await ask(client, Authorization=f"Bearer {secret}")).status for _ in range(4)
            ]
            for key, secret in made
        }
        assert statuses == {
            "usual": [200, 429, 429, 429],
            "busy": [200, 200, 200, 429],
            "free": [200, 200, 200, 200],
        }
        assert [(await ask(client)).status for _ in range(2)] == [401, 429]
        wrong = await ask(client, Authorization="Bearer wrong")
        assert wrong.status == 429  # a stranger with a wrong key is one like any other


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9, 198.51.100.7, 10.0.0.2"], "198.51.100.7"),
        ("10.0.0.1", ["203.0.113.9", "198.51.100.7"], "198.51.100.7"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", ["198.51.100.7, nonsense"], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("fd00::1", ["198.51.100.7"], "198.51.100.7"),
        ("?", ["198.51.100.7"], "?"),
    ],
)
def test_only_a_trusted_proxy_may_speak_for_others(
    peer: str, forwarded: list[str], client: str
) -> None:
    proxies = Proxies("10.0.0.0/8, fd00::/8")
    assert proxies.client(peer, [one.encode() for one in forwarded]) == client


async def test_forwarded_addresses_count_only_where_a_proxy_is_trusted(tmp_path: Path) -> None:
    for trusted, expected in (("", [200, 429]), ("127.0.0.0/8", [200, 200])):
        async with a_rest_client(
            tmp_path,
            access=AccessSettings(rate_limit=1),
            settings=RestSettings(trusted_proxies=trusted),
        ) as client:
            statuses = [
                (await ask(client, X_Forwarded_For=f"198.51.100.{number}")).status
                for number in range(2)
            ]
            assert statuses == expected


async def test_a_request_is_known_by_its_id(tmp_path: Path) -> None:
    async with a_rest_client(tmp_path) as client:
        assert (await ask(client, X_Request_Id="mine-17")).headers["x-request-id"] == "mine-17"
        made = {(await ask(client)).headers["x-request-id"] for _ in range(3)}
        assert len(made) == 3
        for bad in ("x" * 129, "with space", "ünï"):
            assert (await ask(client, X_Request_Id=bad)).headers["x-request-id"] != bad


async def test_web_pages_of_other_origins_are_let_in_only_by_name(tmp_path: Path) -> None:
    page = "https://dashboard.example.org"
    async with a_rest_client(tmp_path) as client:
        assert "access-control-allow-origin" not in (await ask(client, Origin=page)).headers
        preflight = {"Origin": page, "Access-Control-Request-Method": "POST"}
        assert (await client.ask("OPTIONS", TASKS, None, preflight)).status == 405
    settings = RestSettings(cors_origins=f"https://other.example.org, {page}")
    async with a_rest_client(tmp_path, settings=settings) as client:
        reply = await ask(client, Origin=page)
        assert reply.headers["access-control-allow-origin"] == page
        assert "access-control-allow-credentials" not in reply.headers
        stranger = await ask(client, Origin="https://evil.example.org")
        assert "access-control-allow-origin" not in stranger.headers
        assert (await client.ask("OPTIONS", TASKS, None, preflight)).status == 200


async def test_many_at_once_are_counted_exactly(tmp_path: Path) -> None:
    async with a_rest_client(tmp_path, access=AccessSettings(rate_limit=20)) as client:
        replies = await asyncio.gather(*(ask(client) for _ in range(50)))
        assert sorted(reply.status for reply in replies) == [200] * 20 + [429] * 30
