"""What each operation answers over REST: fields, defaults and status codes of the reference."""

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from taskqueue.broker.broker import BrokerSettings
from taskqueue.core.clock import ManualClock
from taskqueue.core.errors import BrokerUnavailable, LeaseLost, OutcomeUnknown
from taskqueue.doors.http import RestSettings
from taskqueue.wire import messages as m
from tests.support.broker import a_broker, claimed, until_parked
from tests.support.gate import GatedStorage
from tests.support.rest import TASKS, RestClient, a_rest_client

ABSENT = f"{TASKS}/550e8400-e29b-41d4-a716-446655440000"
START = "2023-11-14T22:13:20Z"  # where ManualClock starts


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[RestClient]:
    async with a_rest_client(tmp_path / "data", clock=ManualClock()) as client:
        yield client


async def test_a_submit_is_created_with_the_documented_fields(client: RestClient) -> None:
    reply = await client.ask("POST", TASKS, {"task_type": "send_email", "payload": "dGVzdA=="})
    assert reply.status == 201
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"
    task_id = reply.json["task_id"]
    assert reply.json == {"task_id": task_id, "status": "pending", "created_at": START}
    [one] = await claimed(client.broker, "send_email")
    assert (one.task.id, one.payload) == (task_id, b"test")


async def test_a_submit_has_the_documented_defaults(client: RestClient) -> None:
    task = (await client.ask("GET", f"{TASKS}/{await client.submit()}")).json
    assert (task["priority"], task["timeout_seconds"], task["max_retries"]) == (100, 300, 3)


async def test_get_answers_with_the_documented_fields(client: RestClient) -> None:
    task_id = await client.submit(task_type="send_email", priority=150)
    await claimed(client.broker, "send_email", worker_id="worker-1-12345")
    reply = await client.ask("GET", f"{TASKS}/{task_id}")
    assert reply.status == 200
    assert (
        reply.json.items()
        >= {
            "task_id": task_id,
            "status": "in_progress",
            "created_at": START,
            "updated_at": START,
            "task_type": "send_email",
            "priority": 150,
            "worker_id": "worker-1-12345",
            "result": None,
            "error": None,
            "retry_count": 0,
            "timeout_seconds": 300,
        }.items()
    )


async def test_a_result_is_base64(client: RestClient) -> None:
    task_id = await client.submit()
    [one] = await claimed(client.broker)
    result = bytes(range(256))
    await client.broker.complete(
        m.CompleteRequest(task_id=task_id, token=one.task.token, result=result)
    )
    task = (await client.ask("GET", f"{TASKS}/{task_id}")).json
    assert task["status"] == "completed"
    assert base64.b64decode(task["result"], validate=True) == result


async def test_an_id_is_found_in_either_case(client: RestClient) -> None:
    task_id = await client.submit()
    assert (await client.ask("GET", f"{TASKS}/{task_id.upper()}")).json["task_id"] == task_id


