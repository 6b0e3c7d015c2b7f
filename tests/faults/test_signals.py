"""Workers that are killed, told to end, and frozen in the middle of their work."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskqueue.core.errors import LeaseLost
from tests.faults.scene import LEASE, WAYS, Scene, a_scene, is_gone, until
from tests.hardening.attacker import a_native_client

BUSY = ("--concurrency", "1")
"""A worker whose one slot is taken has no claim that waits at the broker."""


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with a_scene(tmp_path) as scene:
        yield scene


def pass_time(leases: float) -> None:
    """Let time pass in which, this being the point, nothing happens that one could wait for."""
    ends_at = time.monotonic() + leases * LEASE
    while time.monotonic() < ends_at:
        time.sleep(0.05)


def held_by(scene: Scene, *ways: str, retries: int = 3) -> dict[str, Path]:
    """Tasks that are being run, with the files that hold them back."""
    tasks = {}
    for way in ways:
        mark = scene.file(f"held-{way}")
        tasks[scene.submit(f"hold_{way}", retries=retries, beside=str(mark))] = mark
    until(lambda: all(mark.exists() for mark in tasks.values()))
    return tasks


def test_what_a_killed_worker_ran_is_run_again_at_the_cost_of_a_retry(scene: Scene) -> None:
    """F07: its processes are gone with it."""
    worker = scene.worker()
    tasks = held_by(scene, "thread", "process")
    children = worker.children
    assert children
    worker.end()
    until(lambda: all(is_gone(pid) for pid in children))
    for mark in tasks.values():
        mark.unlink()
    other = scene.worker()
    until(lambda: all(mark.exists() for mark in tasks.values()))
    for mark in tasks.values():
        mark.unlink()
    for task in tasks:
        assert scene.result(task).startswith("done by ")
        status = scene.status(task)
        assert (status.status, status.retry_count, status.worker_id) == ("completed", 1, other.id)
        [failure] = status.failures
        assert (failure.attempt, failure.worker_id) == (1, worker.id)
        assert failure.error.startswith("WorkerLost: ")


@pytest.mark.parametrize("way", WAYS[1:])
async def test_a_frozen_worker_is_replaced_and_its_late_result_changes_nothing(
    scene: Scene, way: str
) -> None:
    """F08: neither the word it sends nor the word that its heartbeat holds back."""
    frozen = scene.worker(*BUSY)
    [(task, mark)] = held_by(scene, way).items()
    frozen.send(signal.SIGSTOP)
    other = scene.worker()
    first = mark.read_text()
    until(lambda: mark.read_text() not in ("", first))  # a lease later
    assert scene.status(task).worker_id == other.id
    async with a_native_client(scene.broker.native) as client:
        refusals = [
            await client.error("TQ.COMPLETE", task, 1),
            await client.error("TQ.FAIL", task, 1, "late"),
        ]
    assert [refusal.partition(" ")[0] for refusal in refusals] == [LeaseLost.code] * 2
    mark.unlink()  # both end now, the frozen one when it can
    result = scene.result(task)
    assert result != f"done by {first}"
    before = scene.status(task)
    frozen.send(signal.SIGCONT)
    until(lambda: "the claim was lost" in frozen.log)
    assert scene.status(task) == before
    assert (before.status, before.retry_count, len(before.failures)) == ("completed", 1, 1)
    assert before.failures[0].error.startswith("WorkerLost: ")
    # It is as good as any other worker again.
    other.end(signal.SIGTERM)
    task = scene.submit("fine_process", text="alive")
    assert scene.result(task) == "alive"
    assert scene.status(task).worker_id == frozen.id


def test_everything_frozen_for_leases_goes_on_as_if_nothing_had_been(scene: Scene) -> None:
    """F33: a whole machine that is suspended; no attempt is lost, none is done twice."""
    workers = [scene.worker("--concurrency", "4") for _ in range(2)]
    tasks = held_by(scene, *WAYS[1:])
    waiting = scene.submit("fine_thread", text="afterwards")
    scene.client.wait_for_end(waiting)
    family = [scene.broker.pid]
    for worker in workers:
        family += [worker.pid, *worker.children]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    pass_time(2)
    for pid in family:
        os.kill(pid, signal.SIGCONT)
    pids = {task: mark.read_text() for task, mark in tasks.items()}
    for mark in tasks.values():
        mark.unlink()
    for task, runner in pids.items():
        assert scene.result(task) == f"done by {runner}"
        status = scene.status(task)
        assert (status.retry_count, status.failures) == (0, [])


def test_a_deploy_waits_for_a_long_handler_and_keeps_its_lease(scene: Scene) -> None:
    """F09: SIGTERM; what runs is finished, what waits is left to others at no cost."""
    worker = scene.worker("--concurrency", "2")
    tasks = held_by(scene, "thread", "process", retries=0)
    left = [scene.submit("fine_thread", text=f"{number}") for number in range(3)]
    worker.send(signal.SIGTERM)
    other = scene.worker("--concurrency", "1")
    assert [scene.result(task) for task in left] == ["0", "1", "2"]
    pass_time(1.5)
    assert [scene.status(task).status for task in tasks] == ["in_progress"] * 2
    for mark in tasks.values():
        mark.unlink()
    assert worker.process.wait(15) == 0
    for task in tasks:
        status = scene.ended(task)
        assert (status.status, status.worker_id) == ("completed", worker.id)
    assert {scene.status(task).worker_id for task in left} == {other.id}


def test_a_second_sigterm_gives_everything_back_at_once_at_no_cost(scene: Scene) -> None:
    """F09."""
    worker = scene.worker("--concurrency", "3")
    tasks = held_by(scene, "thread", "process", retries=0)
    waiting = scene.submit("wait", folder=str(scene.folder))
    until(scene.file("begun 1").exists)
    children = worker.children
    worker.send(signal.SIGTERM)
    until(lambda: worker.has_heard(signal.SIGTERM))
    assert scene.status(waiting).status == "in_progress"
    worker.send(signal.SIGTERM)
    assert worker.process.wait(15) == 0
    assert all(is_gone(pid) for pid in children)
    assert scene.file("stopped 1").exists()
    for mark in tasks.values():
        mark.unlink()
    everything = [*tasks, waiting]
    assert {scene.status(task).status for task in everything} == {"pending"}
    assert {scene.status(task).retry_count for task in everything} == {0}
    scene.worker()
    until(lambda: all(mark.exists() for mark in tasks.values()))
    for mark in tasks.values():
        mark.unlink()
    scene.file("go").touch()
    assert {scene.ended(task).status for task in everything} == {"completed"}
    assert scene.result(waiting) == 2


def test_what_outlasts_the_time_to_finish_is_given_back_at_no_cost(scene: Scene) -> None:
    """F09: `--shutdown` ends before the supervisor's grace does."""
    worker = scene.worker("--shutdown", "0.2")
    tasks = held_by(scene, "thread", "process", retries=0)
    assert worker.end(signal.SIGTERM) == 0
    assert [scene.status(task).status for task in tasks] == ["pending"] * 2
    assert [scene.status(task).retry_count for task in tasks] == [0, 0]


def test_a_worker_killed_while_it_finishes_costs_what_any_kill_does(scene: Scene) -> None:
    """F09, F07: SIGTERM, and SIGKILL after a supervisor's grace."""
    worker = scene.worker()
    [(task, mark)] = held_by(scene, "thread").items()
    worker.send(signal.SIGTERM)
    scene.worker()
    assert scene.result(scene.submit("fine_loop", text="by the other")) == "by the other"
    worker.end()
    first = mark.read_text()
    until(lambda: mark.read_text() not in ("", first))
    mark.unlink()
    assert scene.result(task) != f"done by {first}"
    assert scene.status(task).retry_count == 1
