"""Two brokers' storages on one database: what each may do while the other does the same."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any, Final

import asyncpg
import pytest

from taskqueue.core.clock import SECOND, ManualClock
from taskqueue.core.commands import (
    Cancel,
    Claim,
    Complete,
    Promote,
    Retry,
    Submit,
)
from taskqueue.core.errors import (
    BrokerUnavailable,
    InvalidStatus,
)
from taskqueue.core.repeats import Repeat
from taskqueue.core.task import Status, Task
from taskqueue.storage.postgres.connections import database_at
from taskqueue.storage.postgres.engine import PostgresStorage
from tests.support.door import PATIENCE
from tests.support.pg_proxy import Link, PgProxy, a_pg_proxy
from tests.support.postgres import PostgresServer, a_database, shared_server
from tests.support.storage import Queue
from tests.support.tasks import a_submit

RELEASE: Final = "16"
LONG: Final = 3 * PATIENCE


class Pair:
    """Two brokers' storages on a database, the first of them through a proxy."""

    def __init__(self, server: PostgresServer, dsn: str, proxy: PgProxy) -> None:
        self.server = server
        self.dsn = dsn
        self.proxy = proxy
        self.clock = ManualClock()
        self.a = Queue(PostgresStorage(database_at(proxy.dsn(dsn))), self.clock)
        self.b = Queue(PostgresStorage(database_at(dsn)), self.clock)

    async def ask(self, statement: str, *bindings: Any) -> list[Any]:
        """The rows of a statement, by no way of the storages'."""
        connection = await asyncpg.connect(self.dsn)
        try:
            return [tuple(row) for row in await connection.fetch(statement, *bindings)]
        finally:
            await connection.close()


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with shared_server(RELEASE) as server:
        yield server


@pytest.fixture
async def pair(server: PostgresServer) -> AsyncIterator[Pair]:
    deadlocks = server.log.count("deadlock detected")
    async with a_database(server) as dsn, a_pg_proxy(server.port) as proxy:
        pair = Pair(server, dsn, proxy)
        async with AsyncExitStack() as storages:
            for queue in (pair.a, pair.b):
                await queue.storage.open()
                storages.push_async_callback(queue.storage.close)
            yield pair
            assert await pair.b.storage.audit() == []
    assert server.log.count("deadlock detected") == deadlocks


class Pause:
    """Holds a statement of the first broker back until `go_on`."""

    def __init__(self, pair: Pair, word: str) -> None:
        self._may_go = asyncio.Event()
        self.reached = pair.proxy.trap(word, asked=self._hold).sprung
        self.is_held = asyncio.Event()

    def go_on(self) -> None:
        self._may_go.set()

    async def _hold(self, _link: Link) -> None:
        self.is_held.set()
        await self._may_go.wait()


async def open_lane(pair: Pair) -> None:
    """Let both know the usual type: else a transaction waits for the other's news of it."""
    for queue in (pair.a, pair.b):
        await queue.do(Cancel((await queue.submit()).id))


async def test_one_idempotency_key_at_two_brokers_makes_one_task(pair: Pair) -> None:
    await open_lane(pair)
    pause = Pause(pair, "INSERT INTO taskqueue.tasks")
    repeat = Repeat("k", pair.clock.wall() + 60 * SECOND)
    submits = [Submit(a_submit().task, b"x", repeat) for _ in range(2)]
    first = asyncio.create_task(pair.a.do(submits[0]))
    await pause.is_held.wait()
    second = await pair.b.do(submits[1])
    pause.go_on()
    assert isinstance(second, Task)
    assert (await first).id == second.id
    assert await pair.b.storage.count(Status.PENDING, None) == 1


async def test_idempotency_keys_in_another_order_do_not_lock_each_other_out(pair: Pair) -> None:
    until = pair.clock.wall() + 60 * SECOND
    for round_ in range(20):
        keys = [f"{round_} {n}" for n in range(50)]
        ways = (keys, keys[::-1])
        answers = await asyncio.gather(
            *(
                queue.apply(*(Submit(a_submit().task, b"x", Repeat(key, until)) for key in way))
                for queue, way in zip((pair.a, pair.b), ways, strict=True)
            )
        )
        ids = [
            [task.id for task in answer.outcomes if isinstance(task, Task)] for answer in answers
        ]
        assert ids[0] == ids[1][::-1]


