"""The reference's REST API, line by line, against started servers with and without keys."""

import base64
import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.conformance.catalogue import proves
from tests.conformance.served import KEY, Reply, Served, Worker
from tests.support.broker import a_broker_process

TASKS = "/api/v1/tasks"
EXAMPLE_ID = "550e8400-e29b-41d4-a716-446655440000"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")

SUBMIT = """curl -X POST http://localhost:8080/api/v1/tasks \\
  -H "Content-Type: application/json" \\
  -H "Authorization: Bearer my_api_key" \\
  -d '{
    "task_type": "send_email",
    "payload": "eyJlbWFpbCI6ICJ1c2VyQGV4YW1wbGUuY29tIn0=",
    "priority": 200,
    "timeout_seconds": 600,
    "max_retries": 5
  }'"""


def is_error(reply: Reply, status: int, code: str) -> bool:
    """Whether an answer is this error, in the documented form."""
    assert reply.headers["content-type"] == "application/json"
    assert set(reply.json) == {"error", "code", "timestamp"}
    assert reply.json["error"]
    assert TIME.fullmatch(reply.json["timestamp"])
    assert (reply.status, reply.json["code"]) == (status, code), reply
    return True


@proves("submit.example", "auth.optional", "auth.required", "base.url", "get.response")
def test_the_submit_line(server: Served) -> None:
    status, body = server.curl(SUBMIT)
    answer = json.loads(body)
    assert (status, answer["status"]) == (201, "pending")
    task = server.task(answer["task_id"])
    shown = task["priority"], task["timeout_seconds"], task["max_retries"], task["task_type"]
    assert shown == (200, 600, 5, "send_email")
    documented = (
        "task_id status created_at updated_at task_type priority worker_id result error "
        "retry_count timeout_seconds"
    )
    assert set(documented.split()) <= set(task)


@proves("get.example", "get.404", "error.TASK_NOT_FOUND", "error.format", "list.example")
@proves("cancel.example", "cancel.404", "stats.example")
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"curl http://localhost:8080/api/v1/tasks/{EXAMPLE_ID}", 404),
        ("curl 'http://localhost:8080/api/v1/tasks?status=completed&limit=50'", 200),
        (f"curl -X DELETE http://localhost:8080/api/v1/tasks/{EXAMPLE_ID}", 404),
        ("curl http://localhost:8080/api/v1/stats", 200),
    ],
)
def test_the_other_curl_lines(server: Served, line: str, expected: int) -> None:
    status, body = server.curl(line)
    assert status == expected
    if status == 404:
        assert json.loads(body)["code"] == "TASK_NOT_FOUND"
        assert json.loads(body)["error"] == "Task not found"


@proves("get.example", "cancel.example", "cancel.204")
def test_the_lines_about_one_task_with_its_real_id(server: Served) -> None:
    task_id = server.submit()
    status, body = server.curl(f"curl http://localhost:8080/api/v1/tasks/{task_id}")
    assert (status, json.loads(body)["task_id"]) == (200, task_id)
    assert server.curl(f"curl -X DELETE http://localhost:8080/api/v1/tasks/{task_id}") == (204, "")
    assert server.task(task_id)["status"] == "cancelled"


@proves("auth.required", "get.401", "error.AUTHENTICATION_FAILED")
@pytest.mark.parametrize("path", [TASKS, f"{TASKS}/{EXAMPLE_ID}", "/api/v1/stats"])
def test_an_invalid_key_is_401(closed_server: Served, path: str) -> None:
    stranger = Served(closed_server.broker)
    assert is_error(stranger.ask("GET", path), 401, "AUTHENTICATION_FAILED")
    assert is_error(stranger.ask("GET", path, key="wrong"), 401, "AUTHENTICATION_FAILED")


@proves("cancel.403")
def test_a_key_without_the_permission_is_403(closed_server: Served) -> None:
    body = {"name": f"reader-{uuid.uuid4()}", "permissions": ["read_tasks"]}
    key = closed_server.ask("POST", "/api/v1/keys", body).json["key"]
    task_id = closed_server.submit()
    reply = closed_server.ask("DELETE", f"{TASKS}/{task_id}", key=key)
    assert is_error(reply, 403, "PERMISSION_DENIED")
    assert closed_server.task(task_id)["status"] == "pending"


@proves("content.type")
def test_everything_is_json(server: Served) -> None:
    task_id = server.submit()
    for path in (TASKS, f"{TASKS}/{task_id}", "/api/v1/stats", "/api/v1/health", "/nowhere"):
        assert server.ask("GET", path).headers["content-type"] == "application/json"
    refused = server.ask("POST", TASKS, b"task_type=t", Content_Type="text/plain")
    assert refused.status == 415


