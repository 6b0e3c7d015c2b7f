"""Many workers that come back at once, and many tasks that fail at once."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from taskqueue import App, Task
from taskqueue.client.address import broker_addresses
from taskqueue.worker.runner import Worker
from taskqueue.worker.settings import WorkerSettings
from tests.faults.scene import Scene, a_scene, until
from tests.support import door

CROWD = 200
STORM = 300


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with a_scene(tmp_path, lease=30) as scene:
        yield scene


def crowd_app(url: str) -> App:
    """What each of the crowd can do."""
    app = App(url)

    @app.task
    async def one(number: int) -> int:
        return number

    return app


@asynccontextmanager
async def a_crowd(url: str) -> AsyncIterator[list[Worker]]:
    """Workers in this process, each with connections and a heartbeat of its own."""
    settings = WorkerSettings(concurrency=1, stall_seconds=0)
    app = crowd_app(url)
    workers = [Worker(app, broker_addresses(url), settings) for _ in range(CROWD)]
    running = [asyncio.create_task(worker.run()) for worker in workers]
    try:
        yield workers
    finally:
        for worker in workers:
            worker.stop()
        await asyncio.gather(*running)


async def test_a_crowd_that_comes_back_at_once_is_served(scene: Scene) -> None:
    """F40: after a restart all of them are there again, and nothing was lost or done twice."""
    url = scene.broker.native
    async with a_crowd(url):
        await door.until(lambda: scene.broker.health()["connected_workers"] == CROWD)
        await asyncio.to_thread(scene.broker.kill)
        await asyncio.to_thread(scene.broker.start)
        tasks = [Task("one", b'{"number": %d}' % number) for number in range(2 * CROWD)]
        ids = await asyncio.to_thread(scene.client.submit_many, tasks)
        ended = await asyncio.to_thread(lambda: [*map(scene.ended, ids)])
        assert [task.result for task in ended] == [b"%d" % one for one in range(2 * CROWD)]
        assert {task.retry_count for task in ended} == {0}
        await door.until(lambda: scene.broker.health()["connected_workers"] == CROWD)
        runners = Counter(task.worker_id for task in ended)
        assert len(runners) > CROWD / 10


def test_fresh_work_flows_through_a_storm_of_retries(scene: Scene) -> None:
    """F41: tasks that fail together do not come back together."""
    scene.worker("--concurrency", "20", "--log-level", "error")
    payload = b'{"how": "own"}'
    storm = scene.client.submit_many([Task("fail_loop", payload) for _ in range(STORM)])
    fresh = [scene.submit("fine_loop", text=f"{number}") for number in range(50)]
    assert [scene.result(task) for task in fresh] == [f"{number}" for number in range(50)]
    tasks = [scene.status(task) for task in storm]
    assert {task.status for task in tasks} <= {"failed", "pending", "in_progress"}
    until(lambda: all(scene.status(task).failures for task in storm))
    waiting = [task for task in map(scene.status, storm) if task.retry_count == 1]
    delays = [(task.schedule_at - task.failures[0].at).total_seconds() for task in waiting]
    shortest, longest = min(delays), max(delays)
    assert longest > shortest * 1.1
    tenths = Counter(int(10 * (delay - shortest) / (longest - shortest)) for delay in delays)
    assert max(tenths.values()) < len(delays) / 3, tenths
