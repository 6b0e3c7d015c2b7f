"""Processes of handlers, and workers, that die of what a handler does."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from taskqueue.core.errors import InvalidStatus
from tests.faults.scene import WAYS, Scene, a_scene, is_gone, until

DEATHS = {
    "os._exit(0)": "ended with exit code 0",
    "segfault": "was killed by SIGSEGV",
    "abort": "was killed by SIGABRT",
    "SIGKILL": "was killed by SIGKILL",
    "SIGTRAP": "was killed by SIGTRAP",
    "out of memory": "was killed by SIGKILL",
}


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with a_scene(tmp_path, losses=2) as scene:
        yield scene
    for root in ("", "memory"):
        for group in (Path("/sys/fs/cgroup") / root).glob("tq-faults-*"):
            if is_gone(int(group.name.rpartition("-")[2])):
                group.rmdir()


@pytest.fixture
def tolerant(tmp_path: Path) -> Iterator[Scene]:
    with a_scene(tmp_path, losses=10) as scene:
        yield scene


def test_each_death_of_a_process_is_a_failed_attempt_that_names_it(scene: Scene) -> None:
    """F10: out of memory, in a cgroup of its own where this user may make one."""
    worker = scene.worker("--concurrency", "4")
    beside = scene.file("beside")
    neighbour = scene.submit("hold_process", beside=str(beside))
    until(beside.exists)
    tasks = {how: scene.submit("die", how=how) for how in DEATHS}
    for how, task in tasks.items():
        ended = scene.ended(task)
        [failure] = ended.failures
        assert (ended.status, ended.retry_count) == ("dead_letter", 0)
        assert failure.error.startswith(
            f"WorkerProcessDied: the process of the handler {DEATHS[how]}; it last had "
        )
    assert scene.status(neighbour).status == "in_progress"
    pid = beside.read_text()
    beside.unlink()
    assert scene.result(neighbour) == f"done by {pid}"
    assert scene.status(neighbour).retry_count == 0
    assert worker.is_alive


def test_five_deaths_cost_five_attempts_and_never_count_as_a_success(tolerant: Scene) -> None:
    """F10."""
    scene = tolerant
    worker = scene.worker("--concurrency", "2")
    task = scene.submit("die", retries=4, how="os._exit(0)")
    until(lambda: scene.status(task).failures)
    for _ in range(4):
        deaths = len(scene.status(task).failures)
        assert scene.status(task).status in ("failed", "in_progress")
        with suppress(InvalidStatus):  # it has begun already
            scene.client.change(task, delay=0)
        until(lambda: len(scene.status(task).failures) > deaths)  # noqa: B023
    ended = scene.ended(task)
    assert (ended.status, ended.retry_count) == ("dead_letter", 4)
    assert len(ended.failures) == 5
    assert all("ended with exit code 0" in failure.error for failure in ended.failures)
    assert scene.result(scene.submit("fine_process", text="alive")) == "alive"
    assert worker.is_alive


def test_a_task_that_takes_its_processes_along_goes_to_the_dead_letters(scene: Scene) -> None:
    """F10: they count as workers do."""
    worker = scene.worker("--concurrency", "1")
    task = scene.submit("die", retries=50, how="SIGKILL")
    until(lambda: scene.status(task).failures)
    with suppress(InvalidStatus):  # it has begun already
        scene.client.change(task, delay=0)
    ended = scene.ended(task)
    assert (ended.status, ended.retry_count, len(ended.failures)) == ("dead_letter", 1, 2)
    assert ended.failures[-1].error.endswith(
        "it has cost 2 workers or processes, and is tried no more"
    )
    assert worker.is_alive


def test_a_task_that_takes_its_workers_along_goes_to_the_dead_letters(scene: Scene) -> None:
    """F10: after as many workers as `broker.max_worker_losses`, whatever retries it has left."""
    workers = [scene.worker("--concurrency", "1") for _ in range(3)]
    until(lambda: scene.broker.health()["connected_workers"] == 3)
    ended = scene.ended(scene.submit("end_the_worker", retries=50))
    assert (ended.status, ended.retry_count, len(ended.failures)) == ("dead_letter", 1, 2)
    assert all(failure.error.startswith("WorkerLost: ") for failure in ended.failures)
    assert "it has cost 2 workers" in ended.failures[-1].error
    assert sum(worker.is_alive for worker in workers) == 1
    assert scene.result(scene.submit("fine_thread", text="alive")) == "alive"


def test_a_handler_that_runs_out_of_its_limit_has_failed_and_its_process_lives(
    scene: Scene,
) -> None:
    """F10: where Python is told that there is no memory, it is an error as any other."""
    scene.worker("--concurrency", "1")
    ended = scene.ended(scene.submit("take_all_memory"))
    assert (ended.status, ended.error) == ("dead_letter", "MemoryError: ")
    assert scene.result(scene.submit("fine_process", text="alive")) == "alive"


def test_a_process_that_leaks_is_replaced_above_its_limit(scene: Scene) -> None:
    """F10: the next task finds another process, and the worker keeps nothing of the leak."""
    worker = scene.worker("--concurrency", "1", "--child-memory-mb", "200")
    first = scene.result(scene.submit("leak", megabytes=20))
    assert first in worker.children
    before = worker.resident
    assert scene.result(scene.submit("leak", megabytes=20)) == first
    assert scene.result(scene.submit("leak", megabytes=200)) == first
    assert scene.result(scene.submit("leak", megabytes=20)) != first
    until(lambda: is_gone(first))
    assert worker.resident < before + 20 * 2**20
    assert "a process is replaced after 3 tasks" in worker.log


def test_a_handler_that_ignores_its_cancellation_does_not_keep_its_task(scene: Scene) -> None:
    """Some are cancelled by a user, others by their time limit."""
    worker = scene.worker("--concurrency", "7")
    cancelled = {way: scene.file(f"cancelled-{way}") for way in WAYS}
    late = {way: scene.file(f"late-{way}") for way in WAYS}
    tasks = [scene.submit(f"ignore_{way}", beside=str(file)) for way, file in cancelled.items()]
    others = [
        scene.submit(f"ignore_{way}", timeout=1, beside=str(file)) for way, file in late.items()
    ]
    until(lambda: all(file.exists() for file in cancelled.values()))
    for task in tasks:
        scene.client.cancel(task, running=True)
        assert scene.ended(task).status == "cancelled"
    for task in others:
        ended = scene.ended(task)
        assert ended.status == "dead_letter"
        assert str(ended.error).startswith("TimedOut: ")
    assert scene.result(scene.submit("fine_loop", text="alive")) == "alive"
    until(lambda: all(task in worker.log for task in tasks))  # it has been told
    for file in (*cancelled.values(), *late.values()):
        file.unlink(missing_ok=True)
    # All slots are free again, and nothing that came after the end has changed anything.
    marks = [scene.file(f"slot{number}") for number in range(7)]
    held = [scene.submit("hold_thread", beside=str(mark)) for mark in marks]
    until(lambda: all(mark.exists() for mark in marks))
    for mark in marks:
        mark.unlink()
    assert {scene.result(one) for one in held} == {f"done by {worker.pid}"}
    assert {scene.status(task).status for task in tasks} == {"cancelled"}
    assert {scene.status(task).status for task in others} == {"dead_letter"}