@proves("submit.request", "submit.response")
def test_a_submit_with_all_documented_fields(server: Served) -> None:
    reply = server.ask(
        "POST",
        TASKS,
        {
            "task_type": "send_email",
            "payload": "ZGF0YQ==",
            "priority": 150,
            "schedule_at": "2024-01-01T12:00:00Z",
            "timeout_seconds": 300,
            "max_retries": 3,
        },
    )
    assert reply.status == 201
    assert set(reply.json) == {"task_id", "status", "created_at"}
    assert reply.json["status"] == "pending"
    assert str(uuid.UUID(reply.json["task_id"])) == reply.json["task_id"]
    assert TIME.fullmatch(reply.json["created_at"])


@proves("submit.priority", "submit.timeout_seconds", "submit.max_retries")
def test_the_defaults_of_a_submit(server: Served) -> None:
    task = server.task(server.submit())
    assert (task["priority"], task["timeout_seconds"], task["max_retries"]) == (100, 300, 3)


@proves("submit.priority", "submit.max_retries", "submit.payload", "submit.task_type", "submit.400")
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"priority": 0}, 201),
        ({"priority": 255}, 201),
        ({"priority": -1}, 400),
        ({"priority": 256}, 400),
        ({"max_retries": 0}, 201),
        ({"max_retries": -1}, 400),
        ({"timeout_seconds": 0}, 400),
        ({"timeout_seconds": 1}, 201),
        ({"payload": "not base64!"}, 400),
        ({"payload": None}, 400),
        ({"task_type": None}, 400),
        ({"task_type": ""}, 400),
        ({"payload": ""}, 201),
        ({"nonsense": 1}, 400),
        ({"schedule_at": "tomorrow"}, 400),
    ],
)
def test_the_limits_of_a_submit(server: Served, fields: dict[str, object], status: int) -> None:
    body = {"task_type": "limits", "payload": "eA==", **fields}
    sent = {name: value for name, value in body.items() if value is not None}
    reply = server.ask("POST", TASKS, sent)
    if status == 400:
        assert is_error(reply, 400, "INVALID_REQUEST")
        assert any(name in reply.json["error"] for name in fields)
    else:
        assert reply.status == status


@proves("submit.payload")
def test_a_payload_has_ten_megabytes_and_not_a_byte_more(open_server: Served) -> None:
    for size, status in ((10 * 2**20, 201), (10 * 2**20 + 1, 413)):
        payload = base64.b64encode(b"x" * size).decode()
        reply = open_server.ask("POST", TASKS, {"task_type": "large", "payload": payload})
        assert reply.status == status
    assert reply.json["code"] == "PAYLOAD_TOO_LARGE"


@proves("submit.schedule_at")
def test_a_scheduled_task_waits_for_its_time(server: Served, worker: Worker) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=1)
    later = server.submit(task_type="at", schedule_at=moment.isoformat())
    past = server.submit(task_type="at", schedule_at="2024-01-01T12:00:00")
    assert worker.claim("at")[0] == past
    assert worker.claim("at")[0] == later
    assert datetime.now(UTC) >= moment


@proves("status.pending", "status.in_progress", "status.completed", "cancel.409")
@proves("error.INVALID_STATUS")
def test_the_life_of_a_task_that_succeeds(server: Served, worker: Worker) -> None:
    task_id = server.submit(task_type="good")
    assert server.task(task_id)["status"] == "pending"
    claim = worker.claim("good")
    task = server.task(task_id)
    assert (task["status"], task["worker_id"]) == ("in_progress", "worker-1-12345")
    assert is_error(server.ask("DELETE", f"{TASKS}/{task_id}"), 409, "INVALID_STATUS")
    worker.complete(claim, b"done")
    task = server.task(task_id)
    assert (task["status"], task["result"], task["error"]) == ("completed", "ZG9uZQ==", None)
    assert is_error(server.ask("DELETE", f"{TASKS}/{task_id}"), 409, "INVALID_STATUS")


@proves("status.failed", "status.dead_letter")
def test_the_life_of_a_task_that_fails(server: Served, worker: Worker) -> None:
    task_id = server.submit(task_type="bad", max_retries=1)
    worker.fail(worker.claim("bad"), "out of paper", "DELAY", 0)
    task = server.task(task_id)
    assert (task["status"], task["retry_count"], task["error"]) == ("failed", 1, "out of paper")
    worker.fail(worker.claim("bad"), "out of ink")
    task = server.task(task_id)
    assert (task["status"], task["error"]) == ("dead_letter", "out of ink")


