"""Claims that wait for work, and callers that wait for a task's end."""

import asyncio
from pathlib import Path

import pytest

from taskqueue.core.task import Status
from taskqueue.storage import claiming
from taskqueue.wire import messages as m
from tests.support.broker import a_broker, claimed, submitted, until_parked
from tests.support.gate import SlowStorage


async def test_a_waiting_claim_gets_a_task_as_soon_as_it_is_submitted(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as broker:
        waiting = asyncio.ensure_future(claimed(broker, wait_ms=60_000))
        await until_parked()
        task = await submitted(broker)
        assert [one.task.id for one in await waiting] == [task.id]


async def test_a_waiting_claim_is_served_in_the_transaction_of_the_submit(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as broker:
        waiting = asyncio.ensure_future(claimed(broker, wait_ms=60_000))
        await until_parked()
        before = sum(broker.metrics.batch_sizes.buckets)
        await submitted(broker)
        await waiting
        assert sum(broker.metrics.batch_sizes.buckets) == before + 1


async def test_waiting_claims_are_served_first_come_first_served(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as broker:
        order: list[str] = []
        for name in "abc":
            waiting = broker.claim(
                m.ClaimRequest(worker_id=name, task_types=["work"], wait_ms=60_000)
            )
            waiting.add_done_callback(lambda _, name=name: order.append(name))  # type: ignore[misc]
            await until_parked(3)
        for _ in range(3):
            await submitted(broker)
            await until_parked(5)
        assert order == ["a", "b", "c"]


async def test_one_task_wakes_one_waiting_claim(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as broker:
        waiting = [asyncio.ensure_future(claimed(broker, wait_ms=60_000)) for _ in range(5)]
        await until_parked()
        await submitted(broker)
        await until_parked()
        assert sum(one.done() for one in waiting) == 1


async def test_a_waiting_claim_is_woken_by_release_retry_and_failure_without_delay(
    tmp_path: Path,
) -> None:
    async with a_broker(tmp_path) as broker:
        task = await submitted(broker)
        [first] = await claimed(broker)
        waiting = asyncio.ensure_future(claimed(broker, wait_ms=60_000))
        await until_parked()
        await broker.release(m.ReleaseRequest(task_id=task.id, token=first.task.token))
        [second] = await waiting
        assert second.task.token == 2

        waiting = asyncio.ensure_future(claimed(broker, wait_ms=60_000))
        await until_parked()
        await broker.fail(m.FailRequest(task_id=task.id, token=2, message="no", delay_seconds=0))
        [third] = await waiting
        assert third.task.retry_count == 1

        waiting = asyncio.ensure_future(claimed(broker, wait_ms=60_000))
        await until_parked()
        await broker.fail(m.FailRequest(task_id=task.id, token=3, message="no", retryable=False))
        await broker.retry(m.TaskRequest(task_id=task.id))
        [fourth] = await waiting
        assert (fourth.task.token, fourth.task.retry_count) == (4, 0)


async def test_claims_denied_for_the_size_of_a_transaction_are_served_by_the_next_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "MOST_CLAIMED", 2)
    async with a_broker(tmp_path) as broker:
        tasks = [await submitted(broker) for _ in range(9)]
        waiting = [claimed(broker, wait_ms=60_000) for _ in range(9)]
        parts = await asyncio.wait_for(asyncio.gather(*waiting), 10)
        assert [one.task.id for part in parts for one in part] == [task.id for task in tasks]


async def test_a_claim_of_other_types_sleeps_on(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as broker:
        waiting = asyncio.ensure_future(claimed(broker, "mail", wait_ms=60_000))
        await until_parked()
        await submitted(broker, "report")
        await until_parked()
        assert not waiting.done()


async def test_a_claim_whose_time_is_up_gets_nothing(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as broker:
        assert await asyncio.wait_for(claimed(broker, wait_ms=30), 10) == []


async def test_tasks_claimed_for_a_caller_that_has_gone_go_back_at_no_cost(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as broker:
        gone = broker.claim(m.ClaimRequest(worker_id="w", task_types=["work"], wait_ms=60_000))
        await until_parked()
        submitting = submitted(broker)
        coming = asyncio.ensure_future(submitting)
        await asyncio.sleep(0)  # the transaction is under way, the claim rides in it
        gone.cancel()
        task = await coming
        await until_parked()
        detail = await broker.get(m.WaitRequest(task_id=task.id))
        assert (detail.task.status, detail.task.retry_count) == (Status.PENDING, 0)
        assert [one.task.id for one in await claimed(broker)] == [task.id]


async def test_closing_answers_every_waiting_claim_and_caller(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as broker:
        task = await submitted(broker, "other")
        claims = [asyncio.ensure_future(claimed(broker, wait_ms=3_600_000)) for _ in range(500)]
        reader = asyncio.ensure_future(
            broker.get(m.WaitRequest(task_id=task.id, wait_ms=3_600_000))
        )
        await until_parked()
        await asyncio.wait_for(broker.close(), 5)
        assert await asyncio.wait_for(asyncio.gather(*claims), 5) == [[]] * 500
        assert (await asyncio.wait_for(reader, 5)).task.status is Status.PENDING


async def test_a_caller_is_told_when_the_task_ends_and_sees_the_result(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as broker:
        task = await submitted(broker)
        reader = asyncio.ensure_future(
            broker.get(m.WaitRequest(task_id=task.id, wait_ms=3_600_000))
        )
        await until_parked()
        [one] = await claimed(broker)
        await broker.complete(
            m.CompleteRequest(task_id=task.id, token=one.task.token, result=b"done")
        )
        detail = await asyncio.wait_for(reader, 5)
        assert (detail.task.status, detail.result) == (Status.COMPLETED, b"done")


async def test_a_caller_is_told_of_no_end_before_it_is_durable(tmp_path: Path) -> None:
    storage = SlowStorage()
    async with a_broker(tmp_path, storage=storage) as broker:
        task = await submitted(broker)
        [one] = await claimed(broker)
        reader = asyncio.ensure_future(
            broker.get(m.WaitRequest(task_id=task.id, wait_ms=3_600_000))
        )
        await until_parked()
        storage.may_commit.clear()
        done = broker.complete(m.CompleteRequest(task_id=task.id, token=one.task.token))
        await until_parked()
        was_told = reader.done()
        storage.may_commit.set()
        await done
        assert not was_told
        assert (await asyncio.wait_for(reader, 5)).task.status is Status.COMPLETED


async def test_a_caller_whose_wait_is_over_gets_the_present_state(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as broker:
        task = await submitted(broker)
        detail = await broker.get(m.WaitRequest(task_id=task.id, wait_ms=20))
        assert detail.task.status is Status.PENDING
