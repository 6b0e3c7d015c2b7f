"""The reference's gRPC API, line by line, called by what the server says of itself."""

import base64
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from tests.conformance.catalogue import proves
from tests.conformance.grpcurl import Refused, find_method, grpcurl
from tests.conformance.served import Served, Worker
from tests.support.broker import a_broker_process

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


def call(server: Served, method: str, data: str = "{}") -> list[dict[str, Any]]:
    """What a call answers, with the server's key if it has one."""
    line = f"grpcurl -plaintext -d '{data}' localhost:9090 {SERVICE}/{method}"
    return grpcurl(server.grpcurl_words(line))


def repeat(server: Served, method: str, times: int) -> None:
    """Call it several times."""
    for _ in range(times):
        call(server, method)


def refusal(server: Served, method: str, data: str = "{}") -> str:
    """The status a call is refused with."""
    with pytest.raises(Refused) as refused:
        call(server, method, data)
    return str(refused.value.status)


@proves("grpc.example.submit", "grpc.submit")
def test_the_submit_line(server: Served) -> None:
    [answer] = grpcurl(
        server.grpcurl_words(
            """grpcurl -plaintext \\
  -d '{"task_type": "send_email", "payload": "dGVzdA==", "priority": 150}' \\
  localhost:9090 taskqueue.TaskQueue/SubmitTask"""
        )
    )
    assert set(answer) == {"taskId", "status", "createdAt"}
    assert answer["status"] == "pending"
    task = server.task(answer["taskId"])
    assert (task["task_type"], task["priority"]) == ("send_email", 150)


@proves("grpc.example.stream", "grpc.errors")
def test_the_stream_line_about_a_task_that_does_not_exist(server: Served) -> None:
    with pytest.raises(Refused) as refused:
        grpcurl(
            server.grpcurl_words(
                """grpcurl -plaintext \\
  -d '{"task_id": "550e8400-e29b-41d4-a716-446655440000"}' \\
  localhost:9090 taskqueue.TaskQueue/StreamTaskUpdates"""
            )
        )
    assert refused.value.status == "NOT_FOUND"
    assert b"TASK_NOT_FOUND" in refused.value.metadata["grpc-status-details-bin"]


@proves("grpc.example.stream", "grpc.stream")
def test_a_stream_tells_every_change_and_ends_with_the_task(server: Served, worker: Worker) -> None:
    task_type = f"streamed-{uuid.uuid4()}"
    task_id = server.submit(task_type=task_type, max_retries=1)
    updates: list[dict[str, Any]] = []
    seen = threading.Event()

    def follow() -> None:
        updates.extend(call(server, "StreamTaskUpdates", f'{{"task_id": "{task_id}"}}'))
        seen.set()

    follower = threading.Thread(target=follow)
    follower.start()
    assert not seen.wait(0.5)  # it does not end while the task goes on
    worker.fail(worker.claim(task_type), "not yet", "DELAY", 0)
    worker.complete(worker.claim(task_type), b"done")
    follower.join(20)
    statuses = [update["status"] for update in updates]
    assert statuses == ["pending", "in_progress", "failed", "in_progress", "completed"]
    assert base64.b64decode(updates[-1]["result"]) == b"done"
    [once_more] = call(server, "StreamTaskUpdates", f'{{"task_id": "{task_id}"}}')
    assert once_more["status"] == "completed"


