"""Housekeeping: leases, deadlines, due tasks, retention; time is moved by hand."""

import asyncio
from pathlib import Path

from taskqueue.broker.broker import Broker, BrokerSettings
from taskqueue.core.clock import ManualClock
from taskqueue.core.task import Status, TaskDetail
from taskqueue.wire import messages as m
from taskqueue.wire import workers as w
from tests.support.broker import a_broker, claimed, submitted, until_parked


async def live(broker: Broker, clock: ManualClock, seconds: int) -> None:
    """Let time pass as a healthy broker sees it: a round of chores each second."""
    for _ in range(seconds):
        clock.advance(1)
        await broker.upkeep.round()


async def detail_of(broker: Broker, task_id: str) -> TaskDetail:
    return await broker.get(m.WaitRequest(task_id=task_id))


async def test_the_task_of_a_silent_worker_is_taken_back_at_the_cost_of_a_retry(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    async with a_broker(tmp_path, clock=clock) as broker:
        task = await submitted(broker)
        await claimed(broker)
        await live(broker, clock, 29)
        assert (await detail_of(broker, task.id)).task.status is Status.IN_PROGRESS
        await live(broker, clock, 2)
        detail = await detail_of(broker, task.id)
        assert (detail.task.status, detail.task.retry_count) == (Status.FAILED, 1)
        assert str(detail.failures[0]) == "WorkerLost: the worker fell silent"
        assert len(await claimed(broker, worker_id="w2")) == 1
        assert "w1" not in broker.workers


async def test_a_lost_worker_is_not_handed_its_tasks_again_by_a_claim_that_still_waits(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    async with a_broker(tmp_path, clock=clock) as broker:
        await submitted(broker)
        [one] = await claimed(broker)
        beat = w.BeatRequest(worker_id="w1", held=[w.HeldClaim(one.task.id, one.task.token)])
        await broker.crew.beat(beat)
        frozen = asyncio.ensure_future(claimed(broker, wait_ms=3_600_000))
        without_beats = asyncio.ensure_future(claimed(broker, worker_id="w2", wait_ms=3_600_000))
        await until_parked()
        await live(broker, clock, 31)
        assert await frozen == []
        assert [again.task.id for again in await without_beats] == [one.task.id]


async def test_a_worker_that_beats_keeps_its_tasks(tmp_path: Path) -> None:
    clock = ManualClock()
    async with a_broker(tmp_path, clock=clock) as broker:
        task = await submitted(broker, timeout_seconds=10_000)
        [one] = await claimed(broker)
        for _ in range(20):
            await live(broker, clock, 10)
            reply = await broker.crew.beat(
                w.BeatRequest(worker_id="w1", held=[w.HeldClaim(task.id, one.task.token)])
            )
            assert reply.lost == []
        assert (await detail_of(broker, task.id)).task.status is Status.IN_PROGRESS


async def test_a_beat_tells_what_was_lost_and_never_revives_it(tmp_path: Path) -> None:
    clock = ManualClock()
    async with a_broker(tmp_path, clock=clock) as broker:
        task = await submitted(broker)
        [one] = await claimed(broker)
        await live(broker, clock, 31)
        held = [w.HeldClaim(task.id, one.task.token)]
        reply = await broker.crew.beat(w.BeatRequest(worker_id="w1", held=held))
        assert reply.lost == [task.id]
        assert (await detail_of(broker, task.id)).task.status is Status.FAILED


async def test_a_claim_the_worker_does_not_know_of_is_taken_back_after_a_lease(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    async with a_broker(tmp_path, clock=clock) as broker:
        task = await submitted(broker)
        await claimed(broker)  # the answer never arrives
        for _ in range(3):
            await live(broker, clock, 10)
            await broker.crew.beat(w.BeatRequest(worker_id="w1"))
        assert (await detail_of(broker, task.id)).task.status is Status.IN_PROGRESS
        await live(broker, clock, 10)
        await broker.crew.beat(w.BeatRequest(worker_id="w1"))
        assert (await detail_of(broker, task.id)).task.status is Status.FAILED


async def test_an_attempt_past_its_deadline_is_ended(tmp_path: Path) -> None:
    clock = ManualClock()
    async with a_broker(tmp_path, clock=clock) as broker:
        task = await submitted(broker, timeout_seconds=5, max_retries=0)
        await claimed(broker)
        await live(broker, clock, 4)
        assert (await detail_of(broker, task.id)).task.status is Status.IN_PROGRESS
        await live(broker, clock, 1)
        detail = await detail_of(broker, task.id)
        assert detail.task.status is Status.DEAD_LETTER
        assert str(detail.failures[0]) == "TimedOut: the attempt passed its deadline"


async def test_a_stalled_broker_takes_nothing_back_before_it_has_heard_the_workers(
    tmp_path: Path,
) -> None:
    clock = ManualClock()
    async with a_broker(tmp_path, clock=clock) as broker:
        task = await submitted(broker, timeout_seconds=40)
        await claimed(broker)
        await live(broker, clock, 5)
        clock.advance(3600)  # stopped and continued, or a suspended machine
        await broker.upkeep.round()
        assert (await detail_of(broker, task.id)).task.status is Status.IN_PROGRESS
        await live(broker, clock, 23)
        assert (await detail_of(broker, task.id)).task.status is Status.IN_PROGRESS
        await live(broker, clock, 2)
        assert (await detail_of(broker, task.id)).task.status is Status.FAILED


async def test_a_restarted_broker_gives_every_holder_a_whole_lease(tmp_path: Path) -> None:
    clock = ManualClock()
    async with a_broker(tmp_path, clock=clock) as broker:
        task = await submitted(broker)
        [one] = await claimed(broker)
    clock.advance(20)
    async with a_broker(tmp_path, clock=clock) as broker:
        await live(broker, clock, 29)
        assert (await detail_of(broker, task.id)).task.status is Status.IN_PROGRESS
        done = await broker.complete(m.CompleteRequest(task_id=task.id, token=one.task.token))
        assert done.status is Status.COMPLETED


async def test_a_restarted_broker_takes_back_what_nobody_comes_back_for(tmp_path: Path) -> None:
    clock = ManualClock()
    async with a_broker(tmp_path, clock=clock) as broker:
        task = await submitted(broker)
        await claimed(broker)
    async with a_broker(tmp_path, clock=clock) as broker:
        await live(broker, clock, 32)
        assert (await detail_of(broker, task.id)).task.status is Status.FAILED


async def test_a_scheduled_task_is_claimable_at_its_time_and_not_before(tmp_path: Path) -> None:
    clock = ManualClock()
    async with a_broker(tmp_path, clock=clock) as broker:
        task = await submitted(broker, delay_seconds=10)
        waiting = asyncio.ensure_future(claimed(broker, wait_ms=3_600_000))
        clock.advance(9)
        await broker.upkeep.promote()
        await until_parked()
        assert not waiting.done()
        clock.advance(1)
        await broker.upkeep.promote()
        assert [one.task.id for one in await asyncio.wait_for(waiting, 5)] == [task.id]


async def test_a_due_task_needs_no_round_to_become_claimable(tmp_path: Path) -> None:
    clock = ManualClock()
    async with a_broker(tmp_path, clock=clock) as broker:
        task = await submitted(broker, delay_seconds=0.05)
        clock.advance(1)
        waiting = claimed(broker, wait_ms=3_600_000)
        assert [one.task.id for one in await asyncio.wait_for(waiting, 10)] == [task.id]


async def test_what_is_past_retention_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    clock = ManualClock()
    settings = BrokerSettings(retention_seconds=60)
    async with a_broker(tmp_path, clock=clock, settings=settings) as broker:
        for _ in range(450):
            await submitted(broker)
        pending = await submitted(broker, "other")
        done = await claimed(broker, count=450)
        for one in done:
            await broker.complete(m.CompleteRequest(task_id=one.task.id, token=one.task.token))
        await live(broker, clock, 59)
        assert (await broker.list_tasks(m.ListRequest())).total == 451
        await live(broker, clock, 2)
        left = await broker.list_tasks(m.ListRequest())
        assert [task.task_id for task in left.tasks] == [pending.id]
        assert left.total == 1
        assert await broker._storage.audit() == []


async def test_leaving_puts_tasks_back_at_no_cost(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as broker:
        task = await submitted(broker)
        await claimed(broker)
        assert (await broker.crew.leave(w.LeaveRequest(worker_id="w1"))).released == 1
        assert len(broker.workers) == 0
        detail = await detail_of(broker, task.id)
        assert (detail.task.status, detail.task.retry_count) == (Status.PENDING, 0)
