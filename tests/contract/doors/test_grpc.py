"""What each operation answers over gRPC: messages, defaults and statuses of the reference."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from taskqueue.broker.broker import BrokerSettings
from taskqueue.core.clock import EPOCH, SECOND, ManualClock
from taskqueue.core.errors import BrokerUnavailable, DataDamaged
from taskqueue.core.task import Failure, TaskDetail
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.doors.grpc.offers import LARGEST_MESSAGE
from taskqueue.doors.grpc.settings import GrpcSettings
from taskqueue.wire import messages as m
from tests.support.broker import claimed, until_parked
from tests.support.door import until
from tests.support.gate import GatedStorage
from tests.support.grpc import GrpcClient, a_grpc_client, refusal_of
from tests.support.tasks import a_submit

ABSENT = "550e8400-e29b-41d4-a716-446655440000"
START = 1_700_000_000


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(START * SECOND)


@pytest.fixture
async def client(tmp_path: Path, clock: ManualClock) -> AsyncIterator[GrpcClient]:
    async with a_grpc_client(tmp_path / "data", clock=clock) as client:
        yield client


async def status_of(client: GrpcClient, task_id: str, **fields: Any) -> pb.GetTaskStatusResponse:
    request = pb.GetTaskStatusRequest(task_id=task_id, **fields)
    reply: pb.GetTaskStatusResponse = await client.call("GetTaskStatus", request)
    return reply


async def test_a_submit_is_answered_as_the_reference_says(client: GrpcClient) -> None:
    request = pb.SubmitTaskRequest(task_type="send_email", payload=b"test", priority=150)
    reply = await client.call("SubmitTask", request)
    assert reply.status == "pending"
    assert reply.created_at.seconds == START
    [one] = await claimed(client.broker, "send_email")
    assert (one.task.id, one.task.priority, one.payload) == (reply.task_id, 150, b"test")


async def test_a_submit_has_the_documented_defaults(client: GrpcClient) -> None:
    task = await status_of(client, await client.submit())
    assert (task.priority, task.timeout_seconds, task.max_retries) == (100, 300, 3)


async def test_a_field_set_to_zero_is_not_a_field_left_out(client: GrpcClient) -> None:
    task = await status_of(client, await client.submit(priority=0, max_retries=0))
    assert (task.priority, task.max_retries) == (0, 0)
    refusal = await refusal_of(
        client.call("SubmitTask", pb.SubmitTaskRequest(task_type="work", timeout_seconds=0))
    )
    assert (refusal.status, refusal.fields) == ("INVALID_ARGUMENT", ["timeout_seconds"])


async def test_an_empty_payload_is_a_payload(client: GrpcClient) -> None:
    await client.call("SubmitTask", pb.SubmitTaskRequest(task_type="work"))
    assert [one.payload for one in await client.claim()] == [b""]


async def test_a_submit_takes_every_field(client: GrpcClient, clock: ManualClock) -> None:
    later = EPOCH + timedelta(seconds=START + 60, microseconds=5)
    task_id = await client.submit(
        schedule_at=later, timeout_seconds=7, max_retries=9, task_id=ABSENT.upper()
    )
    task = await status_of(client, task_id)
    assert task_id == ABSENT
    assert task.schedule_at.ToDatetime(UTC) == later
    assert (task.timeout_seconds, task.max_retries) == (7, 9)
    delayed = await status_of(client, await client.submit(delay_seconds=1.5))
    assert delayed.schedule_at.ToMicroseconds() == clock.wall() + 1_500_000


async def test_a_moment_in_the_past_is_now(client: GrpcClient) -> None:
    task_id = await client.submit(schedule_at=datetime(1, 1, 1, tzinfo=UTC))
    assert (await status_of(client, task_id)).schedule_at.seconds == START


async def test_a_repeat_with_the_same_key_gets_the_first_answer(client: GrpcClient) -> None:
    first = await client.submit(idempotency_key="order-1")
    assert await client.submit(idempotency_key="order-1") == first
    refusal = await refusal_of(
        client.call(
            "SubmitTask", pb.SubmitTaskRequest(task_type="other", idempotency_key="order-1")
        )
    )
    assert (refusal.status, refusal.code) == ("ALREADY_EXISTS", "IDEMPOTENCY_CONFLICT")


async def test_a_status_has_every_field(client: GrpcClient, clock: ManualClock) -> None:
    task_id = await client.submit("send_email", priority=150)
    [one] = await claimed(client.broker, "send_email", worker_id="worker-1-12345")
    clock.advance(5)
    word: dict[str, Any] = {"task_id": task_id, "token": one.task.token}
    await client.call("Progress", pb.ProgressRequest(**word, fraction=0.5, note="half"))
    task = await status_of(client, task_id)
    assert (task.task_id, task.task_type, task.status) == (task_id, "send_email", "in_progress")
    assert (task.worker_id, task.retry_count, task.priority) == ("worker-1-12345", 0, 150)
    assert (task.created_at.seconds, task.updated_at.seconds) == (START, START + 5)
    assert (task.progress, task.progress_note) == (0.5, "half")
    assert (task.result, task.error) == (b"", "")


async def test_a_result_comes_back_as_it_was_given(client: GrpcClient) -> None:
    task_id = await client.submit()
    [one] = await client.claim()
    result = bytes(range(256))
    request = pb.CompleteRequest(task_id=task_id, token=one.token, result=result)
    reply = await client.call("Complete", request)
    assert (reply.task_id, reply.status) == (task_id, "completed")
    task = await status_of(client, task_id)
    assert (task.status, task.result, task.error) == ("completed", result, "")


async def test_failures_are_on_record(client: GrpcClient, clock: ManualClock) -> None:
    task_id = await client.submit()
    [one] = await client.claim()
    word: dict[str, Any] = {"task_id": task_id, "token": one.token}
    reply = await client.call(
        "Fail",
        pb.FailRequest(
            **word, message="no route", kind="OSError", traceback="line 1", delay_seconds=60
        ),
    )
    assert (reply.status, reply.retry_count) == ("failed", 1)
    assert reply.run_at.seconds == START + 60
    task = await status_of(client, task_id)
    assert (task.status, task.error) == ("failed", "OSError: no route")
    [failure] = task.failures
    assert (failure.attempt, failure.worker_id, failure.at.seconds) == (one.token, "w1", START)
    assert (failure.error, failure.traceback) == ("OSError: no route", "line 1")


async def test_a_failure_that_is_not_retryable_is_the_last(client: GrpcClient) -> None:
    task_id = await client.submit()
    [one] = await client.claim()
    request = pb.FailRequest(task_id=task_id, token=one.token, message="no", retryable=False)
    assert (await client.call("Fail", request)).status == "dead_letter"
    retried = await client.call("RetryTask", pb.RetryTaskRequest(task_id=task_id))
    assert (retried.task_id, retried.status, retried.retry_count) == (task_id, "pending", 0)


async def test_an_error_text_of_megabytes_is_kept_cut(client: GrpcClient) -> None:
    task_id = await client.submit()
    [one] = await client.claim()
    text = "x" * (2 * 1024 * 1024)
    request = pb.FailRequest(
        task_id=task_id, token=one.token, message=text, kind="E", traceback=text
    )
    assert (await client.call("Fail", request)).status == "failed"
    assert (await status_of(client, task_id)).error.endswith("[cut]")


async def test_a_status_can_wait_for_the_end(client: GrpcClient) -> None:
    task_id = await client.submit()
    waiting = asyncio.ensure_future(status_of(client, task_id, wait_ms=60_000))
    [one] = await client.claim()
    await until_parked()
    assert not waiting.done()
    await client.broker.complete(
        m.CompleteRequest(task_id=task_id, token=one.token, result=b"done")
    )
    assert (await waiting).result == b"done"


async def test_a_status_answers_when_the_wait_is_over(client: GrpcClient) -> None:
    assert (await status_of(client, await client.submit(), wait_ms=10)).status == "pending"


async def test_a_running_task_is_cancelled_where_that_is_asked_for(client: GrpcClient) -> None:
    task_id = await client.submit()
    await claimed(client.broker)
    await client.call("CancelTask", pb.CancelTaskRequest(task_id=task_id, running=True))
    assert (await status_of(client, task_id)).status == "cancelled"


async def test_a_cancel_is_answered_with_nothing(client: GrpcClient) -> None:
    task_id = await client.submit()
    request = pb.CancelTaskRequest(task_id=task_id)
    assert await client.call("CancelTask", request) == pb.CancelTaskResponse()
    assert (await status_of(client, task_id)).status == "cancelled"
    refusal = await refusal_of(client.call("CancelTask", request))
    assert (refusal.status, refusal.code) == ("FAILED_PRECONDITION", "INVALID_STATUS")


async def test_tasks_are_listed_newest_first_page_by_page(client: GrpcClient) -> None:
    ids = [await client.submit() for _ in range(5)]
    await client.submit("other")
    request = pb.ListTasksRequest(status="pending", task_type="work", limit=3)
    page = await client.call("ListTasks", request)
    assert [task.task_id for task in page.tasks] == ids[:1:-1]
    assert (page.total, page.limit, page.offset) == (5, 3, 0)
    assert (page.tasks[0].task_type, page.tasks[0].priority) == ("work", 100)
    assert page.tasks[0].created_at.seconds == page.tasks[0].updated_at.seconds == START
    request.cursor = page.next_cursor
    rest = await client.call("ListTasks", request)
    assert [task.task_id for task in rest.tasks] == ids[1::-1]
    assert not rest.HasField("next_cursor")
    skipped = await client.call("ListTasks", pb.ListTasksRequest(offset=4))
    assert [task.task_id for task in skipped.tasks] == ids[1::-1]
    assert skipped.limit == 100


async def test_the_figures_are_those_of_rest(client: GrpcClient) -> None:
    for priority in (0, 100, 200, 255):
        await client.submit(priority=priority)
    [one] = await client.claim()
    await client.call("Complete", pb.CompleteRequest(task_id=one.task_id, token=one.token))
    stats = await client.call("GetStats", pb.GetStatsRequest())
    assert (stats.pending_count, stats.in_progress_count, stats.worker_count) == (3, 0, 1)
    assert (stats.completed_last_hour, stats.failed_last_hour) == (1, 0)
    assert stats.queue_depth_by_priority == {"high": 1, "normal": 1, "low": 1}


async def test_each_task_of_a_batch_has_an_outcome_of_its_own(client: GrpcClient) -> None:
    tasks = [
        pb.SubmitTaskRequest(task_type="work", payload=b"1"),
        pb.SubmitTaskRequest(payload=b"2"),
        pb.SubmitTaskRequest(task_type="work", task_id="no uuid"),
        pb.SubmitTaskRequest(task_type="work", payload=b"4", priority=7),
    ]
    reply = await client.call("SubmitTasks", pb.SubmitTasksRequest(tasks=tasks))
    outcomes = [result.WhichOneof("outcome") for result in reply.results]
    assert outcomes == ["response", "error", "error", "response"]
    assert [result.error.code for result in reply.results[1:3]] == ["INVALID_REQUEST"] * 2
    assert "task_type" in reply.results[1].error.message
    assert (await status_of(client, reply.results[3].response.task_id)).priority == 7
    assert reply.results[0].response.created_at.seconds == START


async def test_a_batch_in_which_nothing_can_be_read_has_its_errors(client: GrpcClient) -> None:
    reply = await client.call("SubmitTasks", pb.SubmitTasksRequest(tasks=[pb.SubmitTaskRequest()]))
    assert [result.error.code for result in reply.results] == ["INVALID_REQUEST"]


@pytest.mark.parametrize("number", [0, 10_001])
async def test_a_batch_has_1_to_10000_tasks(client: GrpcClient, number: int) -> None:
    task = pb.SubmitTaskRequest(task_type="work")
    refusal = await refusal_of(
        client.call("SubmitTasks", pb.SubmitTasksRequest(tasks=[task] * number))
    )
    assert (refusal.status, refusal.fields) == ("INVALID_ARGUMENT", ["tasks"])


async def test_a_claim_has_every_field(client: GrpcClient) -> None:
    task_id = await client.submit(timeout_seconds=7, priority=9)
    [one] = await client.claim(count=5)
    assert (one.task_id, one.task_type, one.payload) == (task_id, "work", b"x")
    assert (one.attempt, one.timeout_seconds, one.priority) == (1, 7, 9)
    assert one.token > 0
    assert one.created_at.seconds == START


async def test_a_repeated_claim_gets_the_same_tasks(client: GrpcClient) -> None:
    for _ in range(2):
        await client.submit()
    [first] = await client.claim(request_id="claim-1")
    [again] = await client.claim(request_id="claim-1")
    assert (first.task_id, first.token) == (again.task_id, again.token)


async def test_a_claim_waits_for_work(client: GrpcClient) -> None:
    waiting = asyncio.ensure_future(client.claim(wait_ms=60_000))
    await until_parked()
    task_id = await client.submit()
    assert [one.task_id for one in await waiting] == [task_id]


async def test_a_task_claimed_for_a_worker_that_went_away_goes_back(client: GrpcClient) -> None:
    waiting = asyncio.ensure_future(client.claim(wait_ms=60_000))
    await until_parked()
    waiting.cancel()
    await until_parked()
    await client.submit()
    await until_parked()
    assert len(await client.claim("w2")) == 1


async def test_tasks_that_do_not_fit_in_an_answer_go_back(client: GrpcClient) -> None:
    size = 9 * 1024 * 1024
    for _ in range(2):
        request = pb.SubmitTaskRequest(task_type="work", payload=bytes(size))
        await client.call("SubmitTask", request)
    assert [len(one.payload) for one in await client.claim(count=2)] == [size]
    await until_parked()
    [other] = await client.claim("w2", count=2, wait_ms=5_000)
    assert (len(other.payload), other.attempt) == (size, 1)


async def test_a_released_task_costs_no_retry(client: GrpcClient) -> None:
    task_id = await client.submit()
    [one] = await client.claim()
    request = pb.ReleaseRequest(task_id=task_id, token=one.token)
    reply = await client.call("Release", request)
    assert (reply.status, reply.retry_count) == ("pending", 0)


async def test_a_beat_tells_what_is_lost(client: GrpcClient) -> None:
    await client.submit()
    [one] = await client.claim()
    held = [
        pb.HeldClaim(task_id=one.task_id, token=one.token),
        pb.HeldClaim(task_id=ABSENT, token=1),
    ]
    reply = await client.call("Beat", pb.BeatRequest(worker_id="w1", held=held))
    assert (list(reply.lost), reply.lease_seconds) == ([ABSENT], 30.0)


async def test_a_goodbye_gives_back_what_is_held(client: GrpcClient) -> None:
    await client.submit()
    await client.claim()
    assert (await client.call("Leave", pb.LeaveRequest(worker_id="w1"))).released == 1
    assert len(await client.claim("w2")) == 1


async def test_a_word_under_an_old_token_is_refused(client: GrpcClient) -> None:
    task_id = await client.submit()
    await client.claim()
    refusal = await refusal_of(
        client.call("Complete", pb.CompleteRequest(task_id=task_id, token=2**63 - 1))
    )
    assert (refusal.status, refusal.code) == ("ABORTED", "LEASE_LOST")


@pytest.mark.parametrize("name", ["GetTaskStatus", "CancelTask", "RetryTask", "StreamTaskUpdates"])
@pytest.mark.parametrize("task_id", [ABSENT, "", "no uuid"])
async def test_a_task_that_does_not_exist_is_not_found(
    client: GrpcClient, name: str, task_id: str
) -> None:
    refusal = await refusal_of(client.call(name, getattr(pb, f"{name}Request")(task_id=task_id)))
    assert (refusal.status, refusal.code) == ("NOT_FOUND", "TASK_NOT_FOUND")


async def test_a_full_queue_says_when_to_try_again(tmp_path: Path) -> None:
    settings = BrokerSettings(max_pending=1)
    async with a_grpc_client(tmp_path / "data", broker_settings=settings) as client:
        await client.submit()
        refusal = await refusal_of(
            client.call("SubmitTask", pb.SubmitTaskRequest(task_type="work"))
        )
        assert (refusal.status, refusal.code) == ("RESOURCE_EXHAUSTED", "QUEUE_DEPTH_EXCEEDED")
        assert refusal.retry_seconds == 1.0
        assert refusal.metadata["retry-after"] == "1"


async def test_an_answer_carries_the_request_id(client: GrpcClient) -> None:
    call = client.call("GetStats", pb.GetStatsRequest(), [("x-request-id", "mine-1")])
    assert dict(await call.initial_metadata())["x-request-id"] == "mine-1"
    await call
    nameless = client.call("GetStats", pb.GetStatsRequest())
    assert len(dict(await nameless.initial_metadata())["x-request-id"]) == 36
    await nameless


async def test_an_error_carries_the_request_id_before_and_after(client: GrpcClient) -> None:
    request = pb.GetTaskStatusRequest(task_id=ABSENT)
    call = client.call("GetTaskStatus", request, [("x-request-id", "mine-2")])
    refusal = await refusal_of(call)
    assert refusal.metadata["x-request-id"] == "mine-2"
    assert dict(await call.initial_metadata())["x-request-id"] == "mine-2"
    assert refusal.domain == "taskqueue"


async def test_a_change_that_is_not_confirmed_has_no_known_outcome() -> None:
    storage = GatedStorage()
    settings = GrpcSettings(answer_seconds=1)
    async with a_grpc_client(Path(), storage=storage, settings=settings) as client:
        refusal = await refusal_of(
            client.call("SubmitTask", pb.SubmitTaskRequest(task_type="work"))
        )
        assert (refusal.status, refusal.code) == ("UNAVAILABLE", "BROKER_UNAVAILABLE")
        assert "unknown" in refusal.message
        assert refusal.retry_seconds == 1.0
        storage.commit()


async def test_a_change_goes_on_though_its_caller_has_gone(tmp_path: Path) -> None:
    storage = GatedStorage()
    async with a_grpc_client(tmp_path, storage=storage) as client:
        request = pb.SubmitTaskRequest(task_type="work")
        refused = client.call("SubmitTask", request, timeout=0.2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await refused
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(lambda: storage.begun == 1)
        storage.commit()
        later = asyncio.ensure_future(client.broker.cancel(m.CancelRequest(task_id=ABSENT)))
        await until(lambda: storage.begun == 2)
        storage.commit()
        await later


class BrokenStorage(GatedStorage):
    """Reads fail in the way a test wants."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def get(self, task_id: str) -> TaskDetail | None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (BrokerUnavailable("the disk is gone"), "UNAVAILABLE", "the disk is gone"),
        (DataDamaged("bytes are damaged"), "INTERNAL", "bytes are damaged"),
        (RuntimeError("a secret"), "INTERNAL", "request id mine-3"),
    ],
)
@pytest.mark.parametrize("name", ["GetTaskStatus", "StreamTaskUpdates"])
async def test_a_fault_is_told_without_its_inside(
    error: Exception, status: str, told: str, name: str
) -> None:
    async with a_grpc_client(Path(), storage=BrokenStorage(error)) as client:
        request = pb.GetTaskStatusRequest(task_id=ABSENT)
        refusal = await refusal_of(client.call(name, request, [("x-request-id", "mine-3")]))
        assert refusal.status == status
        assert told in refusal.message
        assert "a secret" not in refusal.message


class HistoryStorage(GatedStorage):
    """Has one task that failed more often than a message can say."""

    async def get(self, task_id: str) -> TaskDetail | None:
        failure = Failure(1, START * SECOND, "w", "E", "x" * 65_000, "y" * 65_000)
        return TaskDetail(a_submit(id=task_id).task, None, [failure] * 200)


async def test_failures_that_do_not_fit_are_left_out_oldest_first() -> None:
    async with a_grpc_client(Path(), storage=HistoryStorage()) as client:
        task = await status_of(client, ABSENT)
        assert 100 < len(task.failures) < 130
        assert task.ByteSize() <= LARGEST_MESSAGE
