"""The reference's REST API, line by line, against started servers with and without keys."""

import base64
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conformance.catalogue import proves
from tests.conformance.served import EXAMPLE_ID, TASKS, TIME, Served, Worker

ENDPOINTS = [
    ("POST", TASKS, 201),
    ("GET", f"{TASKS}/{EXAMPLE_ID}", 404),
    ("GET", TASKS, 200),
    ("DELETE", f"{TASKS}/{EXAMPLE_ID}", 404),
    ("GET", "/api/v1/stats", 200),
    ("GET", "/api/v1/health", 200),
    ("GET", "/metrics", 200),
]
OPEN_TO_ALL = ("/api/v1/health", "/metrics")


def body_for(method: str) -> object:
    """What an endpoint is to be sent."""
    return {"task_type": "t", "payload": ""} if method == "POST" else None


@proves("base.ports")
def test_the_ports_are_the_documented_ones(tmp_path: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "taskqueue.cli.main", "config", "show"],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
        cwd=tmp_path,  # where there is no tq.toml
    ).stdout
    settings = dict(line.split("\t", 1) for line in shown.splitlines())
    ports = [settings[f"{door}.listen"].rpartition(":")[2] for door in ("http", "grpc", "native")]
    assert ports == ["8080", "9090", "6379"]


@proves("auth.optional")
@pytest.mark.parametrize(("method", "path", "status"), ENDPOINTS)
@pytest.mark.parametrize("key", [None, "my_api_key"])
def test_a_key_may_be_sent_and_need_not(
    open_server: Served, method: str, path: str, status: int, key: str | None
) -> None:
    assert open_server.ask(method, path, body_for(method), key=key).status == status


@proves("auth.required", "get.401", "error.AUTHENTICATION_FAILED")
@pytest.mark.parametrize(("method", "path", "status"), ENDPOINTS)
def test_where_a_key_is_required_it_opens_every_endpoint_and_none_is_open_without(
    closed_server: Served, method: str, path: str, status: int
) -> None:
    assert closed_server.ask(method, path, body_for(method)).status == status
    refused = Served(closed_server.broker).ask(method, path, body_for(method))
    if path in OPEN_TO_ALL:
        assert refused.status == 200
    else:
        assert refused.is_error(401, "AUTHENTICATION_FAILED")


@proves("get.401", "error.AUTHENTICATION_FAILED")
def test_an_invalid_key_is_401(closed_server: Served) -> None:
    reply = closed_server.ask("GET", f"{TASKS}/{EXAMPLE_ID}", key="tq_invalid")
    assert reply.is_error(401, "AUTHENTICATION_FAILED")


@proves("cancel.403")
def test_a_key_without_the_permission_is_403(closed_server: Served) -> None:
    key = closed_server.limited_key("read_tasks")
    task_id = closed_server.submit()
    reply = closed_server.ask("DELETE", f"{TASKS}/{task_id}", key=key)
    assert reply.is_error(403, "PERMISSION_DENIED")
    assert closed_server.ask("GET", f"{TASKS}/{task_id}", key=key).json["status"] == "pending"


@proves("content.type", "error.format")
def test_everything_is_json(server: Served) -> None:
    task_id = server.submit()
    for path in (TASKS, f"{TASKS}/{task_id}", "/api/v1/stats", "/api/v1/health"):
        reply = server.ask("GET", path)
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    assert server.ask("GET", "/nowhere").is_error(404, "NOT_FOUND")
    text = server.ask("POST", TASKS, b"task_type=t", Content_Type="text/plain")
    assert text.is_error(415, "UNSUPPORTED_MEDIA_TYPE")


PRINTED_BODY = {
    "task_type": "send_email",
    "payload": "base64-encoded-binary-data",
    "priority": 150,
    "schedule_at": "2024-01-01T12:00:00Z",
    "timeout_seconds": 300,
    "max_retries": 3,
}


