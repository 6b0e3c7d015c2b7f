"""Reads, counters and what a transaction tells, on every engine."""

import pytest

from taskqueue.core.batch import Minute
from taskqueue.core.commands import (
    Cancel,
    Claim,
    Complete,
    Fail,
    Purge,
    Release,
    Submit,
)
from taskqueue.core.errors import TaskNotFound
from taskqueue.core.ids import new_task_id
from taskqueue.core.task import Status, Task, Tier
from taskqueue.storage.port import TaskQuery
from tests.support.storage import Queue

ODD_NAMES = ["100%", "send_email", "sendXemail", "[a-z]*", "\\", "'; DROP TABLE tasks; --", "ünï"]


async def test_each_command_of_a_batch_has_its_own_outcome(queue: Queue) -> None:
    task = await queue.submit()
    good, bad = queue.a_submit(), new_task_id()
    applied = await queue.apply(Cancel(bad), good, Cancel(task.id), Complete(task.id, 1, b""))
    assert isinstance(applied.outcomes[0], TaskNotFound)
    assert isinstance(applied.outcomes[1], Task)
    assert isinstance(applied.outcomes[2], Task)
    assert getattr(applied.outcomes[3], "code", None) == "LEASE_LOST"
    assert await queue.storage.count(Status.CANCELLED, None) == 1
    assert await queue.storage.count(None, None) == 2


async def test_a_task_may_be_submitted_twice_and_cancelled_in_one_batch(queue: Queue) -> None:
    submit = queue.a_submit()
    applied = await queue.apply(submit, submit, Cancel(submit.task.id), Cancel(submit.task.id))
    assert [getattr(one, "status", getattr(one, "code", None)) for one in applied.outcomes] == [
        "pending",
        "pending",
        "cancelled",
        "INVALID_STATUS",
    ]
    assert [task.status for task in applied.moved] == ["pending", "cancelled"]


async def test_a_batch_tells_what_moved_what_is_ready_and_how_deep_the_queue_is(
    queue: Queue,
) -> None:
    applied = await queue.apply(
        queue.a_submit(task_type="a"),
        queue.a_submit(task_type="a"),
        queue.a_submit(task_type="b", delay=7),
        Claim("w", ("a",), 1),
    )
    assert [task.status for task in applied.moved] == [*["pending"] * 3, "in_progress"]
    assert applied.ready == {"a": 1}
    assert applied.next_due == queue.clock.wall() + 7_000_000
    assert applied.pending == 2


async def test_a_released_task_is_told_as_ready(queue: Queue) -> None:
    task = await queue.running()
    assert (await queue.apply(Release(task.id, 1))).ready == {"work": 1}


async def test_lists_are_newest_first_with_limit_offset_and_cursor(queue: Queue) -> None:
    ids = [(await queue.submit()).id for _ in range(7)][::-1]
    find = queue.storage.find
    assert [task.id for task in await find(TaskQuery())] == ids
    assert [task.id for task in await find(TaskQuery(limit=2, offset=3))] == ids[3:5]
    third = (await find(TaskQuery(limit=3)))[-1]
    assert [task.id for task in await find(TaskQuery(before_seq=third.seq))] == ids[3:]
    assert await find(TaskQuery(offset=7)) == []


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_filters_are_literal(queue: Queue, name: str) -> None:
    await queue.apply(*(queue.a_submit(task_type=one) for one in ODD_NAMES))
    [found] = await queue.storage.find(TaskQuery(task_type=name))
    assert found.task_type == name
    assert await queue.storage.count(None, name) == 1
    assert len(await queue.claim(name, limit=99)) == 1


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("task_type", [None, "a", "b", "none"])
async def test_filters_and_counts_agree(
    queue: Queue, status: Status, task_type: str | None
) -> None:
    await populate(queue)
    everything = await queue.storage.find(TaskQuery(limit=1000))
    expected = [
        task for task in everything if task.status is status and task_type in (None, task.task_type)
    ]
    query = TaskQuery(status=status, task_type=task_type, limit=1000)
    assert await queue.storage.find(query) == expected
    assert await queue.storage.count(status, task_type) == len(expected)
    assert (
        await queue.storage.find(TaskQuery(status=status, task_type=task_type, limit=1, offset=1))
        == expected[1:2]
    )


async def populate(queue: Queue) -> None:
    """Tasks of two types in every status."""
    for kind in "ab":
        for index, fate in enumerate((None, "running", "complete", "fail", "bury", "cancel") * 2):
            task = await queue.submit(task_type=kind, priority=index * 21)
            if fate == "cancel":
                await queue.do(Cancel(task.id))
            elif fate is not None:
                [claimed] = await queue.claim(kind)
                await end(queue, claimed.task, fate)


