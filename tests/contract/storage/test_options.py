"""What tasks can have beside the usual: expiry, unique keys, labels, notes, changes."""

import pytest
from msgspec.structs import replace

from taskqueue.core.clock import SECOND
from taskqueue.core.commands import (
    Cancel,
    Change,
    Checkpoint,
    Complete,
    Delete,
    Expire,
    Extend,
    Fail,
    Log,
    Promote,
    Purge,
    Submit,
)
from taskqueue.core.errors import InvalidStatus, LeaseLost, TaskNotFound
from taskqueue.core.repeats import LOOK_AGAIN, Unique, While
from taskqueue.core.retry import RetryPolicy
from taskqueue.core.task import LogLevel, Options, Status, Task
from taskqueue.storage.port import TaskQuery
from tests.support.storage import Queue

HOUR = 3600


def unique(queue: Queue, key: Unique, **fields: object) -> Submit:
    return replace(queue.a_submit(**fields), unique=key)  # type: ignore[arg-type]


async def test_a_claim_passes_expired_tasks_over_and_misses_none_beside_them(queue: Queue) -> None:
    first = await queue.submit(b"1")
    short = await queue.submit(b"2", expires_at=queue.clock.wall() + SECOND)
    queue.clock.advance(HOUR)
    last = await queue.submit(b"3")
    assert [one.task.id for one in await queue.claim(limit=2)] == [first.id, last.id]
    detail = await queue.detail(short.id)
    assert detail.task.status is Status.CANCELLED
    assert [str(failure) for failure in detail.failures] == [
        "Expired: it was not started before its expiry"
    ]


async def test_what_is_picked_and_not_handed_out_is_found_by_the_next_claim(queue: Queue) -> None:
    large = [await queue.submit(bytes(6 * 1024 * 1024)) for _ in range(4)]
    for task in large:
        queue.clock.advance(HOUR)
        [claimed] = await queue.claim(limit=1)
        assert claimed.task.id == task.id
    assert await queue.claim(limit=4) == []


async def test_expired_tasks_are_told_of_until_they_are_taken_out(queue: Queue) -> None:
    task = await queue.submit(expires_at=queue.clock.wall() + SECOND)
    assert await queue.storage.expired(queue.clock.wall(), 10) == []
    queue.clock.advance(1)
    [expired] = await queue.storage.expired(queue.clock.wall(), 10)
    assert expired.id == task.id
    after: Task = await queue.do(Expire(task.id))
    assert after.status is Status.CANCELLED
    assert await queue.storage.expired(queue.clock.wall(), 10) == []


@pytest.mark.parametrize(
    ("span", "while_waiting", "while_running", "once_over"),
    [(While.PENDING, True, False, False), (While.RUNNING, True, True, False)],
)
async def test_a_task_of_a_unique_key_stands_for_others(
    queue: Queue, span: While, while_waiting: bool, while_running: bool, once_over: bool
) -> None:
    async def is_refused() -> bool:
        again: Task = await queue.do(unique(queue, Unique("work k", span)))
        refused = again.id == first.id
        if not refused:
            await queue.do(Cancel(again.id))
        return refused

    first: Task = await queue.do(unique(queue, Unique("work k", span), priority=200))
    assert await is_refused() is while_waiting
    [claimed] = await queue.claim()
    assert claimed.task.id == first.id
    assert await is_refused() is while_running
    await queue.do(Complete(first.id, 1, b""))
    assert await is_refused() is once_over


async def test_for_a_period_a_key_is_taken_whatever_becomes_of_its_task(queue: Queue) -> None:
    key = Unique("work k", While.PERIOD, 10 * SECOND)
    first: Task = await queue.do(unique(queue, key))
    await queue.do(Cancel(first.id))
    await queue.do(Delete(first.id))
    queue.clock.advance(9.9)
    again: Task = await queue.do(unique(queue, key))
    assert (again.id, again.created_at) == (first.id, first.created_at)
    queue.clock.advance(0.2)
    assert (await queue.do(unique(queue, key))).id != first.id


