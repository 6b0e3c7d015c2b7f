"""Several broker processes on one database: what is said at one is heard at the others."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

import pytest

from taskqueue.client.aio import AsyncClient
from taskqueue.client.task import Task
from taskqueue.core.errors import TaskQueueError
from taskqueue.core.task import Status
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.storage.postgres import schema
from taskqueue.storage.postgres.connections import connect, database_at
from tests.support.broker import BrokerProcess
from tests.support.crew import Crew, a_crew, opened, until
from tests.support.door import PATIENCE
from tests.support.grpc import a_channel, rest_of
from tests.support.postgres import a_database, shared_server
from tests.support.resp import RespClient, as_dict

RELEASE: Final = "16"
FOR_EVER: Final = "600000"
"""Milliseconds that a claim waits, beyond the patience of any test."""


@pytest.fixture
async def dsn() -> AsyncIterator[str]:
    """A database whose books must balance at the end."""
    with shared_server(RELEASE) as server:
        async with a_database(server) as dsn:
            connection = await connect(database_at(dsn), "read-write", "test")
            await schema.migrate(connection)
            await connection.close()
            yield dsn
            async with opened(dsn) as storage:
                assert await storage.audit() == []


@pytest.fixture
async def crew(tmp_path: Path, dsn: str) -> AsyncIterator[Crew]:
    async with a_crew(tmp_path, dsn, 2) as crew:
        yield crew


@pytest.fixture
async def three(tmp_path: Path, dsn: str) -> AsyncIterator[Crew]:
    async with a_crew(tmp_path, dsn, 3) as crew:
        yield crew


async def claimed(worker: RespClient, worker_id: str, *options: str) -> tuple[str, int]:
    """Id and token of the one task that a worker gets, waiting for it."""
    [task] = await worker.claim("BLOCK", FOR_EVER, *options, worker=worker_id)
    return task[0].decode(), task[1]


async def workers_of(client: AsyncClient) -> int:
    return (await client.health()).connected_workers


async def test_brokers_may_start_together_on_an_empty_database(tmp_path: Path) -> None:
    with shared_server(RELEASE) as server:
        async with a_database(server) as dsn, a_crew(tmp_path, dsn, 3) as crew:
            await crew.leader(crew.brokers)


async def test_a_task_goes_through_both(crew: Crew) -> None:
    first, second = crew.brokers
    producer, worker = await crew.client(first), await crew.worker(second)
    task_id = await producer.submit_task(Task("work", b"payload"))
    assert await claimed(worker, "w1") == (task_id, 1)
    assert (await producer.get_status(task_id)).worker_id == "w1"
    assert await worker.ask("TQ.COMPLETE", task_id, 1, "RESULT", "done") == b"completed"
    assert await producer.wait_for_result(task_id) == b"done"
    assert (await producer.stats()).completed_last_hour == 1


async def test_each_task_is_handed_out_once(crew: Crew) -> None:
    producer = await crew.client(crew.brokers[0])
    workers = [await crew.worker(broker) for broker in (*crew.brokers, *crew.brokers)]
    ids = await producer.submit_many([Task("work", b"x") for _ in range(400)])

    async def drain(worker: RespClient, name: str) -> list[str]:
        done = []
        while tasks := await worker.claim("COUNT", "7", worker=name):
            for task in tasks:
                done.append(task[0].decode())
                assert await worker.ask("TQ.COMPLETE", task[0], task[1]) == b"completed"
        return done

    drained = await asyncio.gather(
        *(drain(worker, f"w{number}") for number, worker in enumerate(workers))
    )
    assert sorted(chain.from_iterable(drained)) == sorted(ids)
    for broker in crew.brokers:
        stats = await (await crew.client(broker)).stats()
        assert (stats.pending_count, stats.in_progress_count) == (0, 0)
        assert stats.completed_last_hour == 400


async def test_a_claim_that_waits_is_woken_by_a_submit_elsewhere(crew: Crew) -> None:
    for here, there in (crew.brokers, crew.brokers[::-1]):
        worker, producer = await crew.worker(here), await crew.client(there)
        parked = asyncio.create_task(claimed(worker, "w1"))
        await until(partial(workers_of, await crew.client(here)))
        task_id = await producer.submit_task(Task("work", b"x"))
        assert await asyncio.wait_for(parked, PATIENCE) == (task_id, 1)
        assert await worker.ask("TQ.COMPLETE", task_id, 1) == b"completed"
        assert await worker.ask("TQ.LEAVE", "w1") == 0


async def test_an_end_is_heard_of_elsewhere(crew: Crew) -> None:
    first, second = crew.brokers
    producer, waiter, worker = (
        await crew.client(second),
        await crew.worker(second),
        await crew.worker(first),
    )
    task_id = await producer.submit_task(Task("work", b"x"))
    token = (await claimed(worker, "w1"))[1]
    async with a_channel(int(second.grpc.rpartition(":")[2])) as channel:
        follow: Any = channel.unary_stream(
            "/taskqueue.TaskQueue/StreamTaskUpdates",
            pb.StreamTaskUpdatesRequest.SerializeToString,
            pb.TaskUpdate.FromString,
        )
        stream = follow(pb.StreamTaskUpdatesRequest(task_id=task_id), timeout=PATIENCE)
        assert (await stream.read()).status == "in_progress"
        waiter.send("TQ.WAIT", task_id, FOR_EVER)
        assert await worker.ask("TQ.COMPLETE", task_id, token, "RESULT", "end") == b"completed"
        assert [update.status for update in await rest_of(stream)] == ["completed"]
    assert as_dict(await waiter.answer())["result"] == b"end"


async def test_a_task_for_later_runs_whoever_took_it(crew: Crew) -> None:
    leader = await crew.leader(crew.brokers)
    [follower] = [broker for broker in crew.brokers if broker is not leader]
    for broker in (follower, leader):
        worker = await crew.worker(follower)
        producer = await crew.client(broker)
        task_id = await producer.submit_task(Task("work", b"x", delay=0.5))
        assert (await claimed(worker, "w1"))[0] == task_id
        shown = await producer.get_status(task_id)
        assert shown.updated_at - shown.created_at >= timedelta(seconds=0.5)
        assert await worker.ask("TQ.COMPLETE", task_id, 1) == b"completed"


async def test_a_failed_attempt_is_repeated_elsewhere(crew: Crew) -> None:
    first, second = [await crew.worker(broker) for broker in crew.brokers]
    task_id = await first.submit()
    token = (await claimed(first, "w1"))[1]
    assert await first.ask("TQ.FAIL", task_id, token, "no", "DELAY", "0.2") == b"failed"
    assert await claimed(second, "w2") == (task_id, token + 1)
    assert (await first.error("TQ.COMPLETE", task_id, token)).startswith("LEASE_LOST")
    assert await first.ask("TQ.COMPLETE", task_id, token + 1) == b"completed"


async def test_exactly_one_leads_and_all_say_who(three: Crew) -> None:
    leader = await three.leader(three.brokers)
    leading = [broker.native for broker in three.brokers if broker.health()["is_leader"]]
    assert leading == [leader.native]
    for broker in three.brokers:
        view = await three.view(broker)
        assert [one.address for one in view.brokers if one.is_me] == [broker.native]
        assert [one.address for one in view.brokers if one.is_leader] == [leader.native]
        assert {one.http for one in view.brokers} == {one.http for one in three.brokers}
        assert (view.healthy, view.complaint, view.quorum) == (True, None, 0)
        assert view.is_leader == (broker is leader)
        assert all(one.since is not None and one.since < one.last_seen for one in view.brokers)
        assert [node.role for node in view.database] == ["primary"]


async def test_when_the_leader_dies_another_takes_over_its_work(three: Crew) -> None:
    leader = await three.leader(three.brokers)
    before = await three.view(leader)
    others = [broker for broker in three.brokers if broker is not leader]
    producer, worker = await three.client(others[0]), await three.worker(others[1])
    # Two things only housekeeping brings back: a task for later, and one whose worker is gone.
    later = await producer.submit_task(Task("later", b"x", delay=1.0))
    lost = await producer.submit_task(Task("work", b"x"))
    ghost = await three.worker(leader)
    assert (await claimed(ghost, "ghost"))[0] == lost
    await asyncio.to_thread(leader.kill)

    await three.leader(others)
    after = await three.view(others[0])
    assert after.term > before.term
    assert after.leader != before.leader
    [run] = await worker.claim("BLOCK", FOR_EVER, task_type="later")
    assert run[0].decode() == later
    assert await worker.ask("TQ.COMPLETE", later, run[1]) == b"completed"
    assert await claimed(worker, "w1") == (lost, 2)
    assert await worker.ask("TQ.COMPLETE", lost, 2) == b"completed"
    assert [broker.health()["is_leader"] for broker in others].count(True) == 1
    await asyncio.to_thread(leader.start)
    assert await three.leader(three.brokers) in others


async def test_a_leader_that_leaves_hands_over(crew: Crew) -> None:
    leader = await crew.leader(crew.brokers)
    [other] = [broker for broker in crew.brokers if broker is not leader]
    assert await asyncio.to_thread(leader.stop) == 0
    assert await crew.leader([other]) is other
    assert (await (await crew.client(other)).health()).is_leader


async def test_a_worker_that_changes_its_broker_keeps_its_claims(crew: Crew) -> None:
    first, second = crew.brokers
    at_first, at_second = await crew.worker(first), await crew.worker(second)
    kept, lost = await at_first.submit(), await at_first.submit()
    tokens = dict([await claimed(at_first, "mover"), await claimed(at_first, "silent")])
    assert set(tokens) == {kept, lost}
    at_first.hang_up()
    producer = await crew.client(second)
    # As long as the one that says nothing keeps its task, a lease has not run out.
    async with asyncio.timeout(PATIENCE):
        while (await producer.get_status(lost)).status is Status.IN_PROGRESS:
            beat = await at_second.ask("TQ.BEAT", "mover", kept, tokens[kept])
            assert as_dict(beat)["lost"] == []
            await asyncio.sleep(0.1)
    assert (await producer.get_status(kept)).status is Status.IN_PROGRESS
    assert await at_second.ask("TQ.COMPLETE", kept, tokens[kept]) == b"completed"
    refused = await at_second.error("TQ.COMPLETE", lost, tokens[lost])
    assert refused.startswith("LEASE_LOST")
    beat = await at_second.ask("TQ.BEAT", "silent", lost, tokens[lost])
    assert as_dict(beat)["lost"] == [lost.encode()]


async def test_submits_go_on_at_the_others_while_one_is_killed(three: Crew) -> None:
    """What was acknowledged is there, by each broker and by the books."""
    victim, *others = three.brokers
    acknowledged: list[str] = []
    under_way = asyncio.Event()

    async def produce(broker: BrokerProcess) -> None:
        producer = AsyncClient(broker.native, timeout=1.0)
        try:
            for _ in range(300):
                task_id = await producer.submit_task(Task("work", b"x"))
                acknowledged.append(task_id)
                if len(acknowledged) == 100:
                    under_way.set()
        except TaskQueueError:
            assert broker is victim
        finally:
            await producer.close()

    producing = [asyncio.create_task(produce(broker)) for broker in three.brokers]
    await asyncio.wait_for(under_way.wait(), PATIENCE)
    await asyncio.to_thread(victim.kill)
    await asyncio.gather(*producing)
    for broker in others:
        client = await three.client(broker)
        for task_id in acknowledged:
            assert (await client.get_status(task_id)).status is Status.PENDING
        assert (await client.stats()).pending_count >= len(acknowledged)