async def end(queue: Queue, task: Task, fate: str) -> None:
    queue.clock.advance(1.5)
    if fate == "complete":
        await queue.do(Complete(task.id, task.token, b""))
    elif fate in ("fail", "bury"):
        await queue.do(Fail(task.id, task.token, "E", "m", retryable=fate == "fail"))


async def test_counters_are_by_type_status_and_tier(queue: Queue) -> None:
    await queue.apply(
        *(queue.a_submit(task_type="a", priority=one) for one in (0, 99, 100, 199, 200, 255))
    )
    await queue.claim("a", limit=1)
    counts = {count.key: (count.present, count.entered) for count in await queue.storage.counts()}
    assert counts == {
        ("a", Status.PENDING, Tier.LOW): (2, 2),
        ("a", Status.PENDING, Tier.NORMAL): (2, 2),
        ("a", Status.PENDING, Tier.HIGH): (1, 2),
        ("a", Status.IN_PROGRESS, Tier.HIGH): (1, 1),
    }
    totals = await queue.storage.totals(0)
    assert {
        count.key._replace(task_type="a"): (count.present, count.entered) for count in totals.counts
    } == counts


async def test_minutes_hold_ended_attempts_and_their_time(queue: Queue) -> None:
    start = queue.clock.wall()
    for fate in ("complete", "complete", "fail", "bury"):
        await end(queue, await queue.running(), fate)
    totals = await queue.storage.totals(start - 60_000_000)
    assert totals.recent == Minute(completed=2, failed=2, busy=3_000_000)
    queue.clock.advance(3600)
    later = await queue.storage.totals(queue.clock.wall())
    assert later.recent == Minute()


async def test_the_oldest_ready_task_is_known(queue: Queue) -> None:
    assert (await queue.storage.totals(0)).oldest_ready is None
    first = await queue.submit(priority=3)
    queue.clock.advance(10)
    await queue.submit(priority=200)
    await queue.submit(delay=5)
    assert (await queue.storage.totals(0)).oldest_ready == first.run_at
    await queue.claim(limit=2)
    assert (await queue.storage.totals(0)).oldest_ready is None


async def test_purging_deletes_what_is_past_and_nothing_else(queue: Queue) -> None:
    await populate(queue)
    queue.clock.advance(100)
    young = await queue.running(task_type="young")
    await queue.do(Complete(young.id, young.token, b""))
    before = {task.id: task for task in await queue.storage.find(TaskQuery(limit=1000))}
    cut = queue.clock.wall()
    assert await queue.do(Purge(cut, 3)) == 3
    assert await queue.do(Purge(cut, 100)) == 5
    assert await queue.do(Purge(cut, 100)) == 0
    after = {task.id: task for task in await queue.storage.find(TaskQuery(limit=1000))}
    kept = {
        one
        for one, task in before.items()
        if task.status not in (Status.COMPLETED, Status.CANCELLED) or one == young.id
    }
    assert set(after) == kept
    assert await queue.storage.count(Status.CANCELLED, None) == 0


async def test_payload_and_result_come_back_byte_for_byte(queue: Queue) -> None:
    payload, result = bytes(range(256)), b"\0\xff" * 500
    task = await queue.submit(payload)
    [claimed] = await queue.claim()
    assert claimed.payload == payload
    await queue.do(Complete(task.id, 1, result))
    assert (await queue.detail(task.id)).result == result
    assert await queue.storage.payload(task.id) == payload


async def test_what_is_not_there_is_none(queue: Queue) -> None:
    assert await queue.storage.get(new_task_id()) is None
    assert await queue.storage.payload(new_task_id()) is None
    assert await queue.storage.next_due() is None
    assert await queue.storage.holders() == []


async def test_a_large_batch_is_one_transaction(queue: Queue) -> None:
    submits: list[Submit] = [queue.a_submit(bytes([number % 256])) for number in range(700)]
    applied = await queue.apply(*submits)
    assert [one.id for one in applied.outcomes] == [one.task.id for one in submits]  # type: ignore[union-attr]
    claimed = await queue.claim(limit=700)
    assert [one.payload for one in claimed] == [one.payload for one in submits]
    done = await queue.apply(*(Complete(one.task.id, 1, one.payload) for one in claimed))
    assert {one.status for one in done.outcomes} == {Status.COMPLETED}  # type: ignore[union-attr]
