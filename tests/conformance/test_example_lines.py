"""The reference's printed lines and answers, run as they are printed, with and without keys."""

import json
from typing import Any

import pytest

from tests.conformance.catalogue import proves
from tests.conformance.grpcurl import Refused, follow, grpcurl
from tests.conformance.served import EXAMPLE_ID, TASKS, TIME, Served

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
GET = "curl http://localhost:8080/api/v1/tasks/550e8400-e29b-41d4-a716-446655440000"
LIST = "curl 'http://localhost:8080/api/v1/tasks?status=completed&limit=50'"
CANCEL = "curl -X DELETE http://localhost:8080/api/v1/tasks/550e8400-e29b-41d4-a716-446655440000"
STATS = "curl http://localhost:8080/api/v1/stats"
GRPC_SUBMIT = """grpcurl -plaintext \\
  -d '{"task_type": "send_email", "payload": "dGVzdA==", "priority": 150}' \\
  localhost:9090 taskqueue.TaskQueue/SubmitTask"""
GRPC_STREAM = """grpcurl -plaintext \\
  -d '{"task_id": "550e8400-e29b-41d4-a716-446655440000"}' \\
  localhost:9090 taskqueue.TaskQueue/StreamTaskUpdates"""


def timeless(answer: Any) -> Any:
    """An answer whose times are proper ones, and not told apart."""
    if isinstance(answer, dict):
        return {name: timeless(value) for name, value in answer.items()}
    if isinstance(answer, list):
        return [timeless(value) for value in answer]
    return "a time" if isinstance(answer, str) and TIME.fullmatch(answer) else answer


@proves("submit.example", "auth.optional", "auth.required", "base.url", "get.response")
def test_the_submit_line(server: Served) -> None:
    status, body = server.curl(SUBMIT)
    answer = json.loads(body)
    assert status == 201
    task_id = answer["task_id"]
    assert timeless(answer) == {"task_id": task_id, "status": "pending", "created_at": "a time"}
    task = server.task(task_id)
    shown = task["priority"], task["timeout_seconds"], task["max_retries"], task["task_type"]
    assert shown == (200, 600, 5, "send_email")
    documented = (
        "task_id status created_at updated_at task_type priority worker_id result error "
        "retry_count timeout_seconds"
    )
    assert set(documented.split()) <= set(task)


@proves("get.example", "list.example", "cancel.example", "stats.example", "cancel.404", "get.404")
@proves("error.TASK_NOT_FOUND", "error.format")
@pytest.mark.parametrize(
    ("line", "expected"), [(GET, 404), (CANCEL, 404), (LIST, 200), (STATS, 200)]
)
def test_the_other_curl_lines_where_the_task_does_not_exist(
    server: Served, line: str, expected: int
) -> None:
    status, body = server.curl(line)
    assert status == expected
    if status == 404:
        assert timeless(json.loads(body)) == {
            "error": "Task not found",
            "code": "TASK_NOT_FOUND",
            "timestamp": "a time",
        }


@proves("auth.required", "error.AUTHENTICATION_FAILED")
@pytest.mark.parametrize("line", [SUBMIT, GET, LIST, CANCEL, STATS])
def test_no_line_gets_in_as_printed_where_a_key_is_required(
    closed_server: Served, line: str
) -> None:
    status, body = Served(closed_server.broker).curl(line)
    assert (status, json.loads(body)["code"]) == (401, "AUTHENTICATION_FAILED")


@proves("get.example", "cancel.example", "cancel.204", "grpc.example.stream", "grpc.stream")
def test_the_lines_about_one_task_where_it_exists(fresh_server: Served) -> None:
    assert fresh_server.submit(task_id=EXAMPLE_ID) == EXAMPLE_ID
    updates = follow(fresh_server.grpcurl_words(GRPC_STREAM))
    assert next(updates)["status"] == "pending"
    status, body = fresh_server.curl(GET)
    assert (status, json.loads(body)["task_id"]) == (200, EXAMPLE_ID)
    assert fresh_server.curl(CANCEL) == (204, "")
    assert [update["status"] for update in updates] == ["cancelled"]
    status, body = fresh_server.curl(GET)
    assert (status, json.loads(body)["status"]) == (200, "cancelled")


@proves("get.example", "get.answer", "list.example", "list.answer", "stats.example")
def test_the_printed_answers(fresh_server: Served) -> None:
    fresh_server.submit(task_id=EXAMPLE_ID, task_type="send_email", priority=150)
    worker = fresh_server.worker()
    claim = worker.claim("send_email")
    in_progress = {
        "task_id": EXAMPLE_ID,
        "status": "in_progress",
        "created_at": "a time",
        "updated_at": "a time",
        "task_type": "send_email",
        "priority": 150,
        "worker_id": "worker-1-12345",
        "result": None,
        "error": None,
        "retry_count": 0,
        "timeout_seconds": 300,
    }
    assert in_progress.items() <= timeless(json.loads(fresh_server.curl(GET)[1])).items()
    worker.complete(claim)
    worker.close()
    listed = ("task_id", "task_type", "priority", "created_at", "updated_at")
    completed = {name: in_progress[name] for name in listed} | {"status": "completed"}
    page = {"tasks": [completed], "total": 1, "limit": 50, "offset": 0}
    assert page.items() <= timeless(json.loads(fresh_server.curl(LIST)[1])).items()
    page["limit"] = 100
    assert page.items() <= timeless(fresh_server.ask("GET", TASKS).json).items()
    stats = json.loads(fresh_server.curl(STATS)[1])
    assert (stats["completed_last_hour"], stats["worker_count"]) == (1, 1)


@proves("grpc.example.submit", "grpc.submit", "grpc.auth")
def test_the_grpcurl_submit_line(server: Served) -> None:
    [answer] = grpcurl(server.grpcurl_words(GRPC_SUBMIT))
    assert timeless(answer) == {
        "taskId": answer["taskId"],
        "status": "pending",
        "createdAt": "a time",
    }
    task = server.task(answer["taskId"])
    assert (task["task_type"], task["priority"]) == ("send_email", 150)


@proves("grpc.example.stream", "grpc.error.TASK_NOT_FOUND")
def test_the_grpcurl_stream_line_where_the_task_does_not_exist(server: Served) -> None:
    with pytest.raises(Refused) as refused:
        grpcurl(server.grpcurl_words(GRPC_STREAM))
    assert (refused.value.status, refused.value.code) == ("NOT_FOUND", "TASK_NOT_FOUND")


@proves("auth.required", "grpc.auth", "grpc.error.AUTHENTICATION_FAILED")
@pytest.mark.parametrize("line", [GRPC_SUBMIT, GRPC_STREAM])
def test_no_grpcurl_line_gets_in_as_printed_where_a_key_is_required(
    closed_server: Served, line: str
) -> None:
    with pytest.raises(Refused) as refused:
        grpcurl(Served(closed_server.broker).grpcurl_words(line))
    shown = refused.value.status, refused.value.code
    assert shown == ("UNAUTHENTICATED", "AUTHENTICATION_FAILED")