@proves("list.status", "list.task_type", "list.response")
@pytest.mark.parametrize(
    "status", ["pending", "in_progress", "completed", "failed", "dead_letter", "cancelled"]
)
def test_lists_filter_by_status_and_type(server: Served, worker: Worker, status: str) -> None:
    task_type = f"listed-{uuid.uuid4()}"
    task_id = server.submit(task_type=task_type, max_retries=int(status == "failed"))
    match status:
        case "in_progress":
            worker.claim(task_type)
        case "completed":
            worker.complete(worker.claim(task_type))
        case "failed" | "dead_letter":
            worker.fail(worker.claim(task_type), "no")
        case "cancelled":
            server.ask("DELETE", f"{TASKS}/{task_id}")
    page = server.ask("GET", f"{TASKS}?status={status}&task_type={task_type}").json
    assert [task["task_id"] for task in page["tasks"]] == [task_id]
    documented = {"task_id", "status", "task_type", "priority", "created_at", "updated_at"}
    assert documented <= set(page["tasks"][0])
    assert (page["total"], page["limit"], page["offset"]) == (1, 100, 0)
    others = {"pending", "completed", "failed"} - {status}
    for other in others:
        found = server.ask("GET", f"{TASKS}?status={other}&task_type={task_type}").json
        assert (found["tasks"], found["total"]) == ([], 0)


@proves("list.limit", "list.offset")
def test_lists_are_paged(server: Served) -> None:
    task_type = f"paged-{uuid.uuid4()}"
    batch = {"tasks": [{"task_type": task_type, "payload": ""}] * 150}
    results = server.ask("POST", f"{TASKS}/batch", batch).json["results"]
    newest_first = [result["task_id"] for result in reversed(results)]

    def listed(query: str) -> list[str]:
        page = server.ask("GET", f"{TASKS}?task_type={task_type}{query}").json
        assert page["total"] == 150
        return [task["task_id"] for task in page["tasks"]]

    assert listed("") == newest_first[:100]
    assert listed("&limit=1000") == newest_first
    assert listed("&limit=10&offset=145") == newest_first[145:]
    for query in ("limit=0", "limit=1001", "limit=abc", "offset=-1", "status=nonsense"):
        assert is_error(server.ask("GET", f"{TASKS}?{query}"), 400, "INVALID_REQUEST")


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Served]:
    """A server of one's own, with the default limits."""
    with a_broker_process(tmp_path / "data") as broker:
        yield Served(broker)


@proves("stats.response", "stats.tiers")
def test_statistics_are_true(fresh: Served) -> None:
    worker = fresh.worker()
    for priority in (250, 200, 150, 100, 99):
        fresh.submit(priority=priority)
    fresh.submit(task_type="done", priority=10)
    fresh.submit(task_type="wrong", max_retries=0)
    worker.complete(worker.claim("done"))
    worker.fail(worker.claim("wrong"), "no")
    worker.claim("t")
    worker.close()
    stats = fresh.ask("GET", "/api/v1/stats").json
    assert stats.pop("avg_processing_time_ms") >= 0
    assert stats == {
        "pending_count": 4,
        "in_progress_count": 1,
        "completed_last_hour": 1,
        "failed_last_hour": 1,
        "worker_count": 1,
        "queue_depth_by_priority": {"high": 1, "normal": 2, "low": 1},
    }


@proves("health.response", "health.healthy")
def test_a_healthy_broker_says_so_to_everybody(server: Served) -> None:
    for key in (None, "wrong"):
        reply = Served(server.broker).ask("GET", "/api/v1/health", key=key)
        assert reply.status == 200
        documented = {"status", "is_leader", "connected_workers", "pending_tasks"}
        assert set(reply.json) == documented | {"cluster_healthy"}
        assert (reply.json["status"], reply.json["is_leader"]) == ("healthy", True)


@proves("health.degraded", "submit.503", "error.BROKER_UNAVAILABLE")
def test_a_broker_that_cannot_commit_is_degraded(fresh: Served) -> None:
    database = fresh.broker.folder / "queue.db"
    if not database.exists():
        [database] = fresh.broker.folder.glob("*.db")
    database.rename(database.with_suffix(".gone"))
    reply = fresh.ask("POST", TASKS, {"task_type": "t", "payload": ""})
    assert is_error(reply, 503, "BROKER_UNAVAILABLE")
    assert int(reply.headers["retry-after"]) >= 1
    health = fresh.ask("GET", "/api/v1/health")
    assert (health.status, health.json["status"]) == (503, "degraded")
    assert health.json["cluster_healthy"] is False
    database.with_suffix(".gone").rename(database)


@proves("metrics.format", "metrics.tasks_total", "metrics.pending", "metrics.duration")
def test_the_documented_metrics(fresh: Served) -> None:
    worker = fresh.worker()
    fresh.submit(task_type="send_email")
    worker.complete(worker.claim("send_email"))
    worker.close()
    fresh.submit(task_type="send_email")
    reply = fresh.ask("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain")
    lines = reply.body.decode().splitlines()
    for line in (
        "# HELP tq_tasks_total Total tasks submitted",
        "# TYPE tq_tasks_total counter",
        'tq_tasks_total{status="completed",task_type="send_email"} 1.0',
        "# HELP tq_tasks_pending Current pending tasks",
        "# TYPE tq_tasks_pending gauge",
        "tq_tasks_pending 1.0",
        "# HELP tq_task_processing_duration_seconds Task execution duration",
        "# TYPE tq_task_processing_duration_seconds histogram",
    ):
        assert line in lines
    bucket = 'tq_task_processing_duration_seconds_bucket{le="0.1",task_type="send_email"} 1.0'
    assert bucket in lines


