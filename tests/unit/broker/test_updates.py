"""Followers of a task are told every change once and in order, and cannot fill the memory."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from taskqueue.broker.broker import Broker
from taskqueue.broker.updates import MOST_BEHIND, Change, Subscription, Update, update_of
from taskqueue.core.clock import ManualClock
from taskqueue.core.errors import BrokerUnavailable, QueueDepthExceeded, RateLimitExceeded
from taskqueue.core.task import Event, Failure, Status, Task, TaskDetail
from taskqueue.wire import messages as m
from tests.support.broker import a_broker, claimed, submitted
from tests.support.gate import GatedStorage
from tests.support.tasks import a_submit

STORAGE = GatedStorage()


def a_task(**fields: Any) -> Task:
    return a_submit(**fields).task


def after(task: Task, seconds: int = 0, **fields: Any) -> Task:
    return structs.replace(task, updated_at=task.updated_at + seconds, **fields)


def a_group(*tasks: Task) -> list[Change]:
    return [Change(task, STORAGE) for task in tasks]


async def told(subscription: Subscription, number: int) -> list[Task]:
    """The next so many changes; a sign after them proves that there are no more."""
    subscription.end(RateLimitExceeded("no more"))
    changes = [(await subscription.next()).task for _ in range(number)]
    with pytest.raises(RateLimitExceeded):
        await subscription.next()
    return changes


PENDING = a_task()
RUNNING = after(PENDING, 1, status=Status.IN_PROGRESS, token=1, last_event=Event.CLAIM)
FAILED = after(RUNNING, 1, status=Status.FAILED, retry_count=1, last_event=Event.FAIL)
AGAIN = after(FAILED, status=Status.IN_PROGRESS, token=2, last_event=Event.CLAIM)


async def test_changes_after_what_is_known_are_told_in_order() -> None:
    subscription = Subscription()
    subscription.begin(PENDING)
    subscription.put(a_group(RUNNING))
    subscription.put(a_group(FAILED, AGAIN))
    assert await told(subscription, 3) == [RUNNING, FAILED, AGAIN]


@pytest.mark.parametrize("known", range(4))
@pytest.mark.parametrize("early", range(4))
async def test_what_was_read_is_not_told_again(known: int, early: int) -> None:
    """It is read after any of three transactions, of which any number were told before."""
    groups = [a_group(PENDING), a_group(RUNNING), a_group(FAILED, AGAIN)]
    states = [a_task(updated_at=PENDING.updated_at - 1, id=PENDING.id), PENDING, RUNNING, AGAIN]
    subscription = Subscription()
    for group in groups[:early]:
        subscription.put(group)
    subscription.begin(states[known])
    for group in groups[early:]:
        subscription.put(group)
    expected = [change.task for group in groups[known:] for change in group]
    assert await told(subscription, len(expected)) == expected


HISTORY = [
    PENDING,
    after(PENDING, status=Status.IN_PROGRESS, token=1, last_event=Event.CLAIM),
    after(PENDING, status=Status.IN_PROGRESS, token=1, last_event=Event.CLAIM, progress=0.5),
    after(PENDING, status=Status.FAILED, token=1, last_event=Event.FAIL),
    after(PENDING, status=Status.IN_PROGRESS, token=2, last_event=Event.CLAIM),
    after(PENDING, status=Status.PENDING, token=2, last_event=Event.RELEASE),
    after(PENDING, status=Status.CANCELLED, token=2, last_event=Event.CANCEL),
    after(PENDING, status=Status.PENDING, token=2, last_event=Event.RETRY),
    after(PENDING, status=Status.IN_PROGRESS, token=3, last_event=Event.CLAIM),
    after(PENDING, status=Status.COMPLETED, token=3, last_event=Event.COMPLETE),
]
"""The life of a task while the clock stands, as it does for a time when it was set back."""


@pytest.mark.parametrize("known", range(len(HISTORY)))
async def test_changes_under_a_clock_that_stands_are_told_in_order(known: int) -> None:
    subscription = Subscription()
    for state in HISTORY[: known + 1]:
        subscription.put(a_group(state))
    subscription.begin(HISTORY[known])
    for state in HISTORY[known + 1 :]:
        subscription.put(a_group(state))
    expected = HISTORY[known + 1 :]
    assert await told(subscription, len(expected)) == expected


async def test_one_who_waits_is_woken() -> None:
    subscription = Subscription()
    subscription.begin(PENDING)
    waiting = asyncio.ensure_future(subscription.next())
    await asyncio.sleep(0)
    subscription.put(a_group(RUNNING))
    assert (await waiting).task == RUNNING
    waiting = asyncio.ensure_future(subscription.next())
    await asyncio.sleep(0)
    subscription.end(BrokerUnavailable("gone"))
    with pytest.raises(BrokerUnavailable):
        await waiting


@pytest.mark.parametrize("has_begun", [True, False])
async def test_one_who_is_too_slow_is_cut_off_and_keeps_no_memory(has_begun: bool) -> None:
    subscription = Subscription()
    if has_begun:
        subscription.begin(PENDING)
    for number in range(MOST_BEHIND + 1):
        subscription.put(a_group(after(RUNNING, number)))
    subscription.begin(PENDING)
    with pytest.raises(QueueDepthExceeded):
        await subscription.next()


async def test_one_who_reads_is_never_too_slow() -> None:
    subscription = Subscription()
    subscription.begin(PENDING)
    for number in range(MOST_BEHIND * 2):
        subscription.put(a_group(after(RUNNING, number)))
        assert (await subscription.next()).task.updated_at == RUNNING.updated_at + number


class CountingStorage(GatedStorage):
    """Counts reads, and answers them when told."""

    def __init__(self, answer: TaskDetail | BrokerUnavailable) -> None:
        super().__init__()
        self.reads = 0
        self.answer = answer
        self.may_answer = asyncio.Event()

    async def get(self, task_id: str) -> TaskDetail | None:
        self.reads += 1
        await self.may_answer.wait()
        if isinstance(self.answer, BrokerUnavailable):
            raise self.answer
        return self.answer


def encode(update: Update) -> bytes:
    return f"{update.task.status} {update.result!r} {update.error}".encode()


async def test_a_result_is_read_and_encoded_once_for_all_followers() -> None:
    done = after(RUNNING, status=Status.COMPLETED)
    storage = CountingStorage(TaskDetail(done, b"r", []))
    change = Change(done, storage)
    encodings: list[Update] = []

    def counting(update: Update) -> bytes:
        encodings.append(update)
        return encode(update)

    waiting = [asyncio.ensure_future(change.encoded(counting)) for _ in range(100)]
    await asyncio.sleep(0)
    waiting[0].cancel()  # one who goes spoils nothing for the others
    await asyncio.sleep(0)
    storage.may_answer.set()
    answers = await asyncio.gather(*waiting[1:])
    assert set(answers) == {b"completed b'r' None"}
    assert len({id(answer) for answer in answers}) == 1
    assert (storage.reads, len(encodings)) == (1, 1)


async def test_a_change_without_a_result_reads_nothing() -> None:
    change = Change(RUNNING, STORAGE)
    assert await change.encoded(encode) is await change.encoded(encode)
    assert await change.encoded(encode) == b"in_progress None None"


async def test_a_result_that_cannot_be_read_is_an_error_for_each_follower() -> None:
    storage = CountingStorage(BrokerUnavailable("the disk is gone"))
    storage.may_answer.set()
    change = Change(after(RUNNING, status=Status.COMPLETED), storage)
    for _ in range(2):
        with pytest.raises(BrokerUnavailable):
            await change.encoded(encode)
    assert storage.reads == 1


def test_an_error_is_that_of_the_attempt_that_failed() -> None:
    failures = [Failure(token, 0, "w", "E", f"attempt {token}") for token in (1, 2)]
    detail = TaskDetail(AGAIN, None, failures)
    assert update_of(FAILED, detail).error == "E: attempt 1"
    assert update_of(after(AGAIN, status=Status.DEAD_LETTER), detail).error == "E: attempt 2"
    assert update_of(RUNNING, detail).error is None
    assert update_of(FAILED, None).error is None


async def statuses(broker: Broker, task_id: str) -> list[str]:
    with broker.updates.follow(task_id) as subscription:
        detail = await broker.get(m.WaitRequest(task_id=task_id))
        subscription.begin(detail.task)
        found = [str(detail.task.status)]
        while found[-1] not in ("completed", "cancelled"):
            found.append(str((await subscription.next()).task.status))
    return found


async def test_a_broker_tells_of_every_change(tmp_path: Path) -> None:
    async with a_broker(tmp_path, clock=ManualClock()) as broker:
        task = await submitted(broker)
        other = await submitted(broker, "other")
        following = asyncio.ensure_future(statuses(broker, task.id))
        while not broker.updates.follower_count:  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0)
        [one] = await claimed(broker)
        word: dict[str, Any] = {"task_id": task.id, "token": one.task.token}
        await broker.progress(m.ProgressRequest(**word, fraction=0.5))
        await broker.release(m.ReleaseRequest(**word))
        await broker.cancel(m.CancelRequest(task_id=other.id))
        await broker.cancel(m.CancelRequest(task_id=task.id))
        found = await following
        assert broker.updates.follower_count == 0
    # What came before the present was read may be in it already.
    whole = ["pending", "in_progress", "in_progress", "pending", "cancelled"]
    assert found == whole[-len(found) :]
    assert len(found) > 2


async def test_progress_and_the_end_in_one_transaction_are_told_in_order(tmp_path: Path) -> None:
    async with a_broker(tmp_path, clock=ManualClock()) as broker:
        task = await submitted(broker)
        [one] = await claimed(broker)
        word: dict[str, Any] = {"task_id": task.id, "token": one.task.token}
        with broker.updates.follow(task.id) as subscription:
            subscription.begin(one.task)
            await asyncio.gather(
                broker.progress(m.ProgressRequest(**word, fraction=0.1)),
                broker.progress(m.ProgressRequest(**word, fraction=0.9)),
                broker.complete(m.CompleteRequest(**word)),
            )
            tasks = [(await subscription.next()).task for _ in range(3)]
        assert [task.progress for task in tasks] == [0.1, 0.9, 0.9]
        assert [task.status for task in tasks] == ["in_progress", "in_progress", "completed"]


async def test_nobody_can_follow_a_broker_that_has_closed(tmp_path: Path) -> None:
    async with a_broker(tmp_path, clock=ManualClock()) as broker:
        with broker.updates.follow("early") as early:
            early.begin(PENDING)
            await broker.close()
            with pytest.raises(BrokerUnavailable):
                await early.next()
        with broker.updates.follow("late") as late, pytest.raises(BrokerUnavailable):
            await late.next()