@proves("submit.request", "submit.response")
def test_a_submit_with_all_documented_fields(server: Served) -> None:
    reply = server.ask("POST", TASKS, PRINTED_BODY | {"payload": "ZGF0YQ=="})
    assert reply.status == 201
    assert set(reply.json) == {"task_id", "status", "created_at"}
    assert reply.json["status"] == "pending"
    assert str(uuid.UUID(reply.json["task_id"])) == reply.json["task_id"]
    assert TIME.fullmatch(reply.json["created_at"])
    task = server.task(reply.json["task_id"])
    kept = PRINTED_BODY.keys() - {"payload", "schedule_at"}  # a time in the past means now
    assert {name: task[name] for name in kept} == {name: PRINTED_BODY[name] for name in kept}


@proves("submit.payload", "submit.400")
def test_the_stand_in_for_a_payload_in_the_printed_body_is_no_base64(server: Served) -> None:
    # The text says base64 and the printed body has words in its place: here the text holds.
    reply = server.ask("POST", TASKS, PRINTED_BODY)
    assert reply.is_error(400, "INVALID_REQUEST")
    assert "payload" in reply.json["error"]


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
        ({"priority": "150"}, 400),
        ({"priority": 1.5}, 400),
        ({"priority": True}, 400),
        ({"max_retries": "3"}, 400),
        ({"timeout_seconds": -1}, 400),
        ({"task_type": 7}, 400),
        ({"payload": 7}, 400),
        ({"payload": "eA"}, 400),
    ],
)
def test_the_limits_of_a_submit(server: Served, fields: dict[str, object], status: int) -> None:
    body = {"task_type": "limits", "payload": "eA==", **fields}
    sent = {name: value for name, value in body.items() if value is not None}
    reply = server.ask("POST", TASKS, sent)
    if status == 400:
        assert reply.is_error(400, "INVALID_REQUEST")
        assert any(name in reply.json["error"] for name in fields)
    else:
        assert reply.status == status


@proves("submit.400", "error.format")
@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'"task"', b"\xff"])
def test_a_body_that_is_no_task_is_400(server: Served, body: bytes) -> None:
    assert server.ask("POST", TASKS, body).is_error(400, "INVALID_REQUEST")


@proves("submit.priority")
def test_a_task_of_higher_priority_is_executed_first(server: Served, worker: Worker) -> None:
    task_type = f"ranked-{uuid.uuid4()}"
    made = {rank: server.submit(task_type=task_type, priority=rank) for rank in (0, 255, 100)}
    claimed = [worker.claim(task_type)[0] for _ in made]
    assert claimed == [made[255], made[100], made[0]]


@proves("submit.timeout_seconds", "status.failed")
def test_an_attempt_that_takes_too_long_has_failed(server: Served, worker: Worker) -> None:
    task_id = server.submit(task_type="slow", timeout_seconds=1, max_retries=0)
    worker.claim("slow")
    task = server.ask("GET", f"{TASKS}/{task_id}?wait=15").json
    assert task["status"] == "dead_letter"
    assert task["error"]


@proves("submit.max_retries", "status.dead_letter")
def test_three_retries_follow_the_first_attempt(server: Served, worker: Worker) -> None:
    task_id = server.submit(task_type="stubborn")
    statuses = []
    for _ in range(4):
        worker.fail(worker.claim("stubborn"), "no", "DELAY", 0)
        statuses.append(server.task(task_id)["status"])
    assert statuses == ["failed", "failed", "failed", "dead_letter"]


@proves("submit.payload")
def test_a_payload_has_ten_megabytes_and_not_a_byte_more(open_server: Served) -> None:
    for size, status in ((10 * 2**20, 201), (10 * 2**20 + 1, 413)):
        payload = base64.b64encode(b"x" * size).decode()
        reply = open_server.ask("POST", TASKS, {"task_type": "large", "payload": payload})
        assert reply.status == status
    assert reply.is_error(413, "PAYLOAD_TOO_LARGE")


@proves("submit.payload")
@pytest.mark.parametrize("payload", [b"", b"\x00\xff\xfe", bytes(range(256))])
def test_a_payload_reaches_the_worker_as_it_was(
    server: Served, worker: Worker, payload: bytes
) -> None:
    task_type = f"bytes-{uuid.uuid4()}"
    server.submit(task_type=task_type, payload=base64.b64encode(payload).decode())
    [[_, _, _, received, *_]] = worker.call("TQ.CLAIM", "w", "BLOCK", 5000, "TYPES", task_type)
    assert received == payload


