"""Brokers that reach their database through PgBouncer in transaction mode."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import chain
from pathlib import Path
from typing import Final

import pytest

from taskqueue.client.task import Task
from taskqueue.core.task import Status
from taskqueue.storage.postgres.connections import connect, database_at
from tests.cluster.test_brokers import FOR_EVER, claimed
from tests.support.crew import Crew, a_crew, opened
from tests.support.door import PATIENCE
from tests.support.pooler import Pooler, a_pooler
from tests.support.postgres import PostgresServer, a_database, shared_server

RELEASE: Final = "16"
FEW: Final = 2
"""Connections for all that the brokers do: what one leaves behind in a session, others meet."""


@pytest.fixture(scope="module")
def pooler() -> Iterator[tuple[PostgresServer, Pooler]]:
    """A pooler, and the server behind it."""
    with shared_server(RELEASE) as server, a_pooler(server.port, FEW) as pooler:
        yield server, pooler


@pytest.fixture
async def dsn(pooler: tuple[PostgresServer, Pooler]) -> AsyncIterator[str]:
    """The address of an empty database, through a pooler; its books must balance at the end."""
    server, front = pooler
    async with a_database(server) as direct:
        yield front.dsn(direct)
        async with opened(direct) as storage:
            assert await storage.audit() == []


@pytest.fixture
async def crew(tmp_path: Path, dsn: str) -> AsyncIterator[Crew]:
    async with a_crew(tmp_path, dsn, 2) as crew:
        yield crew


async def test_statements_of_many_clients_do_not_meet(dsn: str) -> None:
    """Each asks with another number of arguments for what only it can be told."""
    database = database_at(dsn)

    async def ask(number: int) -> None:
        connection = await connect(database, "any", "test")
        try:
            for one in range(50):
                columns = ", ".join(f"${place}::int" for place in range(1, number + 1))
                values = [one * number + place for place in range(number)]
                row = await connection.fetchrow(f"SELECT {columns}", *values)
                assert row is not None
                assert list(row) == values
                assert await connection.fetchval(f"SELECT {number} + $1::int", one) == number + one
        finally:
            await connection.close()

    await asyncio.gather(*(ask(number) for number in range(1, 9)))


async def test_brokers_work_together(crew: Crew, dsn: str) -> None:
    await each_wakes_the_other(crew)
    await each_of_many_tasks_is_done_once(crew)
    leader = await crew.leader(crew.brokers)
    shown = json.loads(await tq("cluster", "--url", f"tq://{leader.native}", "--output", "json"))
    assert {one["address"] for one in shown["brokers"]} == {one.native for one in crew.brokers}
    assert await tq("migrate", "--engine", dsn) == "the schema is up to date\n"


async def test_another_leads_when_the_leader_dies(crew: Crew) -> None:
    leader = await crew.leader(crew.brokers)
    [other] = [broker for broker in crew.brokers if broker is not leader]
    producer, worker = await crew.client(other), await crew.worker(other)
    ghost = await crew.worker(leader)
    lost = await producer.submit_task(Task("work", b"x"))
    assert await claimed(ghost, "ghost") == (lost, 1)
    before = (await crew.view(other)).term
    await asyncio.to_thread(leader.kill)
    assert await crew.leader([other]) is other
    assert (await crew.view(other)).term == before + 1
    later = await producer.submit_task(Task("later", b"x", delay=0.5))
    async with asyncio.timeout(PATIENCE):
        [run] = await worker.claim("BLOCK", FOR_EVER, task_type="later")
        assert run[0].decode() == later
        assert await claimed(worker, "w1") == (lost, 2)
    assert await worker.ask("TQ.COMPLETE", lost, 2) == b"completed"
    assert (await producer.get_status(lost)).status is Status.COMPLETED


async def each_wakes_the_other(crew: Crew) -> None:
    """Each worker waits at its broker before there is anything at the other."""
    for first, second in (crew.brokers, crew.brokers[::-1]):
        producer, worker = await crew.client(first), await crew.worker(second)
        waiting = asyncio.create_task(claimed(worker, "w1"))
        task_id = await producer.submit_task(Task("work", b"payload"))
        async with asyncio.timeout(PATIENCE):
            assert await waiting == (task_id, 1)
            result = asyncio.create_task(producer.wait_for_result(task_id))
            assert await worker.ask("TQ.COMPLETE", task_id, 1, "RESULT", "done") == b"completed"
            assert await result == b"done"


async def each_of_many_tasks_is_done_once(crew: Crew) -> None:
    """More at once than the pooler has connections for."""
    producers = [await crew.client(broker) for broker in crew.brokers for _ in range(4)]
    workers = [await crew.worker(broker) for broker in crew.brokers for _ in range(4)]

    async def produce(number: int) -> list[str]:
        return [
            await producers[number].submit_task(Task("work", f"{number}.{one}".encode()))
            for one in range(25)
        ]

    async def consume(number: int) -> list[str]:
        done = []
        for _ in range(25):
            task_id, token = await claimed(workers[number], f"w{number}")
            assert await workers[number].ask("TQ.COMPLETE", task_id, token) == b"completed"
            done.append(task_id)
        return done

    numbers = range(len(workers))
    async with asyncio.timeout(3 * PATIENCE):
        submitted, done = await asyncio.gather(
            asyncio.gather(*map(produce, numbers)), asyncio.gather(*map(consume, numbers))
        )
    assert sorted(chain(*done)) == sorted(chain(*submitted))
    for broker in crew.brokers:
        client = await crew.client(broker)
        async with asyncio.timeout(PATIENCE):
            while (await client.stats()).pending_count:  # noqa: ASYNC110  it is told by nobody
                await asyncio.sleep(0.05)


async def tq(*arguments: str) -> str:
    """What a command prints. Its exit code must be 0."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "taskqueue.cli.main", *arguments),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ,
    )
    output, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert process.returncode == 0
    return output.decode()
