"""Workers at every door: what they tell, what they are told, and how the end of one is noticed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from taskqueue.broker.broker import BrokerSettings
from tests.support.door import until
from tests.support.resp import RespClient, as_dict
from tests.support.rest import TASKS
from tests.support.three_doors import WAYS, Refused, ThreeDoors, a_native_client, three_doors

ABOUT = (
    b'{"host": "web-1", "pid": 4711, "version": "1.2.3", "slots": 10, "busy": 3, '
    b'"cpu_percent": 12.5, "memory_bytes": 52428800, "task_types": ["work"], "tasks": []}'
)


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[ThreeDoors]:
    settings = BrokerSettings(lease_seconds=30, reconnect_seconds=10)
    async with three_doors(tmp_path, settings) as doors:
        yield doors


class Worker:
    """A worker with a connection of its own; it says what a test wants said."""

    def __init__(self, connection: RespClient, port: int) -> None:
        self.connection = connection
        self._port = port

    async def claim(self) -> tuple[str, int]:
        """Claim a task: its id and token."""
        [claimed] = await self.connection.claim(worker="w")
        return claimed[0].decode(), claimed[1]

    async def beat(self, *held: Any) -> dict[str, Any]:
        """Send a heartbeat with what it holds."""
        return as_dict(await self.connection.ask("TQ.BEAT", "w", *held))

    async def come_back(self) -> None:
        """Connect again."""
        self.connection = await a_native_client(self._port)


@pytest.fixture
async def worker(doors: ThreeDoors) -> AsyncIterator[Worker]:
    worker = Worker(await a_native_client(doors.native_port), doors.native_port)
    yield worker
    worker.connection.hang_up()


async def lost(doors: ThreeDoors, worker: Worker) -> None:
    """Close the worker's connections, and return when the broker has seen it."""
    worker.connection.hang_up()
    await until(lambda: doors.broker.workers.all()["w"].is_gone)


@pytest.mark.parametrize("way", WAYS)
async def test_workers_are_listed_with_what_they_tell(
    doors: ThreeDoors, worker: Worker, way: str
) -> None:
    door = doors.way(way)
    assert await door.workers() == {}
    await worker.beat()
    assert (await door.workers())["w"]["host"] == ""
    assert await worker.connection.ask("TQ.ABOUT", "w", ABOUT) == b"OK"
    shown = (await door.workers())["w"]
    assert (shown["host"], shown["version"], shown["order"]) == ("web-1", "1.2.3", "work")
    figures = [int(shown[name]) for name in ("pid", "slots", "busy", "memory_bytes")]
    assert figures == [4711, 10, 3, 52_428_800]
    assert (float(shown["cpu_percent"]), list(shown["task_types"])) == (12.5, ["work"])
    await worker.connection.ask("TQ.LEAVE", "w")
    assert await door.workers() == {}


@pytest.mark.parametrize("way", WAYS)
async def test_an_order_is_heard_at_once_and_with_each_heartbeat(
    doors: ThreeDoors, worker: Worker, way: str
) -> None:
    door = doors.way(way)
    assert (await worker.beat())["order"] is None
    worker.connection.send("TQ.NOTICE", "w", 60_000)
    await until(lambda: bool(doors.broker.crew.notices._news))
    await door.order("w", "quiet")
    assert as_dict(await worker.connection.answer())["order"] == b"quiet"
    assert (await worker.beat())["order"] == b"quiet"
    assert (await door.workers())["w"]["order"] == "quiet"
    for worker_id, order, code in (
        ("nobody", "stop", "WORKER_NOT_FOUND"),
        ("w", "dance", "INVALID_REQUEST"),
    ):
        with pytest.raises(Refused) as refused:
            await door.order(worker_id, order)
        assert refused.value.code == code


async def test_a_cancel_is_heard_at_once(doors: ThreeDoors, worker: Worker) -> None:
    task_id = await doors.rest.submit()
    claim = await worker.claim()
    worker.connection.send("TQ.NOTICE", "w", 60_000)
    await until(lambda: bool(doors.broker.crew.notices._news))
    await doors.native.ask("TQ.CANCEL", task_id, "RUNNING", "yes")
    [lost] = as_dict(await worker.connection.answer())["lost"]
    assert as_dict(lost) == {"task_id": task_id.encode(), "token": claim[1]}
    assert (await worker.beat(*claim))["lost"] == [task_id.encode()]


async def test_the_tasks_of_a_worker_whose_connections_close_are_taken_after_the_grace(
    doors: ThreeDoors, worker: Worker
) -> None:
    task_id = await doors.rest.submit()
    claim = await worker.claim()
    await worker.beat(*claim)
    await lost(doors, worker)
    await doors.pass_seconds(9)
    assert (await doors.rest.get(task_id))["status"] == "in_progress"
    await doors.pass_seconds(2)
    shown = await doors.rest.get(task_id)
    assert (shown["status"], shown["retry_count"]) == ("failed", 1)
    assert shown["failures"][0]["error"].startswith("WorkerLost")


