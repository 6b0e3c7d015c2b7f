"""A worker's slots, leases, time limits, and its end."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from taskqueue import App, Context, InvalidRequest, LeaseLost
from taskqueue.broker.workers import Workers
from taskqueue.client.link import Brokers
from taskqueue.core.clock import ManualClock
from taskqueue.worker.entry import load_app
from taskqueue.worker.heartbeat import Ears, Heartbeat
from taskqueue.worker.runner import Worker
from taskqueue.worker.settings import WorkerSettings
from tests.support.door import until
from tests.unit.worker.conftest import Bench, a_worker


@pytest.fixture
async def gate() -> AsyncIterator[threading.Event]:
    """For handlers in threads to wait at; open at the latest when the test ends."""
    gate = threading.Event()
    yield gate
    gate.set()


async def test_a_handler_that_takes_too_long_is_a_failed_attempt(
    bench: Bench, gate: threading.Event
) -> None:
    cancelled = asyncio.Event()

    @bench.app.task(retries=0, timeout=1)
    async def on_the_loop() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    @bench.app.task(retries=0, timeout=1)
    def in_a_thread() -> None:
        gate.wait()

    await bench.work()
    handles = [await on_the_loop.submit(), await in_a_thread.submit()]
    for handle in handles:
        assert await bench.failure(handle) == "TimedOut: the attempt took longer than its 1 s"
    assert cancelled.is_set()


async def test_a_thread_that_goes_on_after_its_time_keeps_its_slot(
    bench: Bench, gate: threading.Event
) -> None:
    @bench.app.task(retries=0, timeout=1)
    def stuck() -> None:
        gate.wait()

    @bench.app.task
    async def next_one() -> str:
        return "done"

    worker = await bench.work(concurrency=1)
    waiting = await stuck.submit()
    await bench.ended(waiting)
    handle = await next_one.submit()
    assert worker.busy_threads
    assert (await handle.status()).status == "pending"
    gate.set()
    assert await handle.result() == "done"


async def test_a_worker_never_holds_more_than_it_has_slots(bench: Bench) -> None:
    running: list[asyncio.Event] = []
    most = 0

    @bench.app.task
    async def gated() -> None:
        nonlocal most
        event = asyncio.Event()
        running.append(event)
        most = max(most, len(running))
        await event.wait()
        running.remove(event)

    handles = [await gated.submit() for _ in range(9)]
    await bench.work(concurrency=2)
    for handle_number in range(9):
        await until(lambda left=9 - handle_number: len(running) == min(2, left))  # type: ignore[misc]
        stats = await bench.app.client.stats()
        assert stats.in_progress_count == len(running)
        running[0].set()
        await bench.ended(handles[handle_number])
    assert most == 2


async def test_the_most_urgent_is_run_first(bench: Bench) -> None:
    order: list[int] = []

    @bench.app.task
    async def noted(number: int) -> None:
        order.append(number)

    handles = [await noted.options(priority=number).submit(number) for number in (1, 3, 2)]
    await bench.work(concurrency=1)
    for handle in handles:
        await handle.result()
    assert order == [3, 2, 1]


async def test_a_handler_that_blocks_the_event_loop_keeps_its_lease(
    beating: Bench, gate: threading.Event
) -> None:
    is_blocking = threading.Event()

    @beating.app.task(retries=0)
    async def rude() -> str:
        is_blocking.set()
        gate.wait()
        return "done"

    clock, workers = beating.door.clock, beating.door.broker.workers
    assert isinstance(clock, ManualClock)
    async with a_worker_elsewhere(beating) as worker_id:
        handle = await rude.submit()
        await until(is_blocking.is_set)
        for _ in range(5):
            clock.advance(0.05)  # less than a lease at a time, several in all
            now = clock.steady()
            await until(lambda now=now: until_when(workers, worker_id) > now + 50_000)  # type: ignore[misc]
            await beating.door.broker.upkeep.round()
        assert (await handle.status()).status == "in_progress"
        gate.set()
        assert await handle.result() == "done"
        assert (await handle.status()).failures == []


@asynccontextmanager
async def a_worker_elsewhere(bench: Bench) -> AsyncIterator[str]:
    """A worker on a loop in a thread of its own, so that it can block without the broker."""
    names: list[str] = []
    has_ended = threading.Event()

    async def work() -> None:
        async with a_worker(bench.app, bench.door) as worker:
            names.append(worker.worker_id)
            await asyncio.to_thread(has_ended.wait)

    working = asyncio.ensure_future(asyncio.to_thread(asyncio.run, work()))
    await until(lambda: bool(names))
    try:
        yield names[0]
    finally:
        has_ended.set()
        await working


def until_when(workers: Workers, worker_id: str) -> int:
    """The end of a worker's lease."""
    return workers._workers[worker_id].lease_until