@pytest.mark.parametrize(
    "name",
    [
        "550e8400-e29b-41d4-a716-446655440000",
        "550e8400e29b41d4a716446655440000",
        "%7B550e8400-e29b-41d4-a716-446655440000%7D",
        "urn:uuid:550e8400-e29b-41d4-a716-446655440000",
        "%EF%BC%95%EF%BC%950e8400-e29b-41d4-a716-44665544000",
        "%FF",
        "..%5C..",
        "1",
    ],
)
async def test_an_id_that_is_none_is_not_found(client: RestClient, name: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/retry")):
        reply = await client.ask(method, f"{TASKS}/{name}{path}")
        assert reply.status == 404
        assert reply.json == {
            "error": "Task not found",
            "code": "TASK_NOT_FOUND",
            "timestamp": START,
        }


async def test_a_list_has_the_documented_fields(client: RestClient) -> None:
    task_id = await client.submit(task_type="send_email", priority=150)
    reply = await client.ask("GET", TASKS)
    assert reply.status == 200
    assert reply.json == {
        "tasks": [
            {
                "task_id": task_id,
                "status": "pending",
                "task_type": "send_email",
                "priority": 150,
                "created_at": START,
                "updated_at": START,
            }
        ],
        "total": 1,
        "limit": 100,
        "offset": 0,
        "next_cursor": None,
    }


async def test_a_list_is_filtered_and_paged(client: RestClient) -> None:
    mails = [await client.submit(task_type="send_email") for _ in range(3)]
    await client.submit(task_type="sendXemail")
    await client.ask("DELETE", f"{TASKS}/{mails[0]}")
    filtered = (await client.ask("GET", f"{TASKS}?status=pending&task_type=send_email")).json
    assert [task["task_id"] for task in filtered["tasks"]] == [mails[2], mails[1]]
    assert filtered["total"] == 2
    second = (await client.ask("GET", f"{TASKS}?limit=1&offset=1&task_type=send_email")).json
    assert [task["task_id"] for task in second["tasks"]] == [mails[1]]
    assert (second["total"], second["limit"], second["offset"]) == (3, 1, 1)
    cursor = second["next_cursor"]
    third = (await client.ask("GET", f"{TASKS}?limit=1&task_type=send_email&cursor={cursor}")).json
    assert [task["task_id"] for task in third["tasks"]] == [mails[0]]


async def test_a_filter_is_taken_literally(client: RestClient) -> None:
    for task_type in ("send_email", "sendXemail", "100%", "[a-z]*", "\\"):
        await client.submit(task_type=task_type)
    for written, meant in (
        ("send_email", "send_email"),
        ("100%25", "100%"),
        ("%5Ba-z%5D*", "[a-z]*"),
        ("%5C", "\\"),
    ):
        page = (await client.ask("GET", f"{TASKS}?task_type={written}")).json
        assert [task["task_type"] for task in page["tasks"]] == [meant]
    assert (await client.ask("GET", f"{TASKS}?task_type=send%25")).json["tasks"] == []


async def test_a_cancelled_task_is_kept_and_not_cancelled_twice(client: RestClient) -> None:
    task_id = await client.submit()
    reply = await client.ask("DELETE", f"{TASKS}/{task_id}")
    assert (reply.status, reply.body) == (204, b"")
    assert "content-type" not in reply.headers
    assert (await client.ask("GET", f"{TASKS}/{task_id}")).json["status"] == "cancelled"
    again = await client.ask("DELETE", f"{TASKS}/{task_id}")
    assert (again.status, again.json["code"]) == (409, "INVALID_STATUS")


async def test_a_running_task_cannot_be_cancelled(client: RestClient) -> None:
    task_id = await client.submit()
    await claimed(client.broker)
    reply = await client.ask("DELETE", f"{TASKS}/{task_id}")
    assert (reply.status, reply.json["code"]) == (409, "INVALID_STATUS")


async def test_a_running_task_is_cancelled_where_that_is_asked_for(client: RestClient) -> None:
    task_id = await client.submit()
    [one] = await claimed(client.broker)
    for query in ("", "?running=false"):
        refused = await client.ask("POST", f"{TASKS}/{task_id}/cancel{query}")
        assert (refused.status, refused.json["code"]) == (409, "INVALID_STATUS")
    reply = await client.ask("POST", f"{TASKS}/{task_id}/cancel?running=true")
    assert (reply.status, reply.json["status"]) == (200, "cancelled")
    with pytest.raises(LeaseLost):
        await client.broker.complete(
            m.CompleteRequest(task_id=task_id, token=one.task.token, result=b"late")
        )
    assert (await client.ask("GET", f"{TASKS}/{task_id}")).json["status"] == "cancelled"


@pytest.mark.parametrize("word", ["1", "yes", "True", ""])
async def test_whether_it_may_be_running_is_true_or_false(client: RestClient, word: str) -> None:
    reply = await client.ask("POST", f"{TASKS}/{await client.submit()}/cancel?running={word}")
    assert reply.status == 400
    assert reply.json["error"].startswith("running must be ")


async def test_a_cancelled_task_can_be_put_back(client: RestClient) -> None:
    task_id = await client.submit()
    await client.ask("DELETE", f"{TASKS}/{task_id}")
    reply = await client.ask("POST", f"{TASKS}/{task_id}/retry")
    assert (reply.status, reply.json["status"]) == (200, "pending")
    again = await client.ask("POST", f"{TASKS}/{task_id}/retry")
    assert (again.status, again.json["code"]) == (409, "INVALID_STATUS")


async def test_stats_have_the_documented_fields(client: RestClient) -> None:
    for priority in (200, 100, 99, 0):
        await client.submit(priority=priority)
    await claimed(client.broker)
    reply = await client.ask("GET", "/api/v1/stats")
    assert reply.status == 200
    assert reply.json == {
        "pending_count": 3,
        "in_progress_count": 1,
        "completed_last_hour": 0,
        "failed_last_hour": 0,
        "worker_count": 1,
        "avg_processing_time_ms": 0.0,
        "queue_depth_by_priority": {"high": 0, "normal": 1, "low": 2},
    }


async def test_a_healthy_broker_says_so(client: RestClient) -> None:
    await client.submit()
    reply = await client.ask("GET", "/api/v1/health")
    assert reply.status == 200
    assert reply.json == {
        "status": "healthy",
        "is_leader": True,
        "connected_workers": 0,
        "pending_tasks": 1,
        "cluster_healthy": True,
    }


async def test_a_submit_with_an_id_may_be_repeated(client: RestClient) -> None:
    task_id = "0192f0c1-2f8e-7cc2-98b4-1f2d3c4b5a69"
    body = {"task_type": "work", "payload": "eA==", "task_id": task_id}
    first, second = [await client.ask("POST", TASKS, body) for _ in range(2)]
    assert (first.status, second.status) == (201, 201)
    assert first.json == second.json
    other = await client.ask("POST", TASKS, {**body, "payload": "eQ=="})
    assert (other.status, other.json["code"]) == (409, "IDEMPOTENCY_CONFLICT")


async def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    async with a_rest_client(
        tmp_path / "data", broker_settings=BrokerSettings(max_pending=1)
    ) as client:
        await client.submit()
        reply = await client.ask("POST", TASKS, {"task_type": "work", "payload": ""})
    assert (reply.status, reply.json["code"]) == (503, "QUEUE_DEPTH_EXCEEDED")
    assert reply.headers["retry-after"] == "1"


async def test_a_wait_ends_with_the_task(client: RestClient) -> None:
    task_id = await client.submit()
    [one] = await claimed(client.broker)
    waiting = asyncio.ensure_future(client.ask("GET", f"{TASKS}/{task_id}?wait=600"))
    await until_parked()
    assert not waiting.done()
    await client.broker.complete(m.CompleteRequest(task_id=task_id, token=one.task.token))
    assert (await waiting).json["status"] == "completed"


async def test_a_wait_that_is_over_tells_how_the_task_stands(client: RestClient) -> None:
    task_id = await client.submit()
    reply = await client.ask("GET", f"{TASKS}/{task_id}?wait=0.001")
    assert (reply.status, reply.json["status"]) == (200, "pending")


async def test_a_wait_for_an_ended_or_unknown_task_is_answered_at_once(client: RestClient) -> None:
    task_id = await client.submit()
    await client.ask("DELETE", f"{TASKS}/{task_id}")
    ended = await client.ask("GET", f"{TASKS}/{task_id}?wait=3600")
    assert ended.json["status"] == "cancelled"
    assert (await client.ask("GET", f"{ABSENT}?wait=3600")).status == 404


async def test_a_waiter_that_hangs_up_leaves_nothing_behind(client: RestClient) -> None:
    task_id = await client.submit()
    tasks_before = len(asyncio.all_tasks())
    _reader, writer = await asyncio.open_connection("127.0.0.1", client.door.port)
    writer.write(f"GET {TASKS}/{task_id}?wait=3600 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    await until_parked()
    assert len(asyncio.all_tasks()) > tasks_before
    writer.close()
    await until_parked()
    assert len(asyncio.all_tasks()) == tasks_before
    assert client.broker.metrics.http_requests["get", 499] == 1


async def test_each_task_of_a_batch_has_its_own_outcome(client: RestClient) -> None:
    good = {"task_type": "work", "payload": "eA=="}
    tasks = [good, {**good, "priority": 256}, good, {**good, "payload": "YR=="}, 5, {}]
    reply = await client.ask("POST", f"{TASKS}/batch", {"tasks": tasks})
    assert reply.status == 200
    told = [entry.get("status", entry.get("error")) for entry in reply.json["results"]]
    assert told == [
        "pending",
        "priority must be a whole number between 0 and 255, got 256",
        "pending",
        "payload must be base64 in the standard alphabet with padding, without white space, "
        "got YR==",
        "the body must be a JSON object, got int",
        "task_type is missing; it is required",
    ]
    assert (await client.ask("GET", TASKS)).json["total"] == 2


async def test_a_batch_with_one_id_twice_makes_one_task(client: RestClient) -> None:
    task_id = "0192f0c1-2f8e-7cc2-98b4-1f2d3c4b5a69"
    one = {"task_type": "work", "payload": "eA==", "task_id": task_id}
    other = {**one, "task_type": "other"}
    reply = await client.ask("POST", f"{TASKS}/batch", {"tasks": [one, one, other]})
    first, second, third = reply.json["results"]
    assert first == second
    assert third["code"] == "IDEMPOTENCY_CONFLICT"


async def test_a_batch_takes_a_thousand_tasks(client: RestClient) -> None:
    tasks = [{"task_type": "work", "payload": "eA=="}] * 1000
    reply = await client.ask("POST", f"{TASKS}/batch", {"tasks": tasks})
    assert len({entry["task_id"] for entry in reply.json["results"]}) == 1000
    assert (await client.ask("GET", f"{TASKS}?limit=1")).json["total"] == 1000


async def test_a_write_that_is_not_confirmed_in_time_has_an_unknown_outcome(
    tmp_path: Path,
) -> None:
    storage = GatedStorage()
    impatient = RestSettings(answer_seconds=0)
    async with a_rest_client(tmp_path, storage=storage, settings=impatient) as client:
        for path, body in ((TASKS, {"task_type": "a", "payload": ""}), (f"{ABSENT}/retry", None)):
            reply = await client.ask("POST", path, body)
            assert (reply.status, reply.json["code"]) == (503, "BROKER_UNAVAILABLE")
            assert "outcome unknown" in reply.json["error"]
        assert storage.begun == 1
        storage.commit()
        await until_parked()
        assert storage.begun == 2, "the second write was given up with its caller"
        storage.commit()


@pytest.mark.parametrize(
    "error",
    [BrokerUnavailable("the disk is full", retry_after=0.2), OutcomeUnknown("sync failed")],
)
async def test_a_broker_that_cannot_write_says_so(tmp_path: Path, error: Exception) -> None:
    storage = GatedStorage()
    async with a_rest_client(tmp_path, storage=storage) as client:
        waiting = asyncio.ensure_future(client.ask("DELETE", ABSENT))
        await until_parked()
        storage.fail(error)
        reply = await waiting
        assert (reply.status, reply.json["code"]) == (503, "BROKER_UNAVAILABLE")
        assert reply.json["error"] == str(error)
        degraded = await client.ask("GET", "/api/v1/health")
    assert degraded.status == 503
    assert degraded.json["status"] == "degraded"
    assert degraded.json["cluster_healthy"] is False


async def test_a_fault_of_the_broker_is_told_without_its_insides(tmp_path: Path) -> None:
    storage = GatedStorage()
    async with a_rest_client(tmp_path, storage=storage) as client:
        waiting = asyncio.ensure_future(client.ask("DELETE", ABSENT))
        await until_parked()
        storage.fail(RuntimeError("secret detail"))
        reply = await waiting
    assert (reply.status, reply.json["code"]) == (500, "INTERNAL_ERROR")
    assert "secret" not in reply.body.decode()
    assert reply.headers["x-request-id"] in reply.json["error"]


async def test_an_unforeseen_fault_is_told_without_its_insides(client: RestClient) -> None:
    del client.broker.workers  # anything that breaks an operation half-way
    reply = await client.ask("GET", "/api/v1/stats")
    assert (reply.status, reply.json["code"]) == (500, "INTERNAL_ERROR")
    assert "workers" not in reply.body.decode()
    assert reply.headers["x-request-id"] in reply.json["error"]


@pytest.mark.parametrize("path", ["/", "/api/v1", "/api/v1/tasks/", "/api/v2/tasks", "/%2e%2e/x"])
async def test_an_unknown_path_is_told_in_the_documented_form(
    client: RestClient, path: str
) -> None:
    reply = await client.ask("GET", path)
    assert reply.status == 404
    assert set(reply.json) == {"error", "code", "timestamp"}
    assert reply.json["code"] == "NOT_FOUND"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", TASKS, "GET, HEAD, POST"),
        ("TRACE", TASKS, "GET, HEAD, POST"),
        ("OPTIONS", TASKS, "GET, HEAD, POST"),
        ("POST", ABSENT, "DELETE, GET, HEAD, PATCH"),
        ("GET", f"{TASKS}/batch", "POST"),
        ("GET", f"{ABSENT}/retry", "POST"),
        ("DELETE", "/api/v1/stats", "GET, HEAD"),
        ("POST", "/metrics", "GET, HEAD"),
        ("CONNECT", "/metrics", ""),
    ],
)
async def test_a_method_that_a_path_does_not_take_is_refused_with_those_it_takes(
    client: RestClient, method: str, path: str, allowed: str
) -> None:
    reply = await client.ask(method, path)
    assert (reply.status, reply.json["code"]) == (405, "METHOD_NOT_ALLOWED")
    assert reply.headers.get("allow", "") == allowed


async def test_head_is_get_without_the_body(client: RestClient) -> None:
    whole, head = [await client.ask(method, "/api/v1/stats") for method in ("GET", "HEAD")]
    assert (head.status, head.body) == (200, b"")
    assert head.headers["content-length"] == whole.headers["content-length"]


async def test_what_was_acknowledged_is_there_after_a_restart(tmp_path: Path) -> None:
    async with a_rest_client(tmp_path / "data") as client:
        task_id = await client.submit(task_type="send_email", payload="dGVzdA==")
    async with a_broker(tmp_path / "data") as broker:
        [one] = await claimed(broker, "send_email")
    assert (one.task.id, one.payload) == (task_id, b"test")


async def test_the_door_closes_while_clients_wait_and_lie_idle(tmp_path: Path) -> None:
    async with a_rest_client(tmp_path / "data") as client:
        task_id = await client.submit()
        waiting = asyncio.ensure_future(client.ask("GET", f"{TASKS}/{task_id}?wait=3600"))
        idle, _writer = await asyncio.open_connection("127.0.0.1", client.door.port)
        await until_parked()
        await client.broker.close()
        await client.door.close()
        assert (await waiting).json["status"] == "pending"
        assert await idle.read() == b""
        _writer.close()
