"""The reference's gRPC API, line by line, called by what the server says of itself."""

import base64
import json
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor

from tests.conformance.catalogue import proves
from tests.conformance.grpcurl import Refused, find_method, follow, grpcurl
from tests.conformance.served import EXAMPLE_ID, Served, Worker

SERVICE = "taskqueue.TaskQueue"

# The messages as the reference has them: their numbers and types are the contract.
REFERENCE = """
syntax = "proto3";
package taskqueue;
import "google/protobuf/timestamp.proto";
message SubmitTaskRequest {
  string task_type = 1;
  bytes payload = 2;
  uint32 priority = 3;
  google.protobuf.Timestamp schedule_at = 4;
  uint64 timeout_seconds = 5;
  uint32 max_retries = 6;
}
message SubmitTaskResponse {
  string task_id = 1;
  string status = 2;
  google.protobuf.Timestamp created_at = 3;
}
message GetTaskStatusRequest {
  string task_id = 1;
}
message GetTaskStatusResponse {
  string task_id = 1;
  string status = 2;
  bytes result = 3;
  string error = 4;
  uint32 retry_count = 5;
  string worker_id = 6;
}
"""


DOCUMENTED_CALLS = {
    "SubmitTask": ("SubmitTaskRequest", "SubmitTaskResponse", False),
    "GetTaskStatus": ("GetTaskStatusRequest", "GetTaskStatusResponse", False),
    "CancelTask": ("CancelTaskRequest", "CancelTaskResponse", False),
    "ListTasks": ("ListTasksRequest", "ListTasksResponse", False),
    "StreamTaskUpdates": ("StreamTaskUpdatesRequest", "TaskUpdate", True),
    "GetStats": ("GetStatsRequest", "GetStatsResponse", False),
}
"""What each call takes, what it answers, and whether with a stream."""

Documented = Callable[[str], Descriptor]


def line(server: Served, method: str, fields: dict[str, object]) -> str:
    """The grpcurl line of a call, with the server's key if it has one."""
    words = f"grpcurl -plaintext -d '{json.dumps(fields)}' localhost:9090 {SERVICE}/{method}"
    return server.grpcurl_words(words)


def call(server: Served, method: str, **fields: object) -> dict[str, Any]:
    """What a call answers."""
    [answer] = grpcurl(line(server, method, fields))
    return answer


def stream(server: Served, task_id: str) -> Iterator[str]:
    """A task's status after each change."""
    for update in follow(line(server, "StreamTaskUpdates", {"task_id": task_id})):
        assert update["taskId"] == task_id
        yield update["status"]


def refusal(server: Served, method: str, **fields: object) -> tuple[str, str]:
    """The status a call is refused with, and the reference's code."""
    with pytest.raises(Refused) as refused:
        grpcurl(line(server, method, fields))
    return refused.value.status, refused.value.code


@proves("grpc.stream", "status.failed", "status.completed", "status.in_progress", "status.pending")
def test_a_stream_tells_every_change_and_ends_with_the_task(server: Served, worker: Worker) -> None:
    task_type = f"streamed-{uuid.uuid4()}"
    task_id = server.submit(task_type=task_type, max_retries=1)
    statuses = stream(server, task_id)
    assert next(statuses) == "pending"
    claim = worker.claim(task_type)
    assert next(statuses) == "in_progress"
    worker.fail(claim, "not yet", "DELAY", 0)
    assert next(statuses) == "failed"
    claim = worker.claim(task_type)
    assert next(statuses) == "in_progress"
    worker.complete(claim, b"done")
    assert list(statuses) == ["completed"]


@proves("grpc.stream")
def test_a_stream_leaves_no_change_out_when_they_come_fast(server: Served, worker: Worker) -> None:
    task_type = f"fast-{uuid.uuid4()}"
    statuses = stream(server, server.submit(task_type=task_type, max_retries=2))
    assert next(statuses) == "pending"
    for _ in range(3):
        worker.fail(worker.claim(task_type), "no", "DELAY", 0)
    again = ["in_progress", "failed"]
    assert list(statuses) == [*again, *again, "in_progress", "dead_letter"]


