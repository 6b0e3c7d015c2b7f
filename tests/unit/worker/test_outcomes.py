"""What a handler may raise to say what is to follow, in each kind of execution."""

import asyncio
import json
from typing import Any

import pytest

from taskqueue import Fail, Retry, Snooze, Task
from taskqueue.core.clock import ManualClock
from taskqueue.worker.outcomes import failure_of
from tests.support.door import PATIENCE
from tests.unit.worker import process_app
from tests.unit.worker.conftest import Bench, a_worker

KINDS = ("async", "thread", "process")


async def test_fail_ends_a_task_that_has_retries_left(bench: Bench) -> None:
    async with a_worker(process_app.app, bench.door):
        for kind in KINDS:
            task = Task(f"ordered_{kind}", b'{"how": "fail"}')
            task_id = await bench.app.client.submit_task(task)
            status = await bench.app.client.wait_for_end(task_id)
            assert (status.status, status.retry_count) == ("dead_letter", 0)
            assert status.error == "Fail: no such address"
            assert "in ordered" in status.failures[0].traceback


async def test_retry_says_when_the_next_attempt_comes_and_costs_a_retry(bench: Bench) -> None:
    client, clock = bench.app.client, bench.door.clock
    assert isinstance(clock, ManualClock)
    async with a_worker(process_app.app, bench.door):
        ids = [
            await client.submit_task(Task(f"ordered_{kind}", b'{"how": "retry"}', max_retries=1))
            for kind in KINDS
        ]
        for task_id in ids:
            status = await bench.failed(task_id)
            assert status.error == "Retry: the mail server is full"
            assert status.schedule_at is not None
            assert (status.schedule_at - status.updated_at).total_seconds() == 7.5
        clock.advance(8)
        await bench.door.broker.upkeep.promote()
        for task_id in ids:
            status = await client.wait_for_end(task_id)
            assert (status.status, len(status.failures)) == ("dead_letter", 2)


async def test_snooze_puts_a_task_off_and_costs_no_retry(bench: Bench) -> None:
    client, clock = bench.app.client, bench.door.clock
    assert isinstance(clock, ManualClock)
    async with a_worker(process_app.app, bench.door):
        for kind in KINDS:
            task = Task(f"ordered_{kind}", b'{"how": "snooze"}', max_retries=0)
            task_id = await client.submit_task(task)
            async with asyncio.timeout(PATIENCE):
                while True:
                    status = await client.get_status(task_id)
                    if status.schedule_at != status.created_at:
                        break
                    await asyncio.sleep(0.005)
            assert (status.status, status.retry_count, status.failures) == ("pending", 0, [])
            assert status.schedule_at is not None
            assert (status.schedule_at - status.updated_at).total_seconds() == 7.5


async def test_without_a_delay_the_usual_one_holds(bench: Bench) -> None:
    @bench.app.task(retries=1)
    async def later() -> None:
        raise Retry

    await bench.work()
    handle = await later.submit()
    status = await bench.failed(handle.task_id)
    assert status.schedule_at is not None
    assert 2 < (status.schedule_at - status.updated_at).total_seconds() < 8


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), 1e12, "5", []])
def test_a_delay_that_cannot_be_is_refused(delay: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        Retry("later", delay=delay)
    with pytest.raises((ValueError, TypeError)):
        Snooze(delay)


class Odd(Retry):
    """Written without care."""

    def __init__(self, delay: Any) -> None:
        self.delay = delay


@pytest.mark.parametrize(
    ("delay", "told"), [("soon", None), (-1, None), (float("nan"), None), (None, None), (2, 2.0)]
)
def test_a_class_of_the_users_own_does_no_harm(delay: Any, told: float | None) -> None:
    failure = failure_of(Odd(delay))
    assert (failure.kind, failure.delay, failure.retryable) == ("Odd", told, True)


def test_what_is_told_of_a_failure_is_plain_words() -> None:
    class NotFound(Fail):
        pass

    failure = failure_of(NotFound("\ud800"))
    assert failure.command("id", 7)[:6] == [b"TQ.FAIL", b"id", b"7", b"?", b"KIND", b"NotFound"]
    assert failure.command("id", 7)[-2:] == [b"RETRYABLE", b"no"]
    assert b"DELAY" not in failure.command("id", 7)
    assert json.dumps(failure.traceback)
