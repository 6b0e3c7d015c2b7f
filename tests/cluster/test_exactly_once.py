"""Three brokers on one database under load: each task is executed and completed once, in the books.

`EXACTLY_ONCE=100000` in the environment says how many tasks; some thousands otherwise.
"""

import asyncio
import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg

from taskqueue import App, AsyncClient, Context, Task, Worker, WorkerSettings
from taskqueue.core.ids import new_task_id
from tests.support.broker import BrokerProcess
from tests.support.crew import a_crew, opened
from tests.support.door import PATIENCE
from tests.support.postgres import PostgresServer, a_database, shared_server

RELEASE: Final = "18"
TASKS: Final = int(os.environ.get("EXACTLY_ONCE", "6000"))
LONGEST: Final = PATIENCE + TASKS / 100
"""Seconds after which it hangs: a hundredth of what such a machine does."""

LEASE_SECONDS: Final = 600
"""So that no task is given to another worker because the machine was busy."""

TOGETHER: Final = 500
REPEATED: Final = 9
"""One in so many submits is repeated at another broker; odd, so that it is one of either sort."""

FAULT: Final = re.compile(r'"level": "(error|critical)"|Traceback')

BOOKS: Final = """
    SELECT status, token, retry_count, count(*) FROM (
        SELECT status, token, retry_count FROM taskqueue.tasks
        UNION ALL SELECT status, token, retry_count FROM taskqueue.archive) AS every
    GROUP BY 1, 2, 3"""


async def test_each_task_is_executed_and_completed_exactly_once(tmp_path: Path) -> None:
    with shared_server(RELEASE) as server:
        async with a_database(server) as dsn, a_crew(tmp_path, dsn, 3, LEASE_SECONDS) as crew:
            deadlocks = server.log.count("deadlock detected")
            executed: Counter[str] = Counter()
            async with asyncio.timeout(LONGEST), AsyncExitStack() as stack:
                for broker in crew.brokers:
                    await stack.enter_async_context(a_worker_at(broker, executed))
                shares = [shares_of(crew.brokers, place) for place in range(len(crew.brokers))]
                submitted = await asyncio.gather(*(submit(*share) for share in shares))
                await until_done(dsn, TASKS)
            ids = {task_id for some in submitted for task_id in some}
            assert len(ids) == TASKS
            assert executed == dict.fromkeys(ids, 1)
            await check_books(server, dsn, deadlocks)
        for broker in crew.brokers:
            assert FAULT.search(broker.folder.with_suffix(".log").read_text()) is None


async def check_books(server: PostgresServer, dsn: str, deadlocks: int) -> None:
    """Every task was claimed once and is completed, with its result; counters equal rows."""
    assert await rows(dsn, BOOKS) == [("completed", 1, 0, TASKS)]
    assert await rows(dsn, "SELECT count(DISTINCT id) FROM taskqueue.archive") == [(TASKS,)]
    assert await rows(dsn, "SELECT count(*) FROM taskqueue.results") == [(TASKS,)]
    assert await rows(dsn, "SELECT count(*) FROM taskqueue.failures") == [(0,)]
    async with opened(dsn) as storage:
        assert await storage.audit() == []
        assert await storage.count(None, None) == TASKS
    assert server.log.count("deadlock detected") == deadlocks


def shares_of(brokers: list[BrokerProcess], place: int) -> tuple[str, str, int]:
    """Where a producer submits, where it repeats some of it, and how many are its own."""
    here, other = brokers[place], brokers[(place + 1) % len(brokers)]
    return here.native, other.native, len(range(place, TASKS, len(brokers)))


async def submit(here: str, other: str, number: int) -> list[str]:
    """Submit tasks at one broker, and at the same time some of them at the other as well."""
    ids: list[str] = []
    async with AsyncClient(here) as client, AsyncClient(other) as repeating:
        while len(ids) < number:
            some = range(len(ids), min(number, len(ids) + TOGETHER))
            tasks = [
                Task("noted", b"%d" % index, priority=index % 3 * 100, task_id=new_task_id())
                if index % 2
                else Task("noted", b"%d" % index, idempotency_key=f"{here}-{index}")
                for index in some
            ]
            done, again = await asyncio.gather(
                client.submit_many(tasks), repeating.submit_many(tasks[::REPEATED])
            )
            assert done[::REPEATED] == again
            ids += done
    return ids


@asynccontextmanager
async def a_worker_at(broker: BrokerProcess, executed: Counter[str]) -> AsyncIterator[None]:
    """A worker at a broker, which counts what it executes."""
    app = App(broker.native)

    @app.raw("noted")
    async def noted(context: Context, payload: bytes) -> bytes:
        executed[context.task_id] += 1
        return payload

    worker = Worker(app, settings=WorkerSettings(concurrency=200))
    running = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await running
        await app.close()


async def until_done(dsn: str, number: int) -> None:
    """Wait until so many tasks have ended and none is left."""
    archived = "SELECT count(*) FROM taskqueue.archive"
    while await rows(dsn, archived) != [(number,)]:  # noqa: ASYNC110
        await asyncio.sleep(0.2)


async def rows(dsn: str, statement: str) -> list[Any]:
    """What a statement finds."""
    connection = await asyncpg.connect(dsn)
    try:
        return [tuple(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()