@proves("grpc.service")
def test_the_service_has_the_documented_calls(open_server: Served) -> None:
    with grpc.insecure_channel(open_server.broker.grpc) as channel:
        service = find_method(channel, f"{SERVICE}/SubmitTask", []).containing_service
        calls = {method.name: method.server_streaming for method in service.methods}
        documented = "SubmitTask GetTaskStatus CancelTask ListTasks StreamTaskUpdates GetStats"
        for name in documented.split():
            assert calls[name] == (name == "StreamTaskUpdates")
            method = service.methods_by_name[name]
            assert method.input_type.name == f"{name}Request"


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The classes of the messages as the reference has them."""
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
    return lambda name: message_factory.GetMessageClass(
        pool.FindMessageTypeByName(f"taskqueue.{name}")
    )


@proves("grpc.wire", "grpc.status")
def test_stubs_made_from_the_reference_get_along_with_the_server(
    server: Served, worker: Worker, documented: Any
) -> None:
    metadata = [("authorization", f"Bearer {server.key}")] if server.key else []
    with grpc.insecure_channel(server.broker.grpc) as channel:

        def ask(method: str, **fields: Any) -> Any:
            request, response = documented(f"{method}Request"), documented(f"{method}Response")
            run: Any = channel.unary_unary(
                f"/{SERVICE}/{method}", request.SerializeToString, response.FromString
            )
            return run(request(**fields), metadata=metadata, timeout=20)

        task_type = f"wired-{uuid.uuid4()}"
        submitted = ask(
            "SubmitTask",
            task_type=task_type,
            payload=b"\x00\xff",
            priority=7,
            schedule_at={"seconds": 1_704_110_400},
            timeout_seconds=9,
            max_retries=1,
        )
        assert (submitted.status, submitted.created_at.seconds > 1_704_110_400) == ("pending", True)
        task = server.task(submitted.task_id)
        assert (task["priority"], task["timeout_seconds"], task["max_retries"]) == (7, 9, 1)
        worker.fail(worker.claim(task_type), "no", "DELAY", 0)
        status = ask("GetTaskStatus", task_id=submitted.task_id)
        assert (status.status, status.error, status.retry_count) == ("failed", "no", 1)
        worker.complete(worker.claim(task_type), b"\x01")
        status = ask("GetTaskStatus", task_id=submitted.task_id)
        shown = status.task_id, status.status, status.result, status.worker_id
        assert shown == (submitted.task_id, "completed", b"\x01", "worker-1-12345")


@proves("grpc.presence")
def test_what_is_not_set_has_the_documented_default(server: Served) -> None:
    def made(fields: str) -> tuple[int, int, int]:
        [answer] = call(server, "SubmitTask", f'{{"task_type": "t", "payload": ""{fields}}}')
        task = server.task(answer["taskId"])
        return task["priority"], task["timeout_seconds"], task["max_retries"]

    assert made("") == (100, 300, 3)
    assert made(', "priority": 0, "max_retries": 0, "timeout_seconds": 1') == (0, 1, 0)
    zero = '{"task_type": "t", "payload": "", "timeout_seconds": 0}'
    assert refusal(server, "SubmitTask", zero) == "INVALID_ARGUMENT"


@proves("grpc.cancel", "grpc.errors")
def test_cancel_as_over_rest(server: Served, worker: Worker) -> None:
    task_type = f"cancelled-{uuid.uuid4()}"
    task_id = server.submit(task_type=task_type)
    named = f'{{"task_id": "{task_id}"}}'
    call(server, "CancelTask", named)
    assert server.task(task_id)["status"] == "cancelled"
    assert refusal(server, "CancelTask", named) == "FAILED_PRECONDITION"
    assert refusal(server, "CancelTask", '{"task_id": "x"}') == "NOT_FOUND"


@proves("grpc.list")
def test_list_as_over_rest(server: Served) -> None:
    task_type = f"listed-{uuid.uuid4()}"
    ids = [server.submit(task_type=task_type) for _ in range(3)]
    [page] = call(server, "ListTasks", f'{{"task_type": "{task_type}", "limit": 2}}')
    assert [task["taskId"] for task in page["tasks"]] == [ids[2], ids[1]]
    assert (page["total"], page["limit"]) == ("3", 2)
    [rest] = call(server, "ListTasks", f'{{"task_type": "{task_type}", "offset": 2}}')
    assert [task["taskId"] for task in rest["tasks"]] == ids[:1]
    assert refusal(server, "ListTasks", '{"limit": 1001}') == "INVALID_ARGUMENT"
    assert refusal(server, "ListTasks", '{"status": "nonsense"}') == "INVALID_ARGUMENT"


@proves("grpc.stats")
def test_stats_as_over_rest(server: Served) -> None:
    server.submit(priority=250)
    [stats] = call(server, "GetStats")
    rest = server.ask("GET", "/api/v1/stats").json
    assert int(stats["pendingCount"]) == rest["pending_count"]
    depth = {tier: int(number) for tier, number in stats["queueDepthByPriority"].items()}
    assert depth == rest["queue_depth_by_priority"]


@proves("grpc.errors", "auth.required")
def test_a_key_is_needed_where_keys_are_required(closed_server: Served) -> None:
    stranger = Served(closed_server.broker)
    for method in ("SubmitTask", "GetTaskStatus", "CancelTask", "ListTasks", "GetStats"):
        assert refusal(stranger, method) == "UNAUTHENTICATED"
    assert refusal(stranger, "StreamTaskUpdates") == "UNAUTHENTICATED"


@proves("grpc.errors")
def test_the_rate_limit_is_resource_exhausted(tmp_path: Path) -> None:
    with a_broker_process(tmp_path / "data", "--rate-limit", "1") as broker:
        served = Served(broker)
        with pytest.raises(Refused) as refused:
            repeat(served, "GetStats", 5)
        assert refused.value.status == "RESOURCE_EXHAUSTED"
        assert refused.value.metadata["x-ratelimit-limit"] == "1"
        details = refused.value.metadata["grpc-status-details-bin"]
        assert b"RATE_LIMIT_EXCEEDED" in details
        assert b"google.rpc.RetryInfo" in details