async def test_a_worker_that_is_back_within_the_grace_keeps_its_claims(
    doors: ThreeDoors, worker: Worker
) -> None:
    task_id = await doors.rest.submit()
    claim = await worker.claim()
    await worker.beat(*claim)
    await lost(doors, worker)
    await doors.pass_seconds(8)
    await worker.come_back()
    assert (await worker.beat(*claim))["lost"] == []
    await doors.pass_seconds(20)
    assert await worker.connection.ask("TQ.COMPLETE", *claim) == b"completed"
    assert (await doors.rest.get(task_id))["retry_count"] == 0


async def test_one_connection_that_closes_is_not_the_worker(
    doors: ThreeDoors, worker: Worker
) -> None:
    await doors.rest.submit()
    claim = await worker.claim()
    other = await a_native_client(doors.native_port)
    await other.ask("TQ.BEAT", "w", *claim)
    worker.connection.hang_up()
    await until(lambda: doors.broker.workers._connections["w"] == 1)
    await doors.pass_seconds(25)
    assert await other.ask("TQ.COMPLETE", *claim) == b"completed"
    other.hang_up()


async def test_a_worker_that_does_not_beat_keeps_its_claims_to_the_end_of_its_lease(
    doors: ThreeDoors, worker: Worker
) -> None:
    """Such as one that takes and completes over connections that it closes each time."""
    task_id = await doors.rest.submit()
    await worker.claim()
    worker.connection.hang_up()
    await until(lambda: not doors.broker.workers._connections["w"])
    await doors.pass_seconds(29)
    assert (await doors.rest.get(task_id))["status"] == "in_progress"
    await doors.pass_seconds(2)
    assert (await doors.rest.get(task_id))["status"] == "failed"


async def test_the_claim_of_a_worker_that_is_gone_does_not_wait_on(
    doors: ThreeDoors, worker: Worker
) -> None:
    await worker.beat()
    worker.connection.send("TQ.CLAIM", "w", "BLOCK", 60_000, "TYPES", "work")
    await asyncio.sleep(0)
    await lost(doors, worker)
    task_id = await doors.rest.submit()
    assert [one[0].decode() for one in await doors.native.client.claim()] == [task_id]


async def test_a_checkpoint_comes_with_the_next_claim(doors: ThreeDoors, worker: Worker) -> None:
    task_id = await doors.rest.submit()
    _, token = await worker.claim()
    ask = worker.connection.ask
    largest = b"\x00\xff" * (32 * 1024)
    assert await ask("TQ.CHECKPOINT", task_id, token, b"first") == b"in_progress"
    assert await ask("TQ.CHECKPOINT", task_id, token, largest) == b"in_progress"
    refused = await worker.connection.error("TQ.CHECKPOINT", task_id, token, largest + b"x")
    assert refused.startswith("PAYLOAD_TOO_LARGE data must be at most 65536 bytes")
    await ask("TQ.FAIL", task_id, token, "no", "DELAY", 0)
    [again] = await worker.connection.claim(worker="w")
    assert again[9] == largest
    late = await worker.connection.error("TQ.CHECKPOINT", task_id, token, b"late")
    assert late.startswith("LEASE_LOST")


async def test_an_attempt_may_be_given_more_time(doors: ThreeDoors, worker: Worker) -> None:
    reply = await doors.rest._client.ask(
        "POST", TASKS, {"task_type": "work", "payload": "", "timeout_seconds": 5}
    )
    task_id = reply.json["task_id"]
    claim = await worker.claim()
    await doors.pass_seconds(4)
    assert await worker.connection.ask("TQ.EXTEND", *claim, 10) == b"in_progress"
    await doors.pass_seconds(9)
    assert (await doors.rest.get(task_id))["status"] == "in_progress"
    for seconds in (0, 31_536_001):
        refused = await worker.connection.error("TQ.EXTEND", *claim, seconds)
        assert refused.startswith("INVALID_REQUEST seconds must be")
    await doors.pass_seconds(3)
    assert (await doors.rest.get(task_id))["error"].startswith("TimedOut")


async def test_a_process_that_died_counts_as_a_lost_worker(
    doors: ThreeDoors, worker: Worker
) -> None:
    task_id = await doors.native.submit(max_retries=1_000)
    for losses in range(1, 6):
        _, token = await worker.claim()
        words = ("TQ.FAIL", task_id, token, "killed", "DELAY", 0, "DIED", "yes")
        answer = await worker.connection.ask(*words)
        assert answer == (b"failed" if losses < 5 else b"dead_letter")
    shown = await doors.rest.get(task_id)
    assert "it has cost 5 workers or processes" in shown["error"]