@proves("submit.schedule_at")
def test_a_scheduled_task_waits_for_its_time(server: Served, worker: Worker) -> None:
    moment = datetime.now(UTC) + timedelta(seconds=1)
    later = server.submit(task_type="at", schedule_at=moment.isoformat())
    past = server.submit(task_type="at", schedule_at="2024-01-01T12:00:00Z")
    assert worker.claim("at")[0] == past
    assert worker.claim("at")[0] == later
    assert datetime.now(UTC) >= moment


@proves("submit.schedule_at")
def test_a_time_without_an_offset_is_utc_and_one_with_it_is_meant_so(server: Served) -> None:
    moment = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)
    in_delhi = moment.astimezone(timezone(timedelta(hours=5, minutes=30)))
    for written in (moment.replace(tzinfo=None), moment, in_delhi):
        task = server.task(server.submit(task_type="tomorrow", schedule_at=written.isoformat()))
        assert datetime.fromisoformat(task["schedule_at"]) == moment
        assert task["status"] == "pending"


@proves("status.pending", "status.in_progress", "status.completed", "cancel.409")
@proves("error.INVALID_STATUS", "error.format")
def test_the_life_of_a_task_that_succeeds(server: Served, worker: Worker) -> None:
    task_id = server.submit(task_type="good")
    assert server.task(task_id)["status"] == "pending"
    claim = worker.claim("good")
    task = server.task(task_id)
    assert (task["status"], task["worker_id"]) == ("in_progress", "worker-1-12345")
    assert server.ask("DELETE", f"{TASKS}/{task_id}").is_error(409, "INVALID_STATUS")
    worker.complete(claim, b"done")
    task = server.task(task_id)
    assert (task["status"], task["result"], task["error"]) == ("completed", "ZG9uZQ==", None)
    assert server.ask("DELETE", f"{TASKS}/{task_id}").is_error(409, "INVALID_STATUS")


@proves("status.failed", "status.dead_letter")
def test_the_life_of_a_task_that_fails(server: Served, worker: Worker) -> None:
    task_id = server.submit(task_type="bad", max_retries=1)
    worker.fail(worker.claim("bad"), "out of paper", "DELAY", 0)
    task = server.task(task_id)
    assert (task["status"], task["retry_count"], task["error"]) == ("failed", 1, "out of paper")
    worker.fail(worker.claim("bad"), "out of ink")
    task = server.task(task_id)
    assert (task["status"], task["error"]) == ("dead_letter", "out of ink")


@proves("cancel.204", "cancel.404", "cancel.409", "status.cancelled", "error.TASK_NOT_FOUND")
def test_a_task_is_cancelled_once_while_it_waits(server: Served, worker: Worker) -> None:
    waiting, failed = server.submit(task_type="c"), server.submit(task_type="d")
    worker.fail(worker.claim("d"), "no", "DELAY", 3600)
    for task_id in (waiting, failed):
        reply = server.ask("DELETE", f"{TASKS}/{task_id}")
        assert (reply.status, reply.body) == (204, b"")
        assert server.task(task_id)["status"] == "cancelled"
        assert server.ask("DELETE", f"{TASKS}/{task_id}").is_error(409, "INVALID_STATUS")
    for unknown in (uuid.uuid4(), "no-uuid"):
        assert server.ask("DELETE", f"{TASKS}/{unknown}").is_error(404, "TASK_NOT_FOUND")
        assert server.ask("GET", f"{TASKS}/{unknown}").is_error(404, "TASK_NOT_FOUND")


@proves("list.status", "list.task_type", "list.response", "status.cancelled")
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
    for other in {"pending", "completed", "failed"} - {status}:
        found = server.ask("GET", f"{TASKS}?status={other}&task_type={task_type}").json
        assert (found["tasks"], found["total"]) == ([], 0)


