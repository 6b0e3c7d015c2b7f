"""A stream of updates tells every change of a task in its order, and ends with the task."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from taskqueue.core.clock import ManualClock
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.wire import messages as m
from tests.support.broker import claimed
from tests.support.door import until
from tests.support.grpc import GrpcClient, a_channel, a_grpc_client, refusal_of, rest_of


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[GrpcClient]:
    async with a_grpc_client(tmp_path / "data", clock=ManualClock()) as client:
        yield client


def follow(client: GrpcClient, task_id: str) -> Any:
    return client.call("StreamTaskUpdates", pb.StreamTaskUpdatesRequest(task_id=task_id))


async def statuses(updates: Any) -> list[str]:
    return [update.status for update in await rest_of(updates)]


async def complete(client: GrpcClient, result: bytes = b"done") -> None:
    [one] = await claimed(client.broker)
    await client.broker.complete(
        m.CompleteRequest(task_id=one.task.id, token=one.task.token, result=result)
    )


async def test_a_stream_tells_the_present_then_each_change_until_the_end(
    client: GrpcClient,
) -> None:
    task_id = await client.submit()
    updates = follow(client, task_id)
    first = await updates.read()
    assert (first.task_id, first.status, first.retry_count) == (task_id, "pending", 0)
    [one] = await claimed(client.broker)
    second = await updates.read()
    assert (second.status, second.worker_id) == ("in_progress", "w1")
    word: dict[str, Any] = {"task_id": task_id, "token": one.task.token}
    await client.broker.progress(m.ProgressRequest(**word, fraction=0.5, note="half"))
    third = await updates.read()
    assert (third.status, third.progress, third.progress_note) == ("in_progress", 0.5, "half")
    await client.broker.fail(m.FailRequest(**word, message="no", kind="E", delay_seconds=0))
    fourth = await updates.read()
    assert (fourth.status, fourth.error, fourth.retry_count) == ("failed", "E: no", 1)
    await complete(client)
    assert (await updates.read()).status == "in_progress"
    last = await updates.read()
    assert (last.status, last.result, last.error) == ("completed", b"done", "")
    assert last.updated_at.ToMicroseconds() == client.broker.clock.wall()
    assert await rest_of(updates) == []


async def test_a_task_that_has_ended_is_told_once(client: GrpcClient) -> None:
    task_id = await client.submit()
    await complete(client)
    [update] = await rest_of(follow(client, task_id))
    assert (update.status, update.result) == ("completed", b"done")


async def test_a_task_that_dies_ends_its_stream_with_its_error(client: GrpcClient) -> None:
    task_id = await client.submit(max_retries=0)
    updates = follow(client, task_id)
    await updates.read()
    [one] = await claimed(client.broker)
    await client.broker.fail(m.FailRequest(task_id=task_id, token=one.task.token, message="no"))
    told = [(update.status, update.error) for update in await rest_of(updates)]
    assert told == [("in_progress", ""), ("dead_letter", "no")]


async def test_a_cancelled_task_ends_its_stream(client: GrpcClient) -> None:
    task_id = await client.submit()
    updates = follow(client, task_id)
    await updates.read()
    await client.broker.cancel(m.CancelRequest(task_id=task_id))
    assert await statuses(updates) == ["cancelled"]


async def test_one_who_stops_following_is_forgotten(client: GrpcClient) -> None:
    task_id = await client.submit()
    updates = follow(client, task_id)
    await updates.read()
    assert client.broker.updates.follower_count == 1
    updates.cancel()
    await until(lambda: client.broker.updates.follower_count == 0)


async def test_a_stream_ends_when_the_broker_does(client: GrpcClient) -> None:
    updates = follow(client, await client.submit())
    await updates.read()
    await client.broker.close()
    refusal = await refusal_of(updates)
    assert (refusal.status, refusal.code) == ("UNAVAILABLE", "BROKER_UNAVAILABLE")


async def test_whoever_begins_in_the_middle_of_changes_misses_none(client: GrpcClient) -> None:
    """Followers begin at every stage of a task's life; each must see one unbroken end of it."""
    task_id = await client.submit(max_retries=30)
    told: list[asyncio.Task[list[tuple[str, int]]]] = []

    async def read() -> list[tuple[str, int]]:
        return [
            (update.status, update.retry_count) for update in await rest_of(follow(client, task_id))
        ]

    for attempt in range(20):
        told += [asyncio.create_task(read()) for _ in range(3)]
        [one] = await claimed(client.broker)
        word: dict[str, Any] = {"task_id": task_id, "token": one.task.token}
        if attempt < 19:
            await client.broker.fail(m.FailRequest(**word, message="no", delay_seconds=0))
        else:
            await client.broker.complete(m.CompleteRequest(**word))
    life = [("pending", 0)]
    for attempt in range(20):
        life += [("in_progress", attempt), ("failed", attempt + 1)]
    life[-1] = ("completed", 19)
    for one_told in await asyncio.wait_for(asyncio.gather(*told), 30):
        assert one_told == life[-len(one_told) :]


async def test_a_thousand_followers_each_get_every_change_in_order(client: GrpcClient) -> None:
    task_id = await client.submit(max_retries=5)
    async with AsyncExitStack() as stack:
        clients = [
            GrpcClient(
                client.broker,
                client.door,
                await stack.enter_async_context(a_channel(client.door.port)),
            )
            for _ in range(12)
        ]
        streams = [follow(clients[number % 12], task_id) for number in range(1_000)]
        for stream in streams:
            assert (await stream.read()).status == "pending"
        reading = [asyncio.create_task(statuses(stream)) for stream in streams]
        for _ in range(3):
            [one] = await claimed(client.broker)
            word: dict[str, Any] = {"task_id": task_id, "token": one.task.token}
            await client.broker.fail(m.FailRequest(**word, message="no", delay_seconds=0))
        await complete(client)
        told = await asyncio.wait_for(asyncio.gather(*reading), 60)
    assert told == [["in_progress", "failed"] * 3 + ["in_progress", "completed"]] * 1_000


async def test_a_follower_that_does_not_read_is_cut_off(client: GrpcClient) -> None:
    """Its own window is full: what comes after that waits for it, up to a limit."""
    task_id = await client.submit()
    updates = follow(client, task_id)
    await updates.read()
    [one] = await claimed(client.broker)
    word: dict[str, Any] = {"task_id": task_id, "token": one.task.token}
    notes = [
        m.ProgressRequest(**word, fraction=0.5, note=f"{n:04}" + "x" * 990) for n in range(4_000)
    ]
    await asyncio.gather(*(client.broker.progress(note) for note in notes))
    refusal = await refusal_of(updates)
    assert (refusal.status, refusal.code) == ("RESOURCE_EXHAUSTED", "QUEUE_DEPTH_EXCEEDED")
    assert client.broker.updates.follower_count == 0
