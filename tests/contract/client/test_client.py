"""What both clients do, against a running broker."""

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from taskqueue import (
    AsyncClient,
    IdempotencyConflict,
    InvalidRequest,
    InvalidStatus,
    OutcomeUnknown,
    PayloadTooLarge,
    QueueDepthExceeded,
    Status,
    Task,
    TaskFailed,
    TaskNotFound,
    TaskQueueError,
    WaitTimeout,
)
from taskqueue.broker.broker import BrokerSettings
from taskqueue.client.errors import remote_error
from taskqueue.core.errors import ERRORS_BY_CODE
from taskqueue.core.ids import new_task_id
from taskqueue.wire import messages as m
from taskqueue.wire.messages import LARGEST_PAYLOAD
from tests.contract.client.conftest import ConnectTo
from tests.support.broker import claimed
from tests.support.door import NativeDoor, a_native_door, until


async def completed(door: NativeDoor, result: bytes, task_type: str = "work") -> str:
    """Claim the next task as a worker would and complete it; returns its id."""
    [one] = await claimed(door.broker, task_type, wait_ms=10_000)
    request = m.CompleteRequest(task_id=one.task.id, token=one.task.token, result=result)
    await door.broker.complete(request)
    return one.task.id


async def died(door: NativeDoor, message: str, traceback: str = "") -> str:
    """Claim the next task as a worker would and fail it for good; returns its id."""
    [one] = await claimed(door.broker, wait_ms=10_000)
    request = m.FailRequest(
        task_id=one.task.id,
        token=one.task.token,
        message=message,
        kind="ValueError",
        traceback=traceback,
        retryable=False,
    )
    await door.broker.fail(request)
    return one.task.id


async def test_the_example_of_the_design(door: NativeDoor, client: AsyncClient) -> None:
    payload = b'{"to": "user@example.com"}'
    task_id = await client.submit_task(
        Task("send_email", payload).with_priority(150).with_timeout(600)
    )
    status = await client.get_status(task_id)
    assert (status.status, status.task_type) == ("pending", "send_email")
    assert (status.priority, status.timeout_seconds, status.max_retries) == (150, 600, 3)
    working = asyncio.create_task(completed(door, b"sent", "send_email"))
    assert await client.wait_for_result(task_id) == b"sent"
    assert await working == task_id


async def test_every_setting_of_a_task_arrives(client: AsyncClient) -> None:
    own_id = new_task_id()
    moment = datetime(2130, 1, 2, 3, 4, 5, 678901, timezone(timedelta(hours=2)))
    task = Task("work", b"\x00\xff").with_task_id(own_id).with_schedule_at(moment)
    task = task.with_priority(0).with_timeout(1).with_max_retries(0)
    assert await client.submit_task(task) == own_id
    status = await client.get_status(own_id)
    assert status.schedule_at == moment
    assert (status.priority, status.timeout_seconds, status.max_retries) == (0, 1, 0)
    assert (status.status, status.retry_count, status.failures) == (Status.PENDING, 0, [])
    assert (status.result, status.error, status.worker_id, status.progress) == (None,) * 4


async def test_a_delay_is_counted_from_the_submit(client: AsyncClient) -> None:
    status = await client.get_status(await client.submit_task(Task("work", b"").with_delay(7.5)))
    assert status.schedule_at - status.created_at == timedelta(seconds=7.5)


def test_delay_and_moment_replace_each_other() -> None:
    moment = datetime(2130, 1, 1, tzinfo=UTC)
    assert Task("t", b"").with_delay(1).with_schedule_at(moment).delay is None
    assert Task("t", b"").with_schedule_at(moment).with_delay(1).schedule_at is None


async def test_a_task_is_not_changed_by_its_with_methods() -> None:
    task = Task("work", b"x")
    task.with_priority(1).with_timeout(1).with_max_retries(1).with_delay(1).with_task_id("x")
    assert task == Task("work", b"x")


@pytest.mark.parametrize("payload", [b"", b"\r\n$5\r\n\x00", bytes(LARGEST_PAYLOAD)])
async def test_payloads_and_results_are_bytes(
    door: NativeDoor, client: AsyncClient, payload: bytes
) -> None:
    task_id = await client.submit_task(Task("work", payload))
    [one] = await claimed(door.broker)
    assert one.payload == payload
    request = m.CompleteRequest(task_id=task_id, token=one.task.token, result=payload)
    await door.broker.complete(request)
    assert await client.wait_for_result(task_id) == payload
    assert (await client.get_status(task_id)).result == payload