@proves("list.limit", "list.offset")
def test_lists_are_paged(server: Served) -> None:
    task_type = f"paged-{uuid.uuid4()}"
    batch = {"tasks": [{"task_type": task_type, "payload": ""}] * 1000}
    results = server.ask("POST", f"{TASKS}/batch", batch).json["results"]
    ids = [*(result["task_id"] for result in results), server.submit(task_type=task_type)]
    newest_first = ids[::-1]

    def listed(query: str) -> list[str]:
        page = server.ask("GET", f"{TASKS}?task_type={task_type}{query}").json
        assert page["total"] == 1001
        return [task["task_id"] for task in page["tasks"]]

    assert listed("") == newest_first[:100]
    assert listed("&offset=0") == newest_first[:100]
    assert listed("&limit=1000") == newest_first[:1000]
    assert listed("&limit=10&offset=145") == newest_first[145:155]
    assert listed("&limit=10&offset=995") == newest_first[995:]
    assert listed("&offset=1001") == []
    for query in ("limit=0", "limit=1001", "limit=abc", "offset=-1", "status=nonsense"):
        assert server.ask("GET", f"{TASKS}?{query}").is_error(400, "INVALID_REQUEST")


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
    mean = stats.pop("avg_processing_time_ms")
    assert isinstance(mean, float)
    assert mean > 0
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
        assert reply.json["cluster_healthy"] is True


@proves("health.response")
def test_health_counts_workers_and_pending_tasks(fresh: Served) -> None:
    for _ in range(3):
        fresh.submit()
    worker = fresh.worker()
    worker.claim()
    health = fresh.ask("GET", "/api/v1/health").json
    worker.close()
    assert (health["pending_tasks"], health["connected_workers"]) == (2, 1)


@proves("metrics.format", "metrics.tasks_total", "metrics.pending", "metrics.duration")
def test_the_documented_metrics(fresh: Served) -> None:
    worker = fresh.worker()
    fresh.submit(task_type="send_email")
    worker.complete(worker.claim("send_email"))
    worker.close()
    fresh.submit(task_type="send_email")
    reply = fresh.ask("GET", "/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    text = reply.body.decode()
    lines = text.splitlines()
    for line in (
        "# HELP tq_tasks_total Total tasks submitted",
        "# TYPE tq_tasks_total counter",
        "# HELP tq_tasks_pending Current pending tasks",
        "# TYPE tq_tasks_pending gauge",
        "# HELP tq_task_processing_duration_seconds Task execution duration",
        "# TYPE tq_task_processing_duration_seconds histogram",
    ):
        assert line in lines
    for sample in (
        'tq_tasks_total{status="completed",task_type="send_email"} ',
        "tq_tasks_pending ",
        'tq_task_processing_duration_seconds_bucket{le="0.1",task_type="send_email"} ',
    ):
        assert any(line.startswith(sample) for line in lines), sample
    families = text_string_to_metric_families(text)
    values = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
    email = ("task_type", "send_email")
    assert values["tq_tasks_total", ("status", "completed"), email] == 1
    assert values["tq_tasks_total", ("status", "pending"), email] == 2
    assert values[("tq_tasks_pending",)] == 1
    assert values["tq_task_processing_duration_seconds_bucket", ("le", "+Inf"), email] == 1
    assert values["tq_task_processing_duration_seconds_count", email] == 1


@proves("version.path")
def test_every_operation_is_under_v1(server: Served) -> None:
    paths = server.ask("GET", "/openapi.json").json["paths"]
    pages = {"/metrics", "/openapi.json", "/docs"}
    assert all(path.startswith("/api/v1/") for path in paths if path not in pages)
    assert server.ask("GET", "/api/v2/tasks").is_error(404, "NOT_FOUND")


@proves("version.deprecation")
def test_what_is_not_deprecated_does_not_say_so(server: Served) -> None:
    # That a deprecated one does: tests/contract/doors/test_deprecation.py, with a sample.
    headers = server.ask("GET", "/api/v1/stats").headers
    assert not {"deprecation", "sunset", "warning"} & headers.keys()