@proves("grpc.stream", "status.dead_letter", "status.cancelled")
@pytest.mark.parametrize("end", ["completed", "dead_letter", "cancelled"])
def test_a_stream_about_a_task_that_has_ended_says_so_and_ends(
    server: Served, worker: Worker, end: str
) -> None:
    task_type = f"ended-{uuid.uuid4()}"
    task_id = server.submit(task_type=task_type, max_retries=0)
    if end == "completed":
        worker.complete(worker.claim(task_type), b"done")
    elif end == "dead_letter":
        worker.fail(worker.claim(task_type), "no")
    else:
        call(server, "CancelTask", task_id=task_id)
    assert list(stream(server, task_id)) == [end]
    answer = call(server, "GetTaskStatus", task_id=task_id)
    assert answer["status"] == end
    if end == "completed":
        assert base64.b64decode(answer["result"]) == b"done"


@proves("grpc.service")
def test_the_service_has_the_documented_calls(open_server: Served) -> None:
    with grpc.insecure_channel(open_server.broker.grpc) as channel:
        service = find_method(channel, f"{SERVICE}/SubmitTask", []).containing_service
    shown = {
        method.name: (method.input_type.name, method.output_type.name, method.server_streaming)
        for method in service.methods
    }
    assert service.full_name == SERVICE
    assert shown.items() >= DOCUMENTED_CALLS.items()
    assert not any(method.client_streaming for method in service.methods)


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Documented:
    """The messages as the reference has them."""
    folder: Path = tmp_path_factory.mktemp("proto")
    (folder / "reference.proto").write_text(REFERENCE)
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{folder}", "--include_imports"),
            *(f"--descriptor_set_out={folder}/set", "reference.proto"),
        ],
        check=True,
        cwd=folder,
    )
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString((folder / "set").read_bytes()).file:
        pool.Add(file)
    return lambda name: pool.FindMessageTypeByName(f"taskqueue.{name}")


def wire_of(message: Descriptor) -> dict[str, tuple[object, ...]]:
    """The fields of a message, as far as the wire knows them."""
    return {
        field.name: (
            field.number,
            field.type,
            field.is_repeated,
            field.message_type.full_name if field.message_type else None,
        )
        for field in message.fields
    }


@proves("grpc.numbers")
def test_the_documented_fields_have_their_numbers_and_types(
    open_server: Served, documented: Documented
) -> None:
    with grpc.insecure_channel(open_server.broker.grpc) as channel:
        for name in ("SubmitTask", "GetTaskStatus"):
            method = find_method(channel, f"{SERVICE}/{name}", [])
            for served in (method.input_type, method.output_type):
                printed = wire_of(documented(served.name))
                assert printed
                assert wire_of(served).items() >= printed.items()


def with_printed_stubs(server: Served, documented: Documented, method: str, fields: Any) -> Any:
    """What a call answers a client whose stubs are made from the reference."""
    metadata = [("authorization", f"Bearer {server.key}")] if server.key else []
    request: Any = message_factory.GetMessageClass(documented(f"{method}Request"))
    response: Any = message_factory.GetMessageClass(documented(f"{method}Response"))
    with grpc.insecure_channel(server.broker.grpc) as channel:
        ask: Any = channel.unary_unary(
            f"/{SERVICE}/{method}", request.SerializeToString, response.FromString
        )
        return ask(request(**fields), metadata=metadata, timeout=20)


@proves("grpc.wire", "grpc.status", "grpc.submit", "grpc.auth")
def test_stubs_made_from_the_reference_get_along_with_the_server(
    server: Served, worker: Worker, documented: Documented
) -> None:
    task_type = f"wired-{uuid.uuid4()}"
    fields = {
        "task_type": task_type,
        "payload": b"\x00\xff",
        "priority": 7,
        "schedule_at": {"seconds": 1_704_110_400},
        "timeout_seconds": 9,
        "max_retries": 1,
    }
    submitted = with_printed_stubs(server, documented, "SubmitTask", fields)
    assert (submitted.status, submitted.created_at.seconds > 1_704_110_400) == ("pending", True)
    task = server.task(submitted.task_id)
    assert (task["priority"], task["timeout_seconds"], task["max_retries"]) == (7, 9, 1)
    named = {"task_id": submitted.task_id}
    worker.fail(worker.claim(task_type), "no", "DELAY", 0)
    status = with_printed_stubs(server, documented, "GetTaskStatus", named)
    assert (status.status, status.error, status.retry_count) == ("failed", "no", 1)
    worker.complete(worker.claim(task_type), b"\x01")
    status = with_printed_stubs(server, documented, "GetTaskStatus", named)
    shown = status.task_id, status.status, status.result, status.worker_id
    assert shown == (submitted.task_id, "completed", b"\x01", "worker-1-12345")