async def test_many_are_submitted_together_in_order(door: NativeDoor, client: AsyncClient) -> None:
    ids = await client.submit_many(Task("work", b"%d" % number) for number in range(300))
    assert len(set(ids)) == 300
    claims = await claimed(door.broker, count=300)
    assert [one.payload for one in claims] == [b"%d" % number for number in range(300)]
    assert [one.task.id for one in claims] == ids


async def test_none_are_submitted_together(client: AsyncClient) -> None:
    assert await client.submit_many([]) == []


async def test_of_many_one_that_is_refused_does_not_hold_up_the_others(
    client: AsyncClient,
) -> None:
    taken = await client.submit_task(Task("work", b"first"))
    tasks = [Task("work", b"other").with_task_id(taken), Task("work", b"a"), Task("work", b"b")]
    with pytest.raises(IdempotencyConflict):
        await client.submit_many(tasks)
    assert (await client.list_tasks()).total == 3


async def test_of_many_a_wrong_one_is_refused_before_any_is_sent(client: AsyncClient) -> None:
    with pytest.raises(InvalidRequest):
        await client.submit_many([Task("work", b""), Task("work", b"").with_priority(256)])
    assert (await client.list_tasks()).total == 0


async def test_ids_are_given_back_in_the_form_the_broker_keeps(client: AsyncClient) -> None:
    shouted = [new_task_id().upper() for _ in range(2)]
    given = [await client.submit_task(Task("work", b"").with_task_id(shouted[0]))]
    given += await client.submit_many([Task("work", b"").with_task_id(shouted[1])])
    assert given == [one.lower() for one in shouted]


async def test_the_same_id_twice_is_one_task(client: AsyncClient) -> None:
    task = Task("work", b"x").with_task_id(new_task_id())
    assert await client.submit_task(task) == await client.submit_task(task)
    assert (await client.list_tasks()).total == 1
    with pytest.raises(IdempotencyConflict):
        await client.submit_task(Task("work", b"y").with_task_id(str(task.task_id)))


NOBODY = "127.0.0.1:1"


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("task_type", {"task_type": ""}),
        ("task_type", {"task_type": "two words"}),
        ("task_type", {"task_type": "x" * 256}),
        ("task_type", {"task_type": None}),
        ("payload", {"payload": "text"}),
        ("payload", {"payload": None}),
        ("priority", {"priority": -1}),
        ("priority", {"priority": 256}),
        ("priority", {"priority": "urgent"}),
        ("priority", {"priority": True}),
        ("timeout", {"timeout": 0}),
        ("timeout", {"timeout": 2.5}),
        ("max_retries", {"max_retries": -1}),
        ("max_retries", {"max_retries": 1001}),
        ("schedule_at", {"schedule_at": "tomorrow"}),
        ("delay", {"delay": -0.1}),
        ("delay", {"delay": float("nan")}),
        ("delay", {"delay": float("inf")}),
        ("delay", {"delay": 1.0, "schedule_at": datetime(2130, 1, 1, tzinfo=UTC)}),
        ("task_id", {"task_id": "17"}),
        ("task_id", {"task_id": 17}),
    ],
)
async def test_bad_input_is_refused_by_field_before_anything_is_sent(
    connect: ConnectTo, field: str, wrong: dict[str, Any]
) -> None:
    client = connect(NOBODY)
    with pytest.raises(InvalidRequest) as refusal:
        await client.submit_task(Task(**{"task_type": "work", "payload": b""} | wrong))
    assert refusal.value.field == field
    assert field in str(refusal.value)


async def test_a_payload_over_the_limit_is_refused_before_anything_is_sent(
    connect: ConnectTo,
) -> None:
    with pytest.raises(PayloadTooLarge) as refusal:
        await connect(NOBODY).submit_task(Task("work", bytes(LARGEST_PAYLOAD + 1)))
    assert refusal.value.field == "payload"