async def test_a_claim_that_was_lost_is_cancelled_and_its_result_is_not_kept(
    beating: Bench,
) -> None:
    has_begun = asyncio.Event()

    @beating.app.task
    async def stubborn(ctx: Context) -> str:
        if ctx.token == 2:
            return "in time"
        has_begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "too late"
        return "never"

    # With one slot, the second claim comes only once the first has been given up.
    await beating.work(concurrency=1)
    handle = await stubborn.submit()
    await has_begun.wait()
    await beating.take_back(handle.task_id)
    assert await handle.result() == "in time"
    status = await handle.status()
    assert (status.retry_count, len(status.failures)) == (1, 1)
    assert "it fell silent" in status.failures[0].error


async def test_a_claim_that_the_same_worker_gets_anew_ends_the_old_one(bench: Bench) -> None:
    begun = {token: asyncio.Event() for token in (1, 2)}
    was_cancelled, may_end = asyncio.Event(), asyncio.Event()

    @bench.app.task
    async def slow(ctx: Context) -> int:
        begun[ctx.token].set()
        try:
            await may_end.wait()
        except asyncio.CancelledError:
            was_cancelled.set()
            raise
        return ctx.token

    await bench.work()
    handle = await slow.submit()
    await begun[1].wait()
    await bench.take_back(handle.task_id)
    await begun[2].wait()
    await was_cancelled.wait()
    may_end.set()
    assert await handle.result() == 2


async def test_what_is_lost_is_named_with_its_token(beating: Bench) -> None:
    task_id = "0192f0c1-2f8e-7cc2-98b4-1f2d3c4b5a69"
    lost: list[list[tuple[str, int]]] = []
    heartbeat = Heartbeat(
        Brokers(beating.door.addresses), "w", Ears(lambda: [(task_id, 7)], lost.append)
    )
    heartbeat.start()
    await until(lambda: bool(lost))
    await asyncio.to_thread(heartbeat.stop)
    assert lost[0] == [(task_id, 7)]


