"""What a worker is told and ordered while it runs: by notices at once, and with its heartbeats."""

import asyncio
from collections.abc import Callable

import pytest

from taskqueue import Context, InvalidRequest, Worker, WorkerNotFound, WorkerSettings
from taskqueue.wire.workers import WorkerReply
from tests.support.door import PATIENCE
from tests.unit.worker.conftest import Bench


async def seen(bench: Bench, is_so: Callable[[WorkerReply], bool]) -> WorkerReply:
    """The one worker, once it tells of itself what is expected."""
    async with asyncio.timeout(PATIENCE):
        while True:
            workers = await bench.app.client.workers()
            if workers and is_so(workers[0]):
                return workers[0]


async def test_a_cancelled_task_is_stopped_without_waiting_for_a_heartbeat(bench: Bench) -> None:
    has_begun, was_cancelled = asyncio.Event(), asyncio.Event()

    @bench.app.task
    async def slow(ctx: Context) -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if ctx.cancelled.is_set():
                was_cancelled.set()
            raise

    worker = await bench.work()
    handle = await slow.submit()
    await has_begun.wait()
    worker._heartbeat.stop()  # nothing but a notice can tell it
    await bench.app.client.cancel(handle.task_id, running=True)
    async with asyncio.timeout(PATIENCE):
        await was_cancelled.wait()


async def test_a_worker_tells_of_itself(bench: Bench) -> None:
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    @bench.app.task(weight=3)
    async def slow() -> None:
        has_begun.set()
        await may_end.wait()

    worker = await bench.work(concurrency=5)
    handle = await slow.submit()
    await has_begun.wait()
    worker._heartbeat.beat_now()
    told = await seen(bench, lambda one: one.tasks == [handle.task_id])
    assert (told.worker_id, told.slots, told.busy) == (worker.worker_id, 5, 3)
    assert told.task_types == ["slow"]
    assert told.memory_bytes > 10**6
    assert told.version
    may_end.set()


async def test_a_quiet_worker_finishes_and_claims_nothing_until_it_is_to_work(bench: Bench) -> None:
    begun: list[int] = []
    may_end = asyncio.Event()

    @bench.app.task
    async def slow(number: int) -> int:
        begun.append(number)
        if number == 1:
            await may_end.wait()
        return number

    worker = await bench.work()
    await seen(bench, lambda _: True)
    first = await slow.submit(1)
    async with asyncio.timeout(PATIENCE):
        while begun != [1]:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0)
    await bench.app.client.order(worker.worker_id, "quiet")
    await seen(bench, lambda one: worker._is_quiet)
    second = await slow.submit(2)
    may_end.set()
    assert await first.result() == 1
    assert (await second.status()).status == "pending"
    assert begun == [1]
    await bench.app.client.order(worker.worker_id, "work")
    assert await second.result() == 2


async def test_a_worker_that_is_ordered_to_stop_drains_and_leaves(bench: Bench) -> None:
    @bench.app.task
    async def work() -> None: ...

    worker = await bench.work()
    await seen(bench, lambda _: True)
    with pytest.raises(InvalidRequest):
        await bench.app.client.order(worker.worker_id, "dance")  # type: ignore[arg-type]
    with pytest.raises(WorkerNotFound):
        await bench.app.client.order("nobody", "quiet")
    await bench.app.client.order(worker.worker_id, "stop")
    async with asyncio.timeout(PATIENCE):
        while not worker._is_stopping:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0)


async def test_heavy_tasks_leave_room_as_they_weigh(bench: Bench) -> None:
    running, most = 0, 0
    may_end = asyncio.Event()

    async def run(weight: int) -> None:
        nonlocal running, most
        running += weight
        most = max(most, running)
        await asyncio.sleep(0)
        running -= weight

    @bench.app.task(weight=2)
    async def heavy() -> None:
        await run(2)

    @bench.app.task
    async def light() -> None:
        await run(1)

    @bench.app.task(weight=9)
    async def huge() -> None:
        await run(3)
        may_end.set()

    handles = [await task.submit() for task in (heavy, light, heavy, light, light, huge) * 4]
    await bench.work(concurrency=3)
    async with asyncio.timeout(PATIENCE):
        for handle in handles:
            await handle.result()
    assert may_end.is_set()
    assert most <= 3


async def test_a_worker_takes_the_types_that_it_is_told_to(bench: Bench) -> None:
    for name in ("mail.send", "mail.sort", "report"):
        bench.app.task(name=name)(_nothing)
    one = WorkerSettings(types=("mail.*",), exclude=("*.sort",))
    worker = Worker(bench.app, bench.door.addresses, one)
    assert list(worker._repertoire.weights) == ["mail.send"]
    with pytest.raises(InvalidRequest, match="that match"):
        Worker(bench.app, bench.door.addresses, WorkerSettings(types=("nothing",)))
    with pytest.raises(InvalidRequest, match=r"two apps have a handler called 'mail\.send'"):
        Worker([bench.app, bench.app], bench.door.addresses)


def _nothing() -> None: ...