async def test_a_lane_that_others_tell_of_meanwhile_is_looked_into_once(pair: Pair) -> None:
    submit = pair.a.a_submit()
    pause = Pause(pair, "INSERT INTO taskqueue.lanes")
    claiming = asyncio.create_task(pair.a.apply(submit, Claim("w", ("work",), 5)))
    await pause.is_held.wait()
    storage = pair.a.storage
    assert isinstance(storage, PostgresStorage)
    storage._memory.lanes.add([("work", submit.task.priority)])
    pause.go_on()
    claimed = (await claiming).outcomes[1]
    assert isinstance(claimed, list)
    assert [one.task.id for one in claimed] == [submit.task.id]


async def test_a_submit_that_was_done_meanwhile_is_not_done_twice(pair: Pair) -> None:
    """A client that gave up on a slow broker went to the other one, where the task has ended."""
    await open_lane(pair)
    submit = pair.a.a_submit()
    pause = Pause(pair, "INSERT INTO taskqueue.tasks")
    slow = asyncio.create_task(pair.a.do(submit))
    await pause.is_held.wait()
    await pair.b.do(submit)
    [claimed] = await pair.b.claim()
    await pair.b.do(Complete(submit.task.id, claimed.task.token, b"r"))
    pause.go_on()
    assert (await slow).status is Status.COMPLETED
    assert await pair.b.claim() == []


async def test_a_task_that_moves_while_it_is_looked_for_is_found(pair: Pair) -> None:
    """It was cancelled, and another operator puts it back at this very moment."""
    task = await pair.b.submit()
    await pair.b.do(Cancel(task.id))
    pause = Pause(pair, "JOIN taskqueue.archive")
    retry = asyncio.create_task(pair.a.do(Retry(task.id)))
    await pause.is_held.wait()
    await pair.b.do(Retry(task.id))
    pause.go_on()
    with pytest.raises(InvalidStatus):
        await retry


async def test_two_operators_retry_the_same_tasks_at_once(pair: Pair) -> None:
    for _ in range(30):
        task = await pair.b.submit()
        await pair.b.do(Cancel(task.id))
        answers = await asyncio.gather(
            pair.a.do(Retry(task.id)), pair.b.do(Retry(task.id)), return_exceptions=True
        )
        kinds = Counter(type(answer).__name__ for answer in answers)
        assert kinds == {"Task": 1, "InvalidStatus": 1}


async def test_a_broker_frozen_in_a_transaction_holds_the_others_up_for_a_while_only(
    pair: Pair,
) -> None:
    before, task = await pair.a.running(), await pair.a.running()
    await pair.a.do(Complete(before.id, before.token, b"r"))  # so that its statements are known
    complete = Complete(task.id, task.token, b"r")
    pause = Pause(pair, "DELETE FROM taskqueue.tasks")
    frozen = asyncio.create_task(pair.a.do(complete))
    await pause.is_held.wait()
    async with asyncio.timeout(LONG):
        while True:
            try:
                assert (await pair.b.do(complete)).status is Status.COMPLETED
                break
            except BrokerUnavailable:
                await asyncio.sleep(0.05)
    pause.go_on()
    with pytest.raises(BrokerUnavailable):
        await frozen


async def test_a_broker_frozen_in_housekeeping_does_not_keep_the_leadership(pair: Pair) -> None:
    assert pair.a.storage.cluster.is_leader
    await pair.a.apply(Promote(1))  # so that its statements are known
    pause = Pause(pair, "WITH due AS MATERIALIZED")
    frozen = asyncio.create_task(pair.a.apply(Promote(1)))
    await pause.is_held.wait()
    pair.proxy.flows.clear()  # nothing of the whole broker comes through
    async with asyncio.timeout(LONG):
        while not pair.b.storage.cluster.is_leader:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    pair.proxy.flows.set()
    pause.go_on()
    with pytest.raises(BrokerUnavailable):
        await frozen


async def test_a_broker_that_was_given_up_still_counts_right(pair: Pair) -> None:
    """After a minute's silence the leader folds its counts and forgets it; then it comes back."""
    await pair.a.submit()
    [(number,)] = await pair.ask("SELECT min(number) FROM taskqueue.brokers")
    async with asyncio.timeout(LONG):
        pair.proxy.flows.clear()
        while (number,) in await pair.ask("SELECT number FROM taskqueue.brokers"):
            await pair.ask(
                "UPDATE taskqueue.brokers SET seen = '-infinity' WHERE number = $1 RETURNING 1",
                number,
            )
            await asyncio.sleep(0.1)
    pair.proxy.flows.set()
    async with asyncio.timeout(LONG):
        while True:
            try:
                await pair.a.submit()
                break
            except BrokerUnavailable:
                await asyncio.sleep(0.1)
    assert await pair.a.storage.count(None, None) == 2
    assert await pair.b.storage.count(None, None) == 2
