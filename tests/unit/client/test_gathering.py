"""Results of many tasks at once, from a real broker and in line."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from taskqueue import (
    App,
    Handle,
    Status,
    TaskFailed,
    TaskNotFound,
    WaitTimeout,
    as_completed,
    as_completed_sync,
    gather,
    gather_sync,
)
from taskqueue.client.aio import waits_at_once
from taskqueue.testing import InlineQueue, LocalBroker
from taskqueue.testing.broker import Working
from taskqueue.worker.clients import Clients
from taskqueue.worker.settings import WorkerSettings
from tests.support.broker import BrokerProcess, a_broker_process


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


class Tasks:
    """An app of its own for each test: its task types are nobody else's."""

    def __init__(self) -> None:
        self.app = App("127.0.0.1:1")
        self.gates: dict[int, asyncio.Event] = {}
        prefix = uuid4().hex

        @self.app.task(name=f"{prefix}.double")
        async def double(number: int) -> int:
            return 2 * number

        @self.app.task(name=f"{prefix}.name")
        async def name(number: int) -> str:
            return str(number)

        @self.app.task(name=f"{prefix}.gated")
        async def gated(number: int) -> int:
            await self.gates.setdefault(number, asyncio.Event()).wait()
            return number

        @self.app.task(name=f"{prefix}.broken", retries=0)
        async def broken() -> None:
            raise RuntimeError("out of paper")

        self.double, self.name, self.gated, self.broken = double, name, gated, broken


@pytest.fixture
async def tasks(broker: LocalBroker) -> AsyncIterator[Tasks]:
    tasks = Tasks()
    async with broker.working(tasks.app, WorkerSettings(concurrency=50, shutdown_seconds=0)):
        yield tasks


def unknown(tasks: Tasks) -> Handle[int]:
    return Handle(tasks.app.clients, str(uuid4()), lambda _result: 0)


async def test_results_come_in_the_order_of_the_handles(tasks: Tasks) -> None:
    assert await gather(await tasks.double.submit(4), await tasks.name.submit(5)) == (8, "5")
    nothing: list[Handle[int]] = []
    assert await gather(nothing) == []
    handles = [await tasks.double.submit(number) for number in range(150)]
    assert await gather(handles) == [2 * number for number in range(150)]
    assert await gather(*handles[:7]) == tuple(2 * number for number in range(7))
    link = tasks.app.client._link
    assert link is not None
    assert 0 < len(link._idle) <= waits_at_once(tasks.app.client)


def test_results_come_without_asyncio(broker: LocalBroker) -> None:
    tasks, others = Tasks(), Tasks()
    with broker.working(tasks.app), broker.working(others.app):
        assert gather_sync(tasks.double.submit_sync(4), others.name.submit_sync(5)) == (8, "5")
        handles = [tasks.double.submit_sync(number) for number in range(50)]
        assert gather_sync(handles) == [2 * number for number in range(50)]
        broken = tasks.broken.submit_sync()
        [error] = gather_sync([broken], return_exceptions=True)
        assert isinstance(error, TaskFailed)
        with pytest.raises(TaskFailed):
            gather_sync(broken)
        ended = {handle.task_id for handle in as_completed_sync([*handles, broken])}
        assert ended == {handle.task_id for handle in (*handles, broken)}
        for handle in as_completed_sync(handles):
            assert handle.result_sync() % 2 == 0
            break  # whoever has seen enough leaves


async def test_each_is_handed_out_as_soon_as_it_has_ended(tasks: Tasks) -> None:
    handles = [await tasks.gated.submit(number) for number in range(40)]
    order: list[int] = []
    wanted = [39, 0, 20, *(n for n in range(40) if n not in (0, 20, 39))]
    tasks.gates.setdefault(wanted[0], asyncio.Event()).set()
    async for handle in as_completed(handles):
        assert handle.completed is not None
        order.append(await handle.result(timeout=0))
        if len(order) < len(wanted):
            tasks.gates.setdefault(wanted[len(order)], asyncio.Event()).set()
    assert order == wanted


async def test_the_first_failure_is_raised_at_once(tasks: Tasks) -> None:
    handles = [await tasks.gated.submit(number) for number in range(30)]
    broken = await tasks.broken.submit()
    with pytest.raises(TaskFailed, match="out of paper") as failed:
        await gather(*handles, broken, timeout=120)
    assert failed.value.kind == "RuntimeError"
    assert 'raise RuntimeError("out of paper")' in str(failed.value)
    assert (await handles[0].status()).status is Status.IN_PROGRESS
    for gate in tasks.gates.values():
        gate.set()
    every = [*handles, broken, unknown(tasks)]
    *results, failure, missing = await gather(every, return_exceptions=True)
    assert results == list(range(30))
    assert isinstance(failure, TaskFailed)
    assert isinstance(missing, TaskNotFound)


async def test_waiting_ends_with_the_time(tasks: Tasks) -> None:
    done = await tasks.double.submit(1)
    await done.result()
    for number in (1, 30):
        handles = [await tasks.gated.submit(n) for n in range(number)]
        with pytest.raises(WaitTimeout):
            await gather(*handles, timeout=0.05)
        first, *late = await gather([done, *handles], timeout=0, return_exceptions=True)
        assert first == 2
        assert len(late) == number
        assert all(isinstance(one, WaitTimeout) for one in late)
        ends = as_completed([done, *handles], timeout=0.05)
        assert await anext(ends) is done
        with pytest.raises(WaitTimeout):
            await anext(ends)


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker that a test may stop."""
    with a_broker_process(tmp_path / "data", "--rate-limit", "0") as process:
        yield process


async def test_a_broker_that_restarts_is_waited_for(own_broker: BrokerProcess) -> None:
    broker = own_broker
    tasks = Tasks()
    tasks.app.clients = Clients(broker.native, "")
    ids = [await tasks.app.client.submit_task(tasks.double._task((n,), {})) for n in range(40)]
    decode = tasks.double.codec.decode_result
    handles: list[Handle[int]] = [Handle(tasks.app.clients, one, decode) for one in ids]
    waiting = asyncio.create_task(gather(handles, timeout=120))
    await asyncio.wait([waiting], timeout=0.1)
    await asyncio.to_thread(broker.kill)
    await asyncio.to_thread(broker.start)
    other = Tasks()
    other.app.handlers = tasks.app.handlers
    async with Working(other.app, broker.native, WorkerSettings()):
        assert await waiting == [2 * number for number in range(40)]
    await tasks.app.close()


async def test_in_line_they_are_the_same() -> None:
    tasks = Tasks()
    async with InlineQueue(tasks.app) as queue:
        handles = [await tasks.double.submit(number) for number in range(100)]
        assert await gather(handles) == [2 * number for number in range(100)]
        late = await tasks.name.options(delay=60).submit(3)
        with pytest.raises(WaitTimeout):
            await gather(*handles, late)
        await queue.advance(60)
        assert [await one.result() async for one in as_completed([late])] == ["3"]
        with pytest.raises(RuntimeError, match="would block"):
            gather_sync(handles)
    with InlineQueue(tasks.app):
        assert gather_sync(tasks.double.submit_sync(1), tasks.name.submit_sync(2)) == (2, "2")