@proves("grpc.wire", "grpc.presence")
def test_stubs_made_from_the_reference_get_the_defaults_for_what_they_leave_out(
    server: Served, documented: Documented
) -> None:
    # The printed fields have no presence: a 0 that is set is not on the wire.
    fields = {"task_type": "t", "priority": 0, "timeout_seconds": 0, "max_retries": 0}
    submitted = with_printed_stubs(server, documented, "SubmitTask", fields)
    task = server.task(submitted.task_id)
    assert (task["priority"], task["timeout_seconds"], task["max_retries"]) == (100, 300, 3)


@proves("grpc.presence")
@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (100, 300, 3)),
        ({"priority": 0}, (0, 300, 3)),
        ({"max_retries": 0}, (100, 300, 0)),
        ({"timeout_seconds": 1}, (100, 1, 3)),
        ({"priority": 255, "timeout_seconds": 600, "max_retries": 5}, (255, 600, 5)),
    ],
)
def test_what_is_not_set_has_the_documented_default(
    server: Served, fields: dict[str, object], expected: tuple[int, ...]
) -> None:
    task = server.task(call(server, "SubmitTask", task_type="t", **fields)["taskId"])
    assert (task["priority"], task["timeout_seconds"], task["max_retries"]) == expected


@proves("grpc.invalid", "grpc.presence")
@pytest.mark.parametrize(
    "fields",
    [
        {"timeout_seconds": 0},
        {"priority": 256},
        {"priority": 2**32 - 1},
        {"max_retries": 2**32 - 1},
        {"timeout_seconds": 2**63},
        {"task_type": ""},
        {"task_type": "with space"},
    ],
)
def test_values_out_of_range_are_refused(server: Served, fields: dict[str, object]) -> None:
    refused = refusal(server, "SubmitTask", **{"task_type": "t", **fields})
    assert refused == ("INVALID_ARGUMENT", "INVALID_REQUEST")


@proves("grpc.payload")
def test_a_payload_has_ten_megabytes_over_grpc_too(
    open_server: Served, documented: Documented
) -> None:
    fields = {"task_type": "large", "payload": b"x" * 10 * 2**20}
    submitted = with_printed_stubs(open_server, documented, "SubmitTask", fields)
    assert submitted.status == "pending"
    fields["payload"] = b"x" * (10 * 2**20 + 1)
    with pytest.raises(grpc.RpcError) as error:
        with_printed_stubs(open_server, documented, "SubmitTask", fields)
    refused = Refused(error.value)
    assert (refused.status, refused.code) == ("INVALID_ARGUMENT", "PAYLOAD_TOO_LARGE")


@proves("grpc.schedule_at")
def test_a_task_scheduled_over_grpc_waits_for_its_time(server: Served, worker: Worker) -> None:
    task_type = f"at-{uuid.uuid4()}"
    moment = datetime.now(UTC) + timedelta(seconds=1)
    written = moment.isoformat().replace("+00:00", "Z")
    later = call(server, "SubmitTask", task_type=task_type, schedule_at=written)["taskId"]
    past = "2024-01-01T12:00:00Z"
    at_once = call(server, "SubmitTask", task_type=task_type, schedule_at=past)["taskId"]
    assert worker.claim(task_type)[0] == at_once
    assert worker.claim(task_type)[0] == later
    assert datetime.now(UTC) >= moment