async def test_news_of_an_older_claim_does_not_touch_the_one_held_now(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[Callable[[list[tuple[str, int]]], None]] = []

    class Overheard(Heartbeat):
        def __init__(self, *args: Any) -> None:
            told.append(args[-1].on_lost)
            super().__init__(*args)

    monkeypatch.setattr("taskqueue.worker.runner.Heartbeat", Overheard)
    has_begun, was_cancelled = asyncio.Event(), asyncio.Event()

    @bench.app.task
    async def slow() -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            was_cancelled.set()

    await bench.work()
    handle = await slow.submit()
    await has_begun.wait()
    [on_lost] = told
    on_lost([(handle.task_id, 0)])  # as if the answer to an old heartbeat came late
    await handle.status()
    assert not was_cancelled.is_set()
    on_lost([(handle.task_id, 1)])
    await was_cancelled.wait()


async def test_progress_is_shown_with_the_status(bench: Bench) -> None:
    may_end, has_told = asyncio.Event(), asyncio.Event()

    @bench.app.task
    async def slow(ctx: Context) -> None:
        await ctx.progress(0.25, "first quarter ü")
        has_told.set()
        await may_end.wait()

    await bench.work()
    handle = await slow.submit()
    await has_told.wait()
    status = await handle.status()
    assert (status.status, status.progress) == ("in_progress", 0.25)
    assert status.progress_note == "first quarter ü"
    may_end.set()
    await handle.result()


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
async def test_progress_outside_of_its_range_is_refused(bench: Bench, fraction: float) -> None:
    @bench.app.task(retries=0)
    async def wrong(ctx: Context) -> None:
        await ctx.progress(fraction)

    await bench.work()
    failure = await bench.failure(await wrong.submit())
    assert failure.startswith("InvalidRequest: fraction")


async def test_progress_of_a_lost_claim_raises(bench: Bench) -> None:
    has_begun, was_taken = asyncio.Event(), asyncio.Event()
    raised: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    @bench.app.task
    async def slow(ctx: Context) -> None:
        has_begun.set()
        await was_taken.wait()
        try:
            await ctx.progress(0.5)
        except LeaseLost as error:
            raised.set_result(error)

    await bench.work(concurrency=1)  # no second slot, so that nothing else ends the attempt
    handle = await slow.submit()
    await has_begun.wait()
    await bench.take_back(handle.task_id)
    was_taken.set()
    assert isinstance(await raised, LeaseLost)


async def test_a_worker_goes_on_over_a_restart_of_its_broker(bench: Bench) -> None:
    has_begun, is_down, told = asyncio.Event(), asyncio.Event(), asyncio.Event()

    @bench.app.task(retries=0)
    async def slow(ctx: Context) -> str:
        has_begun.set()
        await is_down.wait()
        await ctx.progress(0.5)  # nobody hears it, and that is no reason to fail
        told.set()
        return "done"

    await bench.work()
    handle = await slow.submit()
    await has_begun.wait()
    await bench.door.stop()
    is_down.set()
    await told.wait()
    await bench.door.start()
    assert await handle.result() == "done"
    assert await (await slow.submit()).result() == "done"


async def test_a_worker_may_be_started_before_its_broker(bench: Bench) -> None:
    @bench.app.task
    async def one() -> int:
        return 1

    await bench.door.stop()
    await bench.work()
    await asyncio.sleep(0)
    await bench.door.start()
    assert await (await one.submit()).result() == 1


async def test_a_stopped_worker_finishes_what_it_runs_and_claims_no_more(bench: Bench) -> None:
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    @bench.app.task
    async def slow() -> str:
        has_begun.set()
        await may_end.wait()
        return "done"

    worker = await bench.work()
    handle = await slow.submit()
    await has_begun.wait()
    worker.stop()
    late = await slow.submit()
    may_end.set()
    assert await handle.result() == "done"
    await has_left(bench, worker)
    assert (await late.status()).status == "pending"


@pytest.mark.parametrize("is_async", [True, False])
async def test_a_worker_told_twice_gives_back_what_it_runs_at_no_cost(
    bench: Bench, gate: threading.Event, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    monkeypatch.setattr("taskqueue.worker.runner.FAREWELL_SECONDS", 3600.0)
    has_begun = threading.Event()

    if is_async:

        @bench.app.task(name="stuck")
        async def stuck() -> None:
            has_begun.set()
            await asyncio.Event().wait()
    else:

        @bench.app.task(name="stuck")
        def stuck() -> None:
            has_begun.set()
            gate.wait()

    worker = await bench.work(shutdown_seconds=3600)
    handle = await stuck.submit()
    await until(has_begun.is_set)
    worker.stop()
    worker.stop()
    await has_left(bench, worker)
    status = await handle.status()
    assert (status.status, status.retry_count, status.failures) == ("pending", 0, [])
    assert status.worker_id is None
    assert worker.busy_threads is not is_async


async def test_a_worker_whose_time_to_finish_is_over_gives_back_what_it_runs(
    bench: Bench,
) -> None:
    has_begun = asyncio.Event()

    @bench.app.task
    async def stuck() -> None:
        has_begun.set()
        await asyncio.Event().wait()

    worker = await bench.work(shutdown_seconds=0.01)
    handle = await stuck.submit()
    await has_begun.wait()
    worker.stop()
    await has_left(bench, worker)
    status = await handle.status()
    assert (status.status, status.retry_count) == ("pending", 0)


async def test_what_is_given_back_is_run_by_another_worker(bench: Bench) -> None:
    begun: list[int] = []
    has_begun = asyncio.Event()

    @bench.app.task
    async def second_worker(ctx: Context) -> int:
        begun.append(ctx.token)
        has_begun.set()
        if len(begun) == 1:
            await asyncio.Event().wait()
        return ctx.attempt

    first = await bench.work()
    handle = await second_worker.submit()
    await has_begun.wait()
    await bench.work()
    first.stop()
    first.stop()
    assert await handle.result() == 1
    assert begun == [1, 2]


async def test_a_worker_whose_claims_are_refused_ends_with_the_reason(bench: Bench) -> None:
    bench.app.raw("two words")(lambda payload: payload)
    worker = Worker(bench.app, bench.door.addresses, WorkerSettings())
    with pytest.raises(InvalidRequest, match="task_types"):
        await asyncio.wait_for(worker.run(), 20)


@pytest.mark.parametrize("concurrency", [0, 501])
async def test_a_number_of_slots_that_cannot_be_is_refused(concurrency: int) -> None:
    app = App()
    app.raw("one")(lambda payload: payload)
    with pytest.raises(InvalidRequest) as refusal:
        Worker(app, settings=WorkerSettings(concurrency=concurrency))
    assert refusal.value.field == "concurrency"


async def test_a_worker_without_handlers_is_refused(bench: Bench) -> None:
    with pytest.raises(InvalidRequest, match="1 to 100 handlers"):
        Worker(bench.app, bench.door.addresses, WorkerSettings())


def test_an_app_is_found_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs_here.py").write_text(
        "from taskqueue import App\napp = App()\nother = App()\n"
    )
    assert isinstance(load_app("jobs_here"), App)
    assert load_app("jobs_here:other") is not load_app("jobs_here:app")
    for path, complaint in [
        ("jobs_nowhere:app", "no module 'jobs_nowhere'"),
        ("jobs_here:none", "is not a taskqueue.App"),
        ("jobs_here:App", "is not a taskqueue.App"),
    ]:
        with pytest.raises(InvalidRequest, match=complaint):
            load_app(path)


async def has_left(bench: Bench, worker: Worker) -> None:
    await until(lambda: worker.worker_id not in bench.door.broker.workers)
