"""The tools that come with Redis, against a broker as users start it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker import BrokerProcess, a_broker_process
from tests.support.redis_tools import redis_benchmark, redis_cli


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with a_broker_process(tmp_path / "data") as process:
        yield process


def port(broker: BrokerProcess) -> int:
    return int(broker.native.rpartition(":")[2])


def ask(broker: BrokerProcess, *words: str) -> str:
    """What redis-cli prints for one command."""
    return redis_cli(port(broker), *words).rstrip("\n")


def ask_map(broker: BrokerProcess, *words: str) -> dict[str, Any]:
    """A map, which redis-cli prints as one value or name a line."""
    lines = ask(broker, *words).split("\n")
    return dict(zip(lines[::2], lines[1::2], strict=False))


def test_a_tasks_life_in_redis_cli(broker: BrokerProcess) -> None:
    assert ask(broker, "PING") == "PONG"
    task_id = ask(broker, "TQ.SUBMIT", "send_email", '{"to": "ada"}', "PRIORITY", "200")
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", task_id)
    assert ask_map(broker, "TQ.STATS")["pending_count"] == "1"
    claimed = ask(broker, "TQ.CLAIM", "w1", "BLOCK", "1000", "TYPES", "send_email").split("\n")
    assert claimed[:7] == [task_id, "1", "send_email", '{"to": "ada"}', "1", "300", "200"]
    assert ask_map(broker, "TQ.GET", task_id)["status"] == "in_progress"
    assert ask(broker, "TQ.COMPLETE", task_id, "1", "RESULT", "sent") == "completed"
    waited = ask_map(broker, "TQ.WAIT", task_id, "1000")
    assert (waited["status"], waited["result"]) == ("completed", "sent")
    listed = ask(broker, "TQ.LIST", "STATUS", "completed").split("\n")
    assert listed[:3] == ["tasks", "task_id", task_id]
    assert ask(broker, "TQ.CLAIM", "w1", "TYPES", "send_email") == ""


def test_errors_in_redis_cli(broker: BrokerProcess) -> None:
    assert ask(broker, "TQ.GET", "rot") == "TASK_NOT_FOUND Task not found"
    error = ask(broker, "TQ.SUBMIT", "work", "x", "PRIORITY", "1_0")
    assert error == "INVALID_REQUEST priority must be a whole number, got '1_0'"
    assert ask(broker, "SET", "key", "value") == "ERR unknown command 'SET'"
    failed = redis_cli(port(broker), "-3", "--no-raw", "TQ.NIX").rstrip("\n")
    assert failed == "(error) ERR unknown command 'TQ.NIX'"


def test_redis_benchmark_submits_and_nothing_is_lost(broker: BrokerProcess) -> None:
    printed = redis_benchmark(
        port(broker), *("-n", "2000", "-c", "20", "-q"), *("TQ.SUBMIT", "bench", "x")
    )
    assert re.search(r"TQ\.SUBMIT bench x: \d+\.\d+ requests per second", printed)
    assert ask_map(broker, "TQ.STATS")["pending_count"] == "2000"
    broker.kill()
    broker.start()
    assert ask_map(broker, "TQ.STATS")["pending_count"] == "2000"


def test_redis_benchmark_claims_what_it_submitted(broker: BrokerProcess) -> None:
    submits = ("-n", "2000", "-c", "20", "-P", "20", "-q", "TQ.SUBMIT", "bench", "x")
    redis_benchmark(port(broker), *submits)
    claims = ("-n", "100", "-c", "20", "-q", "TQ.CLAIM", "w1", "COUNT", "20", "TYPES", "bench")
    redis_benchmark(port(broker), *claims)
    stats = ask_map(broker, "TQ.STATS")
    assert (stats["pending_count"], stats["in_progress_count"]) == ("0", "2000")
    assert ask(broker, "TQ.LEAVE", "w1") == "2000"
