"""Workers that know several brokers: their tasks, leases and reports outlive the one they use."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from taskqueue import Context
from taskqueue.broker.broker import BrokerSettings
from taskqueue.client.address import broker_addresses
from taskqueue.worker.runner import Worker
from taskqueue.worker.settings import WorkerSettings
from tests.support.door import PATIENCE, until
from tests.support.ways import Way, some_ways, url_of, used
from tests.unit.worker.conftest import Bench, a_bench


@asynccontextmanager
async def a_worker_on(ways: list[Way], bench: Bench) -> AsyncIterator[Worker]:
    worker = Worker(bench.app, broker_addresses(url_of(ways)), WorkerSettings(concurrency=2))
    running = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        worker.stop()
        for way in ways:
            way.heal()
        await running


@pytest.fixture
async def long_lease(tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench whose workers beat once in a long time, unless something has happened."""
    async with a_bench(tmp_path, BrokerSettings(lease_seconds=3_600)) as bench:
        yield bench


@pytest.fixture
async def ways(bench: Bench) -> AsyncIterator[list[Way]]:
    async with some_ways(bench.door.port) as ways:
        yield ways


def other(ways: list[Way], one: Way) -> Way:
    return next(way for way in ways if way is not one)


async def test_a_worker_that_waits_for_tasks_waits_on_at_another_broker(
    bench: Bench, ways: list[Way]
) -> None:
    @bench.app.task
    async def double(number: int) -> int:
        return 2 * number

    async with a_worker_on(ways, bench):
        for number in range(4):
            await until(lambda: any(way.carried >= 2 for way in ways))
            lost = used(ways)
            await lost.shut()
            assert await (await double.submit(number)).result() == 2 * number
            await lost.open()


async def test_a_broker_without_its_database_is_left(bench: Bench, ways: list[Way]) -> None:
    @bench.app.task
    async def double(number: int) -> int:
        return 2 * number

    ways[0].is_without_database = True
    for number in range(6):
        async with a_worker_on(ways, bench):
            assert await (await double.submit(number)).result() == 2 * number


async def test_a_broker_that_refuses_a_claim_is_left(long_lease: Bench) -> None:
    @long_lease.app.task
    async def double(number: int) -> int:
        return 2 * number

    async with some_ways(long_lease.door.port) as ways, a_worker_on(ways, long_lease):
        assert await (await double.submit(1)).result() == 2
        left = used(ways)
        left.is_without_database = True
        await left.close()  # the heartbeat does not look for an hour
        assert await (await double.submit(2)).result() == 4
        assert other(ways, left).carried


async def test_a_broker_that_refuses_a_report_is_left(long_lease: Bench) -> None:
    async with some_ways(long_lease.door.port) as both:

        @long_lease.app.task
        async def work() -> str:
            # The report goes through a connection that is opened for it.
            used(both).is_without_database = True
            return "done"

        async with a_worker_on(both, long_lease):
            handle = await work.submit()
            assert await handle.result() == "done"
            assert [way.refused for way in both if way.refused] == [1]


async def test_what_a_worker_holds_is_told_to_the_next_broker_at_once(long_lease: Bench) -> None:
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    @long_lease.app.task
    async def slow(ctx: Context) -> int:
        has_begun.set()
        await may_end.wait()
        return ctx.token

    async with some_ways(long_lease.door.port) as ways, a_worker_on(ways, long_lease):
        handle = await slow.submit()
        await has_begun.wait()
        await until(lambda: any(way.carried == 3 for way in ways))
        lost = used(ways)
        await lost.shut()
        # The claims' connection, the notices', and the heartbeat's with nothing to say for an hour.
        await until(lambda: other(ways, lost).carried == 3)
        may_end.set()
        assert await handle.result() == 1
        assert (await handle.status()).retry_count == 0


async def test_a_claim_whose_answer_is_lost_is_repeated_at_the_next_broker(
    bench: Bench, ways: list[Way]
) -> None:
    tokens: list[int] = []

    @bench.app.task
    async def work(ctx: Context) -> None:
        tokens.append(ctx.token)

    async with a_worker_on(ways, bench):
        await (await work.submit()).result()
        lost = used(ways)
        lost.hold_answers()
        handle = await work.submit()
        async with asyncio.timeout(PATIENCE):
            while (await handle.status()).status != "in_progress":
                pass
        assert tokens == [1]  # the worker has not heard of it
        await lost.shut()
        await handle.result()
    assert tokens == [1, 1]


async def test_a_report_whose_answer_vanishes_is_repeated_at_the_next_broker(
    bench: Bench, ways: list[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue.client.connection.SILENCE_SECONDS", 0.2)
    monkeypatch.setattr("taskqueue.worker.runner.BLOCK_SECONDS", 0.05)
    runs: list[int] = []

    @bench.app.task
    async def work(ctx: Context) -> str:
        await ctx.progress(0.5)  # the reports' connection is open now
        runs.append(ctx.token)
        used(ways).swallows_answers = True
        return "done"

    async with a_worker_on(ways, bench):
        handle = await work.submit()
        assert await handle.result() == "done"
        await until(lambda: all(way.connections for way in ways))
    assert runs == [1]


async def test_a_heartbeat_that_is_not_answered_moves_the_whole_worker(
    beating: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing else would notice in time.
    monkeypatch.setattr("taskqueue.worker.runner.BLOCK_SECONDS", 600)
    monkeypatch.setattr("taskqueue.client.connection.SILENCE_SECONDS", 600)
    monkeypatch.setattr("taskqueue.worker.heartbeat.ANSWER_SECONDS", 0.2)

    @beating.app.task
    async def double(number: int) -> int:
        return 2 * number

    async with some_ways(beating.door.port) as ways, a_worker_on(ways, beating):
        assert await (await double.submit(1)).result() == 2
        used(ways).swallow()
        assert await (await double.submit(2)).result() == 4


async def test_a_lease_counts_while_one_of_the_brokers_may_be_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue.worker.heartbeat.ANSWER_SECONDS", 0.2)
    monkeypatch.setattr("taskqueue.client.link.LONGEST_PAUSE", 0.1)
    has_begun, was_stopped = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            was_stopped.set()

    async with (
        a_bench(tmp_path, BrokerSettings(lease_seconds=1.5)) as bench,
        some_ways(bench.door.port) as ways,
    ):
        task = bench.app.task(slow)
        async with a_worker_on(ways, bench):
            await task.submit()
            await has_begun.wait()
            await ways[0].shut()
            ways[1].swallow()
            await asyncio.wait_for(was_stopped.wait(), PATIENCE)
            await ways[0].open()
            await ways[1].shut()
