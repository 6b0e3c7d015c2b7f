"""What a task can be submitted with besides its payload, and what that does."""

from datetime import UTC, datetime
from typing import Any

import pytest

from taskqueue import AsyncClient, Backoff, InvalidRequest, InvalidStatus, Task, TaskNotFound
from taskqueue.core.clock import ManualClock
from taskqueue.core.task import LogLevel
from taskqueue.wire import messages as m
from taskqueue.wire import workers as w
from tests.contract.client.conftest import ConnectTo
from tests.support.broker import claimed
from tests.support.door import NativeDoor, a_native_door

TASK = Task("mail", b"x")
TOMORROW = datetime(2999, 1, 2, 3, 4, 5, tzinfo=UTC)


async def test_labels_are_shown_and_found(client: AsyncClient) -> None:
    labelled = TASK.with_tags("eu").with_tags("vip", "new").with_metadata(user="7", plan="a=b")
    task_id = await client.submit_task(labelled)
    await client.submit_task(TASK.with_tags("eu").with_metadata(user="8"))
    status = await client.get_status(task_id)
    assert sorted(status.tags) == ["eu", "new", "vip"]
    assert status.metadata == {"user": "7", "plan": "a=b"}

    async def found(**filters: Any) -> int:
        return (await client.list_tasks(**filters)).total

    assert await found(tags=["eu"]) == 2
    assert await found(tags=["eu", "vip"]) == 1
    assert await found(metadata={"user": "8"}) == 1
    assert await found(tags=["vip"], metadata={"user": "8"}) == 0
    assert await found(metadata={"plan": "a=b"}) == 1


@pytest.mark.parametrize(
    ("name", "number"), [("low", 50), ("normal", 100), ("high", 200), ("critical", 255)]
)
async def test_priorities_have_names(client: AsyncClient, name: Any, number: int) -> None:
    task_id = await client.submit_task(TASK.with_priority(name))
    assert (await client.get_status(task_id)).priority == number


async def test_of_one_unique_key_there_is_one(client: AsyncClient) -> None:
    first = await client.submit_task(TASK.with_unique_key("ada"))
    assert await client.submit_task(TASK.with_unique_key("ada")) == first
    assert await client.submit_task(TASK.with_unique_key("bob")) != first
    newer = await client.submit_task(TASK.with_unique_key("ada", replace=True))
    assert newer != first
    assert (await client.get_status(first)).status == "cancelled"
    assert (await client.get_status(newer)).status == "pending"


async def test_unique_while_pending_ends_when_it_runs(
    client: AsyncClient, door: NativeDoor
) -> None:
    waiting = TASK.with_unique_key("ada", unique_while="pending")
    running = Task("report", b"").with_unique_key("ada", unique_while="running")
    first = [await client.submit_task(task) for task in (waiting, running)]
    assert len(await claimed(door.broker, "mail", "report", count=2)) == 2
    second = [await client.submit_task(task) for task in (waiting, running)]
    assert second[0] != first[0]
    assert second[1] == first[1]


async def test_an_expiry_is_shown_and_must_lie_ahead(client: AsyncClient) -> None:
    kept = await client.submit_task(Task("mail", b"", expires_at=TOMORROW))
    assert (await client.get_status(kept)).expires_at == TOMORROW
    with pytest.raises(InvalidRequest, match="later than the moment"):
        await client.submit_task(Task("mail", b"", expires_at=datetime(2001, 1, 1, tzinfo=UTC)))


async def test_a_retry_comes_after_the_delays_that_were_asked_for(
    connect: ConnectTo, tmp_path: Any
) -> None:
    clock = ManualClock()
    async with a_native_door(tmp_path / "clocked", clock=clock) as door:
        client = connect(door.url)
        backoff = Backoff(first=7.0, factor=3.0, longest=20.0, jitter=0.0)
        task_id = await client.submit_task(TASK.with_max_retries(5).with_backoff(backoff))
        delays: list[float] = []
        for _ in range(4):
            [one] = await claimed(door.broker, "mail")
            failed = m.FailRequest(task_id=task_id, token=one.task.token, message="no")
            await door.broker.fail(failed)
            status = await client.get_status(task_id)
            delays.append((status.schedule_at - status.updated_at).total_seconds())
            clock.advance(delays[-1])
            await door.broker.upkeep.promote()
    assert delays == [7.0, 20.0, 20.0, 20.0]


async def test_a_task_that_waits_can_be_changed(client: AsyncClient) -> None:
    task_id = await client.submit_task(TASK)
    await client.change(task_id, priority="critical", schedule_at=TOMORROW)
    status = await client.get_status(task_id)
    assert (status.priority, status.schedule_at) == (255, TOMORROW)
    await client.change(task_id, delay=0.0)
    assert (await client.get_status(task_id)).schedule_at < TOMORROW
    with pytest.raises(InvalidRequest):
        await client.change(task_id, priority=256)
    await client.cancel(task_id)
    with pytest.raises(InvalidStatus):
        await client.change(task_id, priority=1)


async def test_a_task_that_has_ended_can_be_deleted(client: AsyncClient) -> None:
    task_id = await client.submit_task(TASK)
    with pytest.raises(InvalidStatus):
        await client.purge(task_id)
    await client.cancel(task_id)
    await client.purge(task_id)
    with pytest.raises(TaskNotFound):
        await client.get_status(task_id)


async def test_the_log_of_a_task_is_shown(client: AsyncClient, door: NativeDoor) -> None:
    task_id = await client.submit_task(TASK)
    assert await client.logs(task_id) == []
    [one] = await claimed(door.broker, "mail")
    for level in ("info", "error"):
        await door.broker.log(
            w.LogRequest(
                task_id=task_id, token=one.task.token, message=f"{level} é", level=LogLevel(level)
            )
        )
    lines = await client.logs(task_id)
    assert [(line.attempt, line.level, line.message) for line in lines] == [
        (1, "info", "info é"),
        (1, "error", "error é"),
    ]
    with pytest.raises(TaskNotFound):
        await client.logs("0190a4b2-7c1e-7000-8000-000000000000")


async def test_ten_thousand_are_submitted_in_one_call(client: AsyncClient) -> None:
    ids = await client.submit_many(Task("mail", b"%d" % number) for number in range(10_000))
    assert len(set(ids)) == 10_000
    page = await client.list_tasks(limit=1)
    assert page.total == 10_000
    assert page.tasks[0].task_id == ids[-1]