async def test_the_latest_task_of_a_key_takes_the_place_of_one_that_waits(queue: Queue) -> None:
    key = Unique("work k", replaces=True)
    first: Task = await queue.do(unique(queue, key))
    second: Task = await queue.do(unique(queue, key))
    assert (await queue.detail(first.id)).task.status is Status.CANCELLED
    [claimed] = await queue.claim()
    assert claimed.task.id == second.id
    third: Task = await queue.do(unique(queue, key))
    assert (await queue.detail(second.id)).task.status is Status.IN_PROGRESS
    assert third.id not in (first.id, second.id)


async def test_tasks_of_one_key_in_one_transaction_are_one(queue: Queue) -> None:
    submits = [unique(queue, Unique("work k")) for _ in range(3)]
    outcomes = (await queue.apply(*submits)).outcomes
    ids = {outcome.id for outcome in outcomes if isinstance(outcome, Task)}
    assert ids == {submits[0].task.id}
    assert await queue.storage.count(None, None) == 1


async def test_a_key_outlives_the_purge_of_old_answers_while_its_task_waits(queue: Queue) -> None:
    first: Task = await queue.do(unique(queue, Unique("work k")))
    for _ in range(3):
        queue.clock.advance(LOOK_AGAIN / SECOND + 1)
        assert await queue.do(Purge(0, 10)) == 0
        again: Task = await queue.do(unique(queue, Unique("work k")))
        assert again.id == first.id
    await queue.do(Cancel(first.id))
    queue.clock.advance(LOOK_AGAIN / SECOND + 1)
    assert await queue.do(Purge(0, 10)) == 1


async def test_lists_ask_for_labels_with_everything_else(queue: Queue) -> None:
    vip = Options(tags=("vip", "eu"), metadata={"customer": "17"})
    eu = Options(tags=("eu",), metadata={"customer": "18", "note": "a=b"})
    first = await queue.submit(options=vip)
    second = await queue.submit(options=eu)
    third = await queue.submit(options=vip, task_type="other")
    await queue.submit()
    await queue.do(Cancel(second.id))

    async def found(**asked: object) -> list[str]:
        query = TaskQuery(**asked)  # type: ignore[arg-type]
        tasks = await queue.storage.find(query)
        assert await queue.storage.number(query) == len(tasks)
        return [task.id for task in tasks]

    assert await found(tags=("eu",)) == [third.id, second.id, first.id]
    assert await found(tags=("eu", "vip")) == [third.id, first.id]
    assert await found(metadata=(("note", "a=b"),)) == [second.id]
    assert await found(tags=("vip",), metadata=(("customer", "18"),)) == []
    assert await found(tags=("eu",), status=Status.CANCELLED) == [second.id]
    assert await found(tags=("eu",), task_type="other") == [third.id]
    assert await found(tags=("customer=17",)) == []
    page = await queue.storage.find(TaskQuery(tags=("eu",), limit=1, before_seq=third.seq))
    assert [task.id for task in page] == [second.id]
    await queue.do(Delete(second.id))
    assert await found(tags=("eu",)) == [third.id, first.id]
    assert await queue.storage.audit() == []


async def test_options_come_back_as_they_were_given(queue: Queue) -> None:
    options = Options(
        tags=("a b".replace(" ", "-"), "ü"),
        metadata={"k": 'quote " and \\ and \n and é'},
        retry=RetryPolicy(first=1, factor=1.5, longest=3, jitter=0.25),
        retention=7,
    )
    task = await queue.submit(options=options)
    assert (await queue.detail(task.id)).task.options == options
    [claimed] = await queue.claim()
    assert claimed.task.options == options


async def test_a_policy_of_its_own_says_when_the_next_attempt_is_due(queue: Queue) -> None:
    policy = RetryPolicy(first=2 * SECOND, factor=3.0, longest=10 * SECOND, jitter=0.5)
    task = await queue.submit(options=Options(retry=policy), max_retries=5)
    for token, delay in enumerate((2, 6, 10, 10), 1):
        [claimed] = await queue.claim()
        assert claimed.task.id == task.id
        after: Task = await queue.do(Fail(task.id, token, "E", "m"))
        assert after.run_at == queue.clock.wall() + delay * SECOND
        queue.clock.advance(delay)
        await queue.do(Promote(10))
    late: Task = (await queue.claim())[0].task
    spread: Task = await queue.do(Fail(task.id, late.token, "E", "m", spread=-1.0))
    assert spread.run_at == queue.clock.wall() + 5 * SECOND