@pytest.mark.parametrize("url", ["http://host", "tq://", "host:port", "tq://host/path", "host:0x"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        AsyncClient(url)
    assert refusal.value.field == "url"


def test_an_address_is_told_without_its_key() -> None:
    with pytest.raises(InvalidRequest) as refusal:
        AsyncClient("http://secret@host")
    assert "secret" not in str(refusal.value)


async def test_the_address_comes_from_the_environment_where_none_is_given(
    door: NativeDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TQ_URL", f"tq://key@{door.url}")
    async with AsyncClient() as client:
        assert (await client.health()).status == "healthy"


async def test_an_unknown_task_is_not_found(client: AsyncClient) -> None:
    unknown = new_task_id()
    for asked in (client.get_status, client.cancel, client.retry, client.wait_for_result):
        with pytest.raises(TaskNotFound):
            await asked(unknown)
    with pytest.raises(TaskNotFound):
        await client.get_status("not an id")


async def test_cancel_and_retry(door: NativeDoor, client: AsyncClient) -> None:
    task_id = await client.submit_task(Task("work", b""))
    with pytest.raises(InvalidStatus):
        await client.retry(task_id)
    await client.cancel(task_id)
    assert (await client.get_status(task_id)).status == "cancelled"
    await client.retry(task_id)
    assert (await client.get_status(task_id)).status == "pending"
    [one] = await claimed(door.broker)
    assert one.task.id == task_id
    with pytest.raises(InvalidStatus):
        await client.cancel(task_id)


async def test_a_task_that_died_raises_with_its_error_and_traceback(
    door: NativeDoor, client: AsyncClient
) -> None:
    task_id = await client.submit_task(Task("work", b""))
    assert await died(door, "no such user", '  File "mail.py", line 3, in send\n') == task_id
    with pytest.raises(TaskFailed) as failure:
        await client.wait_for_result(task_id)
    error = failure.value
    assert (error.task_id, error.status, error.code) == (task_id, "dead_letter", "TASK_FAILED")
    assert error.traceback == '  File "mail.py", line 3, in send\n'
    assert error.message == "ValueError: no such user"
    assert task_id in str(error)
    assert "mail.py" in str(error)


async def test_a_cancelled_task_raises_as_failed(client: AsyncClient) -> None:
    task_id = await client.submit_task(Task("work", b""))
    await client.cancel(task_id)
    with pytest.raises(TaskFailed, match="cancelled") as failure:
        await client.wait_for_result(task_id)
    assert failure.value.traceback == ""


async def test_a_status_shows_every_failure(door: NativeDoor, client: AsyncClient) -> None:
    task_id = await client.submit_task(Task("work", b""))
    await died(door, "one")
    await client.retry(task_id)
    await died(door, "two")
    status = await client.wait_for_end(task_id)
    assert [failure.error for failure in status.failures] == ["ValueError: one", "ValueError: two"]
    assert [failure.worker_id for failure in status.failures] == ["w1", "w1"]
    assert (status.status, status.error) == ("dead_letter", "ValueError: two")


@pytest.mark.parametrize("seconds", [0, 0.05])
async def test_waiting_ends_and_can_be_taken_up_again(
    door: NativeDoor, client: AsyncClient, seconds: float
) -> None:
    task_id = await client.submit_task(Task("work", b""))
    with pytest.raises(WaitTimeout, match="pending") as over:
        await client.wait_for_result(task_id, timeout=seconds)
    assert isinstance(over.value, TimeoutError)
    await completed(door, b"done")
    assert await client.wait_for_result(task_id, timeout=seconds) == b"done"


async def test_more_wait_than_there_are_connections_to_wait_on(
    door: NativeDoor, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue.client.link.MOST_BLOCKING", 2)
    monkeypatch.setattr("taskqueue.client.aio.LONGEST_WAIT_SLICE", 0.02)
    ids = await client.submit_many(Task("work", b"%d" % number) for number in range(12))
    waiting = [asyncio.create_task(client.wait_for_result(one)) for one in ids]
    claims = await claimed(door.broker, count=12)
    for one in reversed(claims):
        request = m.CompleteRequest(task_id=one.task.id, token=one.task.token, result=one.payload)
        await door.broker.complete(request)
    assert await asyncio.gather(*waiting) == [b"%d" % number for number in range(12)]


async def test_a_wait_ends_in_time_though_others_have_all_connections(
    door: NativeDoor, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue.client.link.MOST_BLOCKING", 1)
    monkeypatch.setattr("taskqueue.client.aio.LONGEST_WAIT_SLICE", 3600.0)
    first, second = await client.submit_many([Task("work", b""), Task("work", b"")])
    waiting = asyncio.create_task(client.wait_for_result(first, timeout=3600))
    await until(lambda: door.broker.metrics.connections["native"]() == 2)
    with pytest.raises(WaitTimeout):
        await client.wait_for_result(second, timeout=0.05)
    assert not waiting.done()
    await completed(door, b"done")
    assert await waiting == b"done"


async def test_tasks_are_listed_by_page(client: AsyncClient) -> None:
    ids = await client.submit_many(Task("mail", b"") for _ in range(5))
    other = await client.submit_task(Task("report", b""))
    await client.cancel(other)
    newest_first = [other, *reversed(ids)]
    page = await client.list_tasks()
    assert [one.task_id for one in page.tasks] == newest_first
    assert (page.total, page.limit, page.offset, page.next_cursor) == (6, 100, 0, None)

    first = await client.list_tasks(limit=4)
    assert [one.task_id for one in first.tasks] == newest_first[:4]
    rest = await client.list_tasks(limit=4, cursor=first.next_cursor)
    assert [one.task_id for one in rest.tasks] == newest_first[4:]
    by_offset = await client.list_tasks(limit=4, offset=4)
    assert [one.task_id for one in by_offset.tasks] == newest_first[4:]

    [cancelled] = (await client.list_tasks(status=Status.CANCELLED)).tasks
    assert (cancelled.task_id, cancelled.task_type, cancelled.status) == (
        other,
        "report",
        "cancelled",
    )
    assert (await client.list_tasks(status="pending", task_type="mail")).total == 5
    with pytest.raises(InvalidRequest, match="limit"):
        await client.list_tasks(limit=0)
    with pytest.raises(InvalidRequest, match="status"):
        await client.list_tasks(status="gone")


async def test_stats_and_health(door: NativeDoor, client: AsyncClient) -> None:
    await client.submit_many([Task("work", b"").with_priority(250), Task("work", b"")])
    await completed(door, b"")
    stats = await client.stats()
    assert (stats.pending_count, stats.in_progress_count, stats.completed_last_hour) == (1, 0, 1)
    assert stats.worker_count == 1
    assert sum(stats.queue_depth_by_priority.values()) == 1
    health = await client.health()
    assert (health.status, health.pending_tasks, health.connected_workers) == ("healthy", 1, 1)


async def test_a_full_queue_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("full")
    async with (
        a_native_door(folder, settings=BrokerSettings(max_pending=1)) as door,
        AsyncClient(door.url, timeout=0.2) as client,
    ):
        await client.submit_task(Task("work", b""))
        with pytest.raises(QueueDepthExceeded):
            await client.submit_task(Task("work", b""))


async def test_a_submit_waits_within_its_time_for_a_full_queue(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("full")
    async with (
        a_native_door(folder, settings=BrokerSettings(max_pending=1)) as door,
        AsyncClient(door.url, timeout=20) as client,
    ):
        first = await client.submit_task(Task("work", b""))
        second = asyncio.create_task(client.submit_task(Task("work", b"")))
        assert (await asyncio.wait([second], timeout=0.2))[0] == set()
        await client.cancel(first)
        assert (await client.get_status(await second)).status == "pending"


@pytest.mark.parametrize("code", sorted(ERRORS_BY_CODE))
def test_every_code_comes_back_as_its_class(code: str) -> None:
    error = remote_error(f"{code} what went wrong")
    assert (error.code, error.message) == (code, "what went wrong")


def test_an_outcome_that_the_broker_does_not_know_is_told_as_such() -> None:
    unknown = remote_error("BROKER_UNAVAILABLE The commit failed: outcome unknown, repeat it")
    assert isinstance(unknown, OutcomeUnknown)
    known = remote_error("BROKER_UNAVAILABLE The disk is full; nothing was changed")
    assert not isinstance(known, OutcomeUnknown)


def test_a_code_of_a_newer_broker_is_still_an_error_of_the_queue() -> None:
    assert str(remote_error("NEW_CODE words")) == "NEW_CODE words"
    assert type(remote_error("NEW_CODE words")) is TaskQueueError
