"""What handlers return, raise, print and fork: a failed attempt, and a worker that lives."""

from collections.abc import Iterator

import pytest

from taskqueue import Task
from tests.faults.scene import MEBIBYTE, WAYS, Scene, WorkerProcess, a_scene, until

SLOTS = 3

UNKEPT = {
    "nan": "ValueError: JSON cannot say nan",
    "infinity": "ValueError: JSON cannot say -inf",
    "5,000 digits": "ValueError: Exceeds the limit (4300 digits)",
    "cycle": "RecursionError: ",
    "cycle of maps": "RecursionError: ",
    "lone surrogate": "UnicodeEncodeError: ",
    "lone surrogate as a key": "UnicodeEncodeError: ",
    "object": "TypeError: ",
    "file": "TypeError: ",
    "generator": "TypeError: ",
    "one byte too many": "PayloadTooLarge: the result must be at most 10485760 bytes, got 10485761",
}

RAISED = {
    "unpicklable": "Unpicklable: one",
    "mute": "Mute: its message could not be made",
    "wordless": "Wordless: its message could not be made",
    "own": "Own: own",
    "exit": "SystemExit: 0",
    "frozen": "Frozen: code 7",
    "exit with an object": "SystemExit: <object object at 0x",
    "interrupt": "KeyboardInterrupt",
    "cancelled": "CancelledError: own",
    "generator's end": "GeneratorExit",
    "a cycle of causes": "ValueError: round",
    "surrogates": "ValueError: ? \x00",
    "5 MB of words": "ValueError: xxxx",
    "group": "BaseExceptionGroup: both (2 sub-exceptions)",
}

Stage = tuple[Scene, WorkerProcess]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One worker for all tests of this module: none of them may harm it."""
    with a_scene(tmp_path_factory.mktemp("faults"), lease=30) as scene:
        yield scene, scene.worker("--concurrency", str(SLOTS))


@pytest.fixture
def stage(house: Stage) -> Iterator[Stage]:
    """The worker must have all its slots again after each test."""
    scene, worker = house
    yield scene, worker
    assert worker.is_alive
    marks = [scene.file(f"slot{number}") for number in range(SLOTS)]
    held = [scene.submit("hold_thread", beside=str(mark)) for mark in marks]
    try:
        until(lambda: all(mark.exists() for mark in marks))
    finally:
        for mark in marks:
            mark.unlink(missing_ok=True)
    assert {scene.result(task) for task in held} == {f"done by {worker.pid}"}


@pytest.mark.parametrize("way", WAYS)
def test_a_result_that_cannot_be_kept_is_a_failed_attempt(stage: Stage, way: str) -> None:
    """B27."""
    scene, _ = stage
    tasks = {what: scene.submit(f"give_{way}", what=what) for what in UNKEPT}
    fits = scene.submit(f"give_{way}", what="all that fits")
    numbers = [scene.submit(f"give_{way}", what=f"2 ** {power}") for power in (63, 64, 200)]
    ended = {what: scene.ended(task) for what, task in tasks.items()}
    assert {what: task.status for what, task in ended.items()} == dict.fromkeys(
        UNKEPT, "dead_letter"
    )
    errors = {what: str(task.error) for what, task in ended.items()}
    assert {what for what in UNKEPT if not errors[what].startswith(UNKEPT[what])} == set(), errors
    assert len(scene.result(fits)) == 10 * MEBIBYTE - 2
    assert [scene.result(task) for task in numbers] == [2**63, 2**64, 2**200]


@pytest.mark.parametrize("way", ["thread", "process"])
def test_a_result_of_bytes_is_kept_up_to_10_mib(stage: Stage, way: str) -> None:
    """B27."""
    scene, _ = stage
    sizes = [10 * MEBIBYTE, 10 * MEBIBYTE + 1, 40 * MEBIBYTE]
    tasks = [
        scene.client.submit_task(Task(f"raw_{way}", b"%d" % size, max_retries=0)) for size in sizes
    ]
    assert len(scene.client.wait_for_result(tasks[0])) == sizes[0]
    for task, size in zip(tasks[1:], sizes[1:], strict=True):
        ended = scene.ended(task)
        assert ended.status == "dead_letter"
        assert str(ended.error).endswith(f"at most 10485760 bytes, got {size}")


@pytest.mark.parametrize("way", WAYS)
def test_whatever_is_raised_is_a_failed_attempt_with_a_reason(stage: Stage, way: str) -> None:
    """B27."""
    scene, _ = stage
    tasks = {how: scene.submit(f"fail_{way}", how=how) for how in RAISED}
    ended = {how: scene.ended(task) for how, task in tasks.items()}
    errors = {how: str(task.error) for how, task in ended.items()}
    assert {how for how in RAISED if not errors[how].startswith(RAISED[how])} == set(), errors
    assert {task.status for task in ended.values()} == {"dead_letter"}
    assert all("in fail" in task.failures[0].traceback for task in ended.values())


@pytest.mark.parametrize("way", WAYS)
def test_100_mb_of_prints_and_of_logs_pass_in_bounded_memory(stage: Stage, way: str) -> None:
    """B27."""
    scene, worker = stage
    assert scene.result(scene.submit(f"say_much_{way}", megabytes=1)) == 1
    assert scene.result(scene.submit(f"log_much_{way}", megabytes=1)) == 1
    before = worker.resident
    for task_type in (f"say_much_{way}", f"log_much_{way}"):
        printed = worker.out_file.stat().st_size
        assert scene.result(scene.submit(task_type, megabytes=100)) == 100
        if task_type.startswith("say"):
            until(lambda: worker.out_file.stat().st_size >= printed + 99 * MEBIBYTE)  # noqa: B023
        assert worker.resident < before + 30 * MEBIBYTE
    # Whoever keeps the tests' folders need not keep that.
    for file in (worker.out_file, worker.log_file):
        with file.open("r+") as written:
            written.truncate(0)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task_type", ["fork_and_return", "fork_and_raise"])
def test_a_fork_that_comes_back_is_ended_and_says_nothing(
    stage: Stage, task_type: str, way: str
) -> None:
    """F12: two processes that spoke for one attempt would spoil the worker's connections."""
    scene, _ = stage
    tasks = [scene.submit(f"{task_type}_{way}", text=f"text {number}") for number in range(4)]
    for number, task in enumerate(tasks):
        assert scene.result(task) == [f"text {number}", 70]
        assert scene.status(task).retry_count == 0


def test_a_fork_may_submit_and_uses_no_connection_of_its_parent(stage: Stage) -> None:
    """F12."""
    scene, _ = stage
    ids = scene.result(scene.submit("fork_and_submit"))
    assert len(set(ids)) == 3
    assert [scene.ended(task).status for task in ids] == ["completed"] * 3