async def test_a_retention_of_its_own_ends_before_the_usual_one(queue: Queue) -> None:
    short = await queue.running(options=Options(retention=2 * SECOND))
    usual = await queue.running()
    for task in (short, usual):
        await queue.do(Complete(task.id, task.token, b"r"))
    queue.clock.advance(1)
    assert await queue.do(Purge(0, 10)) == 0
    queue.clock.advance(2)
    assert await queue.do(Purge(0, 10)) == 1
    assert await queue.storage.get(short.id) is None
    assert (await queue.detail(usual.id)).result == b"r"
    assert await queue.storage.audit() == []


async def test_a_change_moves_a_task_in_the_order_of_claims(queue: Queue) -> None:
    first = await queue.submit()
    second = await queue.submit()
    await queue.do(Change(second.id, priority=250))
    assert [one.task.id for one in await queue.claim(limit=1)] == [second.id]
    later = queue.clock.wall() + 5 * SECOND
    await queue.do(Change(first.id, run_at=later))
    assert await queue.claim() == []
    queue.clock.advance(5)
    with pytest.raises(InvalidStatus):
        await queue.do(Change(second.id, priority=1))
    with pytest.raises(TaskNotFound):
        await queue.do(Change("00000000-0000-7000-8000-000000000000", priority=1))
    assert await queue.storage.audit() == []


async def test_lines_and_checkpoints_stay_with_the_task(queue: Queue) -> None:
    task = await queue.running()
    await queue.do(Log(task.id, 1, LogLevel.INFO, "one"))
    queue.clock.advance(1)
    await queue.do(Checkpoint(task.id, 1, b"\0half"))
    await queue.do(Checkpoint(task.id, 1, b"\0more"))
    await queue.do(Fail(task.id, 1, "E", "m", delay=0))
    with pytest.raises(LeaseLost):
        await queue.do(Log(task.id, 1, LogLevel.INFO, "late"))
    [claimed] = await queue.claim()
    assert claimed.checkpoint == b"\0more"
    await queue.do(Log(task.id, 2, LogLevel.ERROR, "two\n"))
    lines = await queue.storage.logs(task.id)
    assert lines is not None
    assert [(one.attempt, one.level, one.message) for one in lines] == [
        (1, "info", "one"),
        (2, "error", "two\n"),
    ]
    assert await queue.storage.logs("00000000-0000-7000-8000-000000000000") is None


async def test_an_extended_attempt_is_overdue_only_then(queue: Queue) -> None:
    task = await queue.running(timeout=10 * SECOND)
    queue.clock.advance(9)
    await queue.do(Extend(task.id, 1, 20 * SECOND))
    queue.clock.advance(19)
    assert await queue.storage.overdue(queue.clock.steady(), 10) == []
    queue.clock.advance(1)
    [overdue] = await queue.storage.overdue(queue.clock.steady(), 10)
    assert overdue.id == task.id


async def test_a_deleted_task_leaves_nothing_and_its_id_is_free(queue: Queue) -> None:
    task = await queue.running(options=Options(tags=("t",)))
    await queue.do(Log(task.id, 1, LogLevel.INFO, "line"))
    await queue.do(Checkpoint(task.id, 1, b"c"))
    with pytest.raises(InvalidStatus):
        await queue.do(Delete(task.id))
    await queue.do(Complete(task.id, 1, b"r"))
    await queue.do(Delete(task.id))
    assert await queue.storage.get(task.id) is None
    with pytest.raises(TaskNotFound):
        await queue.do(Delete(task.id))
    assert await queue.storage.audit() == []
    again: Task = await queue.do(queue.a_submit(id=task.id))
    assert again.status is Status.PENDING
