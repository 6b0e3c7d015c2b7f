"""The reference's rate limit, against servers with the limits they have by default."""

import threading
import time
from pathlib import Path
from typing import Any

import grpc

from tests.conformance.catalogue import proves
from tests.conformance.grpcurl import Refused
from tests.conformance.served import EXAMPLE_ID, TASKS, Served, a_closed_server

MISSING = f"{TASKS}/{EXAMPLE_ID}"
TRIES = 20


def exhaust(served: Served, key: str | None = None) -> None:
    """Send requests until one is refused for their number."""
    assert any(429 in served.flood(MISSING, 300, key) for _ in range(TRIES))


def flood_over_grpc(served: Served, times: int) -> list[Refused]:
    """The refusals of many calls sent at once, over one connection."""
    with grpc.insecure_channel(served.broker.grpc) as channel:
        make: Any = channel.unary_unary
        ask = make("/taskqueue.TaskQueue/GetStats")
        calls = [ask.future(b"", timeout=20) for _ in range(times)]
        errors = [call.exception() for call in calls]
    return [Refused(error) for error in errors if error is not None]


@proves("limit.rate", "limit.headers")
def test_a_hundred_requests_are_let_in_at_once_and_then_a_hundred_a_second(fresh: Served) -> None:
    begun = time.monotonic()
    statuses = fresh.flood(MISSING, 400)
    seconds = time.monotonic() - begun
    let_in = statuses.count(404)
    assert (len(statuses), let_in + statuses.count(429)) == (400, 400)
    assert statuses[:100] == [404] * 100
    assert let_in <= 100 + 100 * seconds + 1


@proves("limit.headers")
def test_the_headers_tell_how_the_limit_stands(fresh: Served) -> None:
    now = int(time.time())
    body = {"task_type": "t", "payload": ""}
    for reply in (
        fresh.ask("POST", TASKS, body),
        fresh.ask("GET", TASKS),
        fresh.ask("GET", MISSING),
        fresh.ask("DELETE", MISSING),
        fresh.ask("GET", "/api/v1/stats"),
        fresh.ask("POST", TASKS, {}),
    ):
        assert reply.headers["x-ratelimit-limit"] == "100"
        assert 90 <= int(reply.headers["x-ratelimit-remaining"]) <= 99
        assert now <= int(reply.headers["x-ratelimit-reset"]) <= int(time.time()) + 2


@proves("limit.retry_after", "limit.headers", "submit.429", "error.RATE_LIMIT_EXCEEDED")
@proves("error.format")
def test_beyond_the_limit_it_is_429_until_the_time_that_retry_after_names(fresh: Served) -> None:
    body = {"task_type": "t", "payload": ""}
    for _ in range(TRIES):
        exhaust(fresh)
        refused = fresh.ask("POST", TASKS, body)
        if refused.status == 429:
            break
    assert refused.is_error(429, "RATE_LIMIT_EXCEEDED")
    assert refused.headers["x-ratelimit-limit"] == "100"
    assert refused.headers["x-ratelimit-remaining"] == "0"
    assert int(refused.headers["retry-after"]) == 1
    before = int(str(fresh.broker.health()["pending_tasks"]))
    threading.Event().wait(int(refused.headers["retry-after"]))
    assert fresh.ask("POST", TASKS, body).status == 201
    assert fresh.broker.health()["pending_tasks"] == before + 1  # what was refused was not done


@proves("limit.rate")
def test_each_key_has_a_limit_of_its_own(tmp_path: Path) -> None:
    with a_closed_server(tmp_path / "data") as served:
        first, second = served.limited_key("read_tasks"), served.limited_key("read_tasks")
        exhaust(served, first)
        reply = served.ask("GET", "/api/v1/stats", key=second)
        assert reply.status == 200
        assert reply.headers["x-ratelimit-remaining"] == "99"


@proves("limit.grpc", "grpc.error.RATE_LIMIT_EXCEEDED", "limit.headers", "limit.retry_after")
def test_the_limit_over_grpc(fresh: Served) -> None:
    refusals = flood_over_grpc(fresh, 400)
    assert 1 <= len(refusals) <= 300
    for refused in refusals:
        shown = refused.status, refused.code
        assert shown == ("RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED")
        assert refused.metadata["x-ratelimit-limit"] == "100"
        assert refused.metadata["x-ratelimit-remaining"] == "0"
        assert abs(int(refused.metadata["x-ratelimit-reset"]) - time.time()) < 60
        assert b"google.rpc.RetryInfo" in refused.metadata["grpc-status-details-bin"]