@proves("grpc.cancel", "grpc.error.INVALID_STATUS", "grpc.error.TASK_NOT_FOUND")
def test_cancel_as_over_rest(server: Served, worker: Worker) -> None:
    task_type = f"cancelled-{uuid.uuid4()}"
    task_id, running = (server.submit(task_type=task_type, priority=p) for p in (0, 255))
    assert call(server, "CancelTask", task_id=task_id) == {}
    assert server.task(task_id)["status"] == "cancelled"
    claim = worker.claim(task_type)
    conflict = ("FAILED_PRECONDITION", "INVALID_STATUS")
    assert refusal(server, "CancelTask", task_id=task_id) == conflict
    assert refusal(server, "CancelTask", task_id=running) == conflict
    worker.complete(claim)
    assert refusal(server, "CancelTask", task_id=running) == conflict
    for method in ("CancelTask", "GetTaskStatus", "StreamTaskUpdates"):
        for unknown in (EXAMPLE_ID, "x", ""):
            missing = refusal(server, method, task_id=unknown)
            assert missing == ("NOT_FOUND", "TASK_NOT_FOUND")


@proves("grpc.list", "list.status")
def test_list_as_over_rest(server: Served, worker: Worker) -> None:
    task_type = f"listed-{uuid.uuid4()}"
    ids = [server.submit(task_type=task_type) for _ in range(3)]
    page = call(server, "ListTasks", task_type=task_type, limit=2)
    assert [task["taskId"] for task in page["tasks"]] == [ids[2], ids[1]]
    assert (page["total"], page["limit"]) == ("3", 2)
    rest = call(server, "ListTasks", task_type=task_type, offset=2)
    assert [task["taskId"] for task in rest["tasks"]] == ids[:1]
    assert (rest["offset"], rest["limit"]) == ("2", 100)
    worker.complete(worker.claim(task_type))
    for status, found in (("completed", ids[:1]), ("pending", ids[:0:-1]), ("failed", [])):
        page = call(server, "ListTasks", task_type=task_type, status=status)
        assert [task["taskId"] for task in page.get("tasks", [])] == found
    for wrong in ({"limit": 1001}, {"limit": 0}, {"status": "nonsense"}):
        refused = refusal(server, "ListTasks", **wrong)
        assert refused == ("INVALID_ARGUMENT", "INVALID_REQUEST")


@proves("grpc.stats")
def test_stats_as_over_rest(server: Served, worker: Worker) -> None:
    server.submit(task_type="counted", priority=250)
    worker.complete(worker.claim("counted"))
    server.submit(priority=250)
    stats = call(server, "GetStats")
    rest = server.ask("GET", "/api/v1/stats").json
    depth = stats.pop("queueDepthByPriority")
    assert {tier: int(number) for tier, number in depth.items()} == rest["queue_depth_by_priority"]
    for field in ("pending_count", "in_progress_count", "completed_last_hour", "failed_last_hour"):
        name = "".join(word.title() for word in field.split("_"))
        assert int(stats.get(name[0].lower() + name[1:], 0)) == rest[field]
    assert int(stats["workerCount"]) == rest["worker_count"]
    assert stats["avgProcessingTimeMs"] == pytest.approx(rest["avg_processing_time_ms"])


@proves("grpc.auth", "grpc.error.AUTHENTICATION_FAILED")
@pytest.mark.parametrize("method", DOCUMENTED_CALLS)
@pytest.mark.parametrize("key", [None, "tq_invalid"])
def test_every_call_needs_a_valid_key_where_keys_are_required(
    closed_server: Served, method: str, key: str | None
) -> None:
    stranger = Served(closed_server.broker, key)
    assert refusal(stranger, method) == ("UNAUTHENTICATED", "AUTHENTICATION_FAILED")


@proves("grpc.permission", "cancel.403")
def test_a_key_without_the_permission_is_refused(closed_server: Served) -> None:
    task_id = closed_server.submit()
    reader = Served(closed_server.broker, closed_server.limited_key("read_tasks"))
    refused = ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert refusal(reader, "CancelTask", task_id=task_id) == refused
    assert refusal(reader, "SubmitTask", task_type="t") == refused
    assert call(reader, "GetTaskStatus", task_id=task_id)["status"] == "pending"