@proves("submit.503", "error.QUEUE_DEPTH_EXCEEDED")
def test_a_full_queue_is_503(tmp_path: Path) -> None:
    settings = tmp_path / "tq.toml"
    settings.write_text("[broker]\nmax_pending = 1\n")
    with a_broker_process(tmp_path / "data", "--config", str(settings)) as broker:
        served = Served(broker)
        served.submit()
        reply = served.ask("POST", TASKS, {"task_type": "t", "payload": ""})
        assert is_error(reply, 503, "QUEUE_DEPTH_EXCEEDED")
        assert int(reply.headers["retry-after"]) >= 1


@proves("limit.rate", "limit.headers", "limit.retry_after", "submit.429")
@proves("error.RATE_LIMIT_EXCEEDED")
def test_the_rate_limit(fresh: Served) -> None:
    first = fresh.ask("GET", "/api/v1/stats")
    assert first.headers["x-ratelimit-limit"] == "100"
    assert first.headers["x-ratelimit-remaining"] == "99"
    assert abs(int(first.headers["x-ratelimit-reset"]) - time.time()) < 5
    body = {"task_type": "t", "payload": ""}
    begun = time.monotonic()
    with ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: fresh.ask("POST", TASKS, body), range(400)))
    seconds = time.monotonic() - begun
    let_in = sum(reply.status == 201 for reply in replies)
    assert 99 <= let_in <= 100 + 100 * seconds + 1
    refused = [reply for reply in replies if reply.status != 201]
    for reply in refused:
        assert is_error(reply, 429, "RATE_LIMIT_EXCEEDED")
        assert reply.headers["x-ratelimit-remaining"] == "0"
    if refused:
        threading.Event().wait(float(refused[-1].headers["retry-after"]))
        assert fresh.ask("POST", TASKS, body).status == 201
    total = fresh.ask("GET", "/api/v1/stats").json["pending_count"]
    assert total == let_in + bool(refused)


@proves("limit.rate")
def test_each_key_has_a_limit_of_its_own(tmp_path: Path) -> None:
    settings = tmp_path / "tq.toml"
    settings.write_text(f'[access]\nbootstrap_key = "{KEY}"\nrate_limit = 2\n')
    with a_broker_process(tmp_path / "data", "--config", str(settings)) as broker:
        served = Served(broker, KEY)
        keys = [
            served.ask("POST", "/api/v1/keys", {"name": name, "permissions": ["read_tasks"]}).json[
                "key"
            ]
            for name in ("a", "b")
        ]
        for key in keys:
            statuses = [served.ask("GET", "/api/v1/stats", key=key).status for _ in range(5)]
            assert statuses[:2] == [200, 200]
            assert 429 in statuses


@proves("error.INTERNAL_ERROR")
def test_an_unexpected_error_is_told_without_its_insides(tmp_path: Path) -> None:
    with a_broker_process(tmp_path / "data") as broker:
        task_id = Served(broker).submit(payload=base64.b64encode(b"whole").decode())
        worker = Served(broker).worker()
        worker.complete(worker.claim(), b"the result that is to be damaged")
        worker.close()
    [database] = (tmp_path / "data").glob("*.db")
    data = database.read_bytes()
    assert b"the result that is to be damaged" in data
    database.write_bytes(data.replace(b"the result that", b"the rezult that"))
    with a_broker_process(tmp_path / "data") as broker:
        reply = Served(broker).ask("GET", f"{TASKS}/{task_id}")
        assert is_error(reply, 500, "INTERNAL_ERROR")
        assert "Traceback" not in reply.json["error"]


@proves("version.path")
def test_every_operation_is_under_v1(server: Served) -> None:
    paths = server.ask("GET", "/openapi.json").json["paths"]
    pages = {"/metrics", "/openapi.json", "/docs"}
    assert all(path.startswith("/api/v1/") for path in paths if path not in pages)
    assert is_error(server.ask("GET", "/api/v2/tasks"), 404, "NOT_FOUND")


@proves("version.deprecation")
def test_what_is_not_deprecated_does_not_say_so(server: Served) -> None:
    # That a deprecated one does: tests/contract/doors/test_deprecation.py, with a sample.
    headers = server.ask("GET", "/api/v1/stats").headers
    assert not {"deprecation", "sunset", "warning"} & headers.keys()
