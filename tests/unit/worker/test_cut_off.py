"""Workers that are cut off from their broker, that are stopped, and that fork."""

import asyncio
import logging
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from taskqueue import Context
from taskqueue.client.address import BrokerAddress
from taskqueue.storage.cluster import Alone
from taskqueue.worker.execution import FORKED_EXIT
from taskqueue.worker.runner import Worker
from taskqueue.worker.settings import WorkerSettings
from tests.support.door import PATIENCE, until
from tests.support.hole import Hole, a_hole
from tests.unit.worker.conftest import Bench


@asynccontextmanager
async def a_worker_behind(hole: Hole, bench: Bench) -> AsyncIterator[Worker]:
    worker = Worker(bench.app, [BrokerAddress("127.0.0.1", hole.port)], WorkerSettings())
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        worker.stop()
        hole.heal()
        await running


async def test_a_worker_that_hears_nothing_stops_its_handlers_when_its_lease_is_over(
    beating: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue.worker.heartbeat.FIRST_INTERVAL", 0.02)
    monkeypatch.setattr("taskqueue.worker.heartbeat.ANSWER_SECONDS", 0.05)
    monkeypatch.setattr("taskqueue.client.connection.SILENCE_SECONDS", 0.3)
    monkeypatch.setattr("taskqueue.worker.runner.BLOCK_SECONDS", 0.05)
    monkeypatch.setattr("taskqueue.client.link.LONGEST_PAUSE", 0.1)
    has_begun, was_stopped = asyncio.Event(), asyncio.Event()

    @beating.app.task
    async def slow(ctx: Context) -> int:
        if ctx.token > 1:
            return ctx.token
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            was_stopped.set()
        return 0

    async with a_hole(beating.door.port) as hole, a_worker_behind(hole, beating):
        handle = await slow.submit()
        await has_begun.wait()
        hole.swallow()
        await asyncio.wait_for(was_stopped.wait(), PATIENCE)
        assert (await handle.status()).status == "in_progress"  # the broker has not been told
        hole.heal()
        await beating.take_back(handle.task_id)
        assert await handle.result() == 2


async def test_a_broker_that_is_down_takes_nothing_away(
    beating: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    @beating.app.task
    async def slow() -> str:
        has_begun.set()
        await may_end.wait()
        return "done"

    def missed() -> int:
        return sum("no heartbeat" in record.message for record in caplog.records)

    await beating.work()
    handle = await slow.submit()
    await has_begun.wait()
    caplog.set_level(logging.DEBUG, "taskqueue.worker")
    await beating.door.stop()
    await until(lambda: missed() >= 12)  # several leases
    await beating.door.start()
    may_end.set()
    assert await handle.result() == "done"
    assert (await handle.status()).retry_count == 0


async def test_of_several_brokers_one_that_is_down_keeps_no_tasks(
    beating: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one, which this worker was not told of, gives them to others after the lease."""
    monkeypatch.setattr(Alone, "is_shared", True)
    has_begun, was_stopped = asyncio.Event(), asyncio.Event()

    @beating.app.task
    async def slow(ctx: Context) -> int:
        if ctx.token > 1:
            return ctx.token
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            was_stopped.set()
        return 0

    await beating.work()
    handle = await slow.submit()
    await has_begun.wait()
    await beating.door.stop()
    await asyncio.wait_for(was_stopped.wait(), PATIENCE)
    await beating.door.start()
    await beating.take_back(handle.task_id)
    assert await handle.result() == 2


async def test_a_report_whose_answer_vanishes_is_repeated_with_its_token(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue.client.connection.SILENCE_SECONDS", 0.1)
    monkeypatch.setattr("taskqueue.worker.runner.BLOCK_SECONDS", 0.05)
    monkeypatch.setattr("taskqueue.client.link.LONGEST_PAUSE", 0.1)
    runs: list[str] = []

    @bench.app.task
    async def work(ctx: Context, is_first: bool) -> str:
        await ctx.progress(0.5)  # the reports' connection is open now
        if is_first:
            hole.swallows_answers = True
        runs.append(ctx.task_id)
        return "done"

    async with a_hole(bench.door.port) as hole, a_worker_behind(hole, bench):
        handle = await work.submit(True)
        assert await handle.result() == "done"
        hole.heal()
        other = await work.submit(False)
        assert await other.result() == "done"
    assert runs == [handle.task_id, other.task_id]


async def test_what_was_claimed_as_the_worker_was_told_to_stop_goes_back_at_once(
    bench: Bench,
) -> None:
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    @bench.app.task
    async def slow() -> None:
        has_begun.set()
        await may_end.wait()

    async with a_hole(bench.door.port) as hole, a_worker_behind(hole, bench) as worker:
        running = await slow.submit()
        await has_begun.wait()
        hole.hold_answers()
        late = await slow.submit()
        async with asyncio.timeout(PATIENCE):
            while (await late.status()).status != "in_progress":
                pass
        await until(lambda: hole.held >= 1)  # its claim is on its way to the worker
        worker.stop()
        hole.let_go()
        async with asyncio.timeout(PATIENCE):
            while (status := await late.status()).status != "pending":
                pass
        # The first one still runs: nothing waited for the worker's end.
        assert (await running.status()).status == "in_progress"
        assert (status.retry_count, status.failures) == (0, [])
        may_end.set()
        await running.result()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_forked_process_that_comes_back_from_a_handler_is_ended(
    bench: Bench, is_async: bool
) -> None:
    def forked() -> int:
        child = os.fork()
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else -1

    if is_async:

        @bench.app.task(name="fork")
        async def fork() -> int:
            return forked()
    else:

        @bench.app.task(name="fork")
        def fork() -> int:
            return forked()

    await bench.work()
    handle = await fork.submit()
    assert await handle.result() == FORKED_EXIT
    assert (await handle.status()).retry_count == 0


async def test_a_handler_that_will_not_be_stopped_has_failed_all_the_same(bench: Bench) -> None:
    @bench.app.task(retries=0, timeout=1)
    async def stubborn() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "finished after all"
        return "never"

    await bench.work()
    assert "TimedOut" in await bench.failure(await stubborn.submit())


async def test_a_traceback_begins_in_the_handler(bench: Bench) -> None:
    @bench.app.task(retries=0)
    async def coroutine() -> None:
        raise ValueError("here")

    @bench.app.task(retries=0)
    def thread() -> None:
        raise ValueError("here")

    await bench.work()
    for handler in (coroutine, thread):
        status = await bench.ended(await handler.submit())
        lines = status.failures[0].traceback.splitlines()
        assert lines[0] == "Traceback (most recent call last):"
        assert f'"{__file__}"' in lines[1]
        assert lines[-1] == "ValueError: here"


class Mute(Exception):
    def __str__(self) -> str:
        raise SystemExit("not even this")


async def test_an_error_that_cannot_be_shown_is_still_told(bench: Bench) -> None:
    @bench.app.task(retries=0)
    async def odd() -> None:
        raise Mute

    await bench.work()
    assert await bench.failure(await odd.submit()) == "Mute: its message could not be made"


async def test_a_failure_is_logged_with_its_task_and_worker(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    @bench.app.task(retries=0)
    def broken() -> None:
        raise ValueError("out of paper")

    worker = await bench.work()
    handle = await broken.submit()
    await bench.failure(handle)
    [record] = [record for record in caplog.records if record.message.startswith("task failed")]
    assert record.name == "taskqueue.worker"
    assert record.message == "task failed: out of paper"
    assert vars(record)["task_id"] == handle.task_id
    assert vars(record)["worker_id"] == worker.worker_id


async def test_a_thread_that_was_given_up_does_not_hold_up_the_end(bench: Bench) -> None:
    has_begun, gate = threading.Event(), threading.Event()

    @bench.app.task
    def stuck() -> None:
        has_begun.set()
        gate.wait()

    worker = Worker(bench.app, bench.door.addresses, WorkerSettings(shutdown_seconds=0))
    running = asyncio.create_task(worker.run())
    handle = await stuck.submit()
    await until(has_begun.is_set)
    worker.stop()
    await running
    assert worker.busy_threads
    assert (await handle.status()).status == "pending"
    gate.set()
