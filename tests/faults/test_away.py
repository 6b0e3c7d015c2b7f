"""Brokers that go away and come back, links that break in every way, and workers that go on."""

import asyncio
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.scene import LEASE, Scene, a_scene, until
from tests.support import door
from tests.support.door import a_cutting_proxy
from tests.support.hole import a_hole

WHOLE = 1 << 60
ONE = ("--concurrency", "1")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with a_scene(tmp_path) as scene:
        yield scene


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[Scene]:
    """With leases that are longer than any pause of a client."""
    with a_scene(tmp_path, lease=30) as scene:
        yield scene


def port_of(scene: Scene) -> int:
    """Where the broker's native door is."""
    return int(scene.broker.native.rpartition(":")[2])


def test_a_worker_goes_on_after_its_broker_was_gone_for_leases(scene: Scene) -> None:
    """What it ran meanwhile counts, and it takes what is new, without having been restarted."""
    worker = scene.worker("--concurrency", "3", "--log-level", "debug")
    pid = worker.pid
    ended_meanwhile = scene.file("ended")
    going_on = scene.file("going-on")
    first = scene.submit("hold_thread", beside=str(ended_meanwhile))
    second = scene.submit("hold_process", beside=str(going_on))
    until(lambda: ended_meanwhile.exists() and going_on.exists())
    scene.broker.kill()
    ended_meanwhile.unlink()
    # Each attempt at a heartbeat is a third of a lease after the one before, at most.
    until(lambda: worker.log.count("no heartbeat") >= 9)
    scene.broker.start()
    assert scene.result(first) == f"done by {pid}"
    assert scene.status(second).status == "in_progress"
    going_on.unlink()
    assert scene.result(scene.submit("fine_process", text="new")) == "new"
    assert scene.ended(second).status == "completed"
    assert [scene.status(task).retry_count for task in (first, second)] == [0, 0]
    assert worker.is_alive


def test_a_broker_that_restarts_again_and_again_loses_nothing(patient: Scene) -> None:
    """Restarts beneath a worker at work."""
    worker = patient.worker("--concurrency", "2")
    tasks: list[str] = []
    for number in range(3):
        tasks += [patient.submit("fine_loop", text=f"{number}.{one}") for one in range(20)]
        if number % 2:
            patient.broker.stop()
        else:
            patient.broker.kill()
        patient.broker.start()
    texts = [f"{number}.{one}" for number in range(3) for one in range(20)]
    assert [patient.result(task) for task in tasks] == texts
    assert worker.is_alive
    assert {patient.status(task).retry_count for task in tasks} == {0}


async def test_a_worker_on_a_half_open_link_stops_its_handlers_and_comes_back(
    scene: Scene,
) -> None:
    """F35: at its own lease's end; another worker has the task then, and the first claims anew."""
    async with a_hole(port_of(scene)) as hole:
        worker = scene.worker(*ONE, url=hole.url)
        task = scene.submit("wait", retries=3, folder=str(scene.folder))
        await door.until(scene.file("begun 1").exists)
        hole.swallow()
        await door.until(scene.file("stopped 1").exists)
        assert "the broker does not answer and the lease is over" in worker.log
        other = scene.worker(*ONE)
        await door.until(scene.file("begun 2").exists)
        hole.heal()
        scene.file("go").touch()
        assert await asyncio.to_thread(scene.result, task) == 2
        status = scene.status(task)
        assert (status.retry_count, status.worker_id) == (1, other.id)
        assert status.failures[0].error.startswith("WorkerLost: ")
        await asyncio.to_thread(other.end, signal.SIGTERM)
        task = scene.submit("fine_thread", text="back")
        assert await asyncio.to_thread(scene.result, task) == "back"
        assert scene.status(task).worker_id == worker.id


async def test_a_thread_that_nobody_can_stop_has_no_say_after_a_half_open_link(
    scene: Scene,
) -> None:
    """F35: its late result is dropped."""
    async with a_hole(port_of(scene)) as hole:
        worker = scene.worker(*ONE, url=hole.url)
        task = scene.submit("note", retries=3, folder=str(scene.folder))
        await door.until(scene.file("begun 1").exists)
        hole.swallow()
        other = scene.worker(*ONE)
        await door.until(scene.file("begun 2").exists)
        hole.heal()
        scene.file("go").touch()
        assert await asyncio.to_thread(scene.result, task) == 2
        assert scene.status(task).worker_id == other.id
        await door.until(lambda: "the claim was lost" in worker.log)
        assert scene.status(task).retry_count == 1


async def test_claims_that_nobody_received_come_back_after_the_lease(scene: Scene) -> None:
    """F36: requests arrive, answers are lost; the worker beats all the while."""
    async with a_hole(port_of(scene)) as hole:
        deaf = scene.worker(*ONE, url=hole.url)
        await door.until(lambda: scene.broker.health()["connected_workers"] == 1)
        await door.until(lambda: hole.connections >= 2)
        hole.swallows_answers = True
        task = scene.submit("fine_thread", retries=3, text="found")
        await door.until(lambda: scene.status(task).status == "in_progress")
        other = scene.worker(*ONE)
        assert await asyncio.to_thread(scene.result, task) == "found"
        status = scene.status(task)
        assert (status.worker_id, status.retry_count) == (other.id, 1)
        assert deaf.is_alive


async def test_a_worker_whose_links_break_all_the_time_does_each_task_once(
    patient: Scene,
) -> None:
    """F34: in either direction, at whatever is under way then; each command by itself is cut at
    each byte in tests/hardening."""
    chance = random.Random(7)
    cuts = [(chance.randrange(150, 2_500), WHOLE) for _ in range(30)]
    cuts += [(WHOLE, chance.randrange(150, 2_500)) for _ in range(30)]
    chance.shuffle(cuts)
    async with a_cutting_proxy(port_of(patient), *cuts) as proxy:
        worker = patient.worker("--concurrency", "4", url=f"127.0.0.1:{proxy.port}")
        rounds = 0
        while proxy.connections < len(cuts):
            texts = [f"{rounds}.{one}" for one in range(8)]
            tasks = [patient.submit("fine_loop", text=text) for text in texts]
            assert await asyncio.to_thread(lambda: [*map(patient.result, tasks)]) == texts  # noqa: B023
            assert {patient.status(task).retry_count for task in tasks} == {0}
            rounds += 1
        assert worker.is_alive


@pytest.mark.parametrize("task_type", ["block", "block_all"])
def test_a_handler_that_blocks_the_worker_for_leases(scene: Scene, task_type: str) -> None:
    """F11: the loop alone costs nothing; with all threads standing still it is as F08."""
    blocked = scene.worker(*ONE)
    task = scene.submit(task_type, retries=3, seconds=2 * LEASE + 1)
    until(lambda: scene.status(task).status == "in_progress")
    other = scene.worker(*ONE)
    # The broker's other timers go on: a task that was put off is due while the worker is blocked.
    later = scene.submit("fine_thread", text="later")
    assert scene.result(later) == "later"
    assert scene.status(later).worker_id == other.id
    token = scene.result(task)
    status = scene.status(task)
    if task_type == "block":
        assert (token, status.retry_count, status.worker_id) == (1, 0, blocked.id)
        assert f"task {task} (block) blocks the event loop" in blocked.log
    else:
        assert (token, status.retry_count, status.worker_id) == (2, 1, other.id)
        until(lambda: "the claim was lost" in blocked.log)
    other.end(signal.SIGTERM)
    assert scene.result(scene.submit("fine_process", text="alive")) == "alive"
    assert scene.status(task) == status
