"""What may happen to a task, on every engine: each move once, no move that is not in the table."""

from collections.abc import Awaitable, Callable

import pytest
from msgspec.structs import replace

from taskqueue.core.clock import SECOND
from taskqueue.core.commands import (
    Cancel,
    Complete,
    Fail,
    Progress,
    Promote,
    Release,
    Retry,
    TakeBack,
    TaskCommand,
)
from taskqueue.core.errors import (
    IdempotencyConflict,
    InvalidStatus,
    LeaseLost,
    TaskNotFound,
)
from taskqueue.core.ids import new_task_id
from taskqueue.core.task import Event, Status, Task
from tests.support.storage import Queue

Maker = Callable[[Queue], Awaitable[Task]]


async def a_pending(queue: Queue) -> Task:
    return await queue.submit()


async def a_running(queue: Queue) -> Task:
    return await queue.running()


async def a_completed(queue: Queue) -> Task:
    task = await queue.running()
    done: Task = await queue.do(Complete(task.id, task.token, b"result"))
    return done


async def a_failed(queue: Queue) -> Task:
    task = await queue.running()
    failed: Task = await queue.do(Fail(task.id, task.token, "E", "no"))
    return failed


async def a_dead(queue: Queue) -> Task:
    task = await queue.running()
    dead: Task = await queue.do(Fail(task.id, task.token, "E", "no", retryable=False))
    return dead


async def a_cancelled(queue: Queue) -> Task:
    task = await queue.submit()
    cancelled: Task = await queue.do(Cancel(task.id))
    return cancelled


MAKERS: dict[Status, Maker] = {
    Status.PENDING: a_pending,
    Status.IN_PROGRESS: a_running,
    Status.COMPLETED: a_completed,
    Status.FAILED: a_failed,
    Status.DEAD_LETTER: a_dead,
    Status.CANCELLED: a_cancelled,
}

COMMANDS: dict[str, Callable[[Task], TaskCommand]] = {
    "complete": lambda task: Complete(task.id, task.token, b"r"),
    "fail": lambda task: Fail(task.id, task.token, "E", "m"),
    "release": lambda task: Release(task.id, task.token),
    "progress": lambda task: Progress(task.id, task.token, 0.5, "half"),
    "cancel": lambda task: Cancel(task.id),
    "retry": lambda task: Retry(task.id),
}

LEGAL = {
    (Status.IN_PROGRESS, "complete"): Status.COMPLETED,
    (Status.IN_PROGRESS, "fail"): Status.FAILED,
    (Status.IN_PROGRESS, "release"): Status.PENDING,
    (Status.IN_PROGRESS, "progress"): Status.IN_PROGRESS,
    (Status.PENDING, "cancel"): Status.CANCELLED,
    (Status.FAILED, "cancel"): Status.CANCELLED,
    (Status.DEAD_LETTER, "retry"): Status.PENDING,
    (Status.CANCELLED, "retry"): Status.PENDING,
    # A repeat of the word that ended the attempt is answered as the first one was.
    (Status.COMPLETED, "complete"): Status.COMPLETED,
    (Status.FAILED, "fail"): Status.FAILED,
    (Status.DEAD_LETTER, "fail"): Status.DEAD_LETTER,
}


@pytest.mark.parametrize("status", MAKERS)
@pytest.mark.parametrize("word", COMMANDS)
async def test_a_word_takes_hold_where_the_table_allows_it_and_changes_nothing_elsewhere(
    queue: Queue, status: Status, word: str
) -> None:
    task = await MAKERS[status](queue)
    queue.clock.advance(1)
    expected = LEGAL.get((status, word))
    before = await queue.detail(task.id)
    if expected is not None:
        outcome = await queue.do(COMMANDS[word](task))
        assert outcome.status is expected
        assert (await queue.detail(task.id)).task == outcome
        return
    refusal = InvalidStatus if word in ("cancel", "retry") else LeaseLost
    with pytest.raises(refusal):
        await queue.do(COMMANDS[word](task))
    assert await queue.detail(task.id) == before


@pytest.mark.parametrize("word", ["complete", "fail", "release", "progress"])
@pytest.mark.parametrize("token", [0, 1, 3, 2**63 - 1])
async def test_a_word_with_another_token_is_refused_and_changes_nothing(
    queue: Queue, word: str, token: int
) -> None:
    task = await queue.running()
    await queue.do(Release(task.id, task.token))
    [second] = await queue.claim()
    assert second.task.token == 2
    before = await queue.detail(task.id)
    with pytest.raises(LeaseLost):
        await queue.do(COMMANDS[word](replace(task, token=token)))
    assert await queue.detail(task.id) == before


@pytest.mark.parametrize("word", COMMANDS)
async def test_a_word_about_no_task_is_told_so(queue: Queue, word: str) -> None:
    task = await queue.submit()
    with pytest.raises(TaskNotFound):
        await queue.do(COMMANDS[word](replace(task, id=new_task_id())))


@pytest.mark.parametrize("word", ["complete", "fail", "release"])
async def test_a_repeated_end_is_answered_as_the_first_one_and_changes_nothing(
    queue: Queue, word: str
) -> None:
    task = await queue.running()
    first = await queue.do(COMMANDS[word](task))
    queue.clock.advance(1)
    detail = await queue.detail(task.id)
    assert await queue.do(COMMANDS[word](task)) == first
    assert await queue.detail(task.id) == detail


async def test_the_first_result_stays(queue: Queue) -> None:
    task = await queue.running()
    await queue.do(Complete(task.id, task.token, b"first"))
    await queue.do(Complete(task.id, task.token, b"second"))
    assert (await queue.detail(task.id)).result == b"first"


async def test_a_claim_raises_the_token_and_sets_the_deadline(queue: Queue) -> None:
    task = await queue.running(timeout=7 * SECOND)
    assert (task.token, task.worker_id) == (1, "w")
    assert task.deadline == queue.clock.steady() + 7 * SECOND
    for token in (2, 3):
        await queue.do(Release(task.id, task.token))
        [claimed] = await queue.claim()
        task = claimed.task
        assert task.token == token


async def test_three_retries_mean_four_executions(queue: Queue) -> None:
    task = await queue.submit(max_retries=3)
    for execution in range(1, 5):
        [claimed] = await queue.claim()
        assert claimed.task.retry_count == execution - 1
        after = await queue.do(Fail(task.id, claimed.task.token, "E", f"{execution}", delay=0))
    assert after.status is Status.DEAD_LETTER
    assert await queue.claim() == []
    failures = (await queue.detail(task.id)).failures
    assert [(one.attempt, one.message) for one in failures] == [
        (1, "1"),
        (2, "2"),
        (3, "3"),
        (4, "4"),
    ]


@pytest.mark.parametrize(("spread", "factor"), [(-1, 0.9), (0, 1.0), (1, 1.1)])
async def test_the_delay_doubles_from_five_seconds_to_an_hour_within_ten_percent(
    queue: Queue, spread: float, factor: float
) -> None:
    task = await queue.submit(max_retries=13)
    delays = []
    for _ in range(13):
        [claimed] = await queue.claim()
        failed = await queue.do(Fail(task.id, claimed.task.token, "E", "m", spread=spread))
        delays.append((failed.run_at - queue.clock.wall()) / SECOND)
        queue.clock.advance(delays[-1] + 1)
        await queue.do(Promote(100))
    assert delays == pytest.approx(
        [factor * min(3600, 5 * 2**retry) for retry in range(13)], abs=0.001
    )


async def test_a_failing_worker_may_name_its_own_delay(queue: Queue) -> None:
    task = await queue.running()
    failed = await queue.do(Fail(task.id, task.token, "E", "m", delay=42 * SECOND))
    assert failed.run_at == queue.clock.wall() + 42 * SECOND


async def test_a_release_costs_no_retry_and_keeps_the_place(queue: Queue) -> None:
    first = await queue.running(max_retries=0)
    queue.clock.advance(1)
    second = await queue.submit()
    released = await queue.do(Release(first.id, first.token))
    assert (released.retry_count, released.worker_id) == (0, None)
    assert [one.task.id for one in await queue.claim(limit=2)] == [first.id, second.id]


async def test_a_task_released_after_the_clock_was_set_back_need_not_wait_for_it(
    queue: Queue,
) -> None:
    task = await queue.running()
    queue.clock.advance(-3600)
    applied = await queue.apply(Release(task.id, task.token))
    assert applied.next_due is None
    assert [one.task.id for one in await queue.claim()] == [task.id]


async def test_a_lost_worker_costs_a_retry_without_a_delay(queue: Queue) -> None:
    task = await queue.running()
    lost = await queue.do(TakeBack(task.id, task.token, Event.LOSE, "gone"))
    assert (lost.status, lost.retry_count) == (Status.FAILED, 1)
    assert (await queue.detail(task.id)).failures[0].kind == "WorkerLost"
    [again] = await queue.claim(worker_id="other")
    assert (again.task.id, again.task.token) == (task.id, 2)
    with pytest.raises(LeaseLost):
        await queue.do(Complete(task.id, 1, b"too late"))


async def test_a_passed_deadline_fails_the_attempt_with_the_usual_delay(queue: Queue) -> None:
    task = await queue.running()
    late = await queue.do(TakeBack(task.id, task.token, Event.TIME_OUT, "late"))
    assert (late.status, late.run_at) == (Status.FAILED, queue.clock.wall() + 5 * SECOND)
    assert (await queue.detail(task.id)).failures[0].kind == "TimedOut"


async def test_a_worker_that_is_lost_too_often_kills_the_task_for_good(queue: Queue) -> None:
    task = await queue.submit(max_retries=2)
    for _ in range(3):
        [claimed] = await queue.claim()
        after = await queue.do(TakeBack(task.id, claimed.task.token, Event.LOSE, "gone"))
    assert after.status is Status.DEAD_LETTER


async def test_a_task_that_costs_many_workers_is_set_aside_whatever_its_retries(
    queue: Queue,
) -> None:
    task = await queue.submit(max_retries=1000)
    for losses in range(1, 4):
        [claimed] = await queue.claim()
        lose = TakeBack(task.id, claimed.task.token, Event.LOSE, "gone", most_losses=3)
        after = await queue.do(lose)
        assert (after.status is Status.DEAD_LETTER, after.losses) == (losses == 3, losses)
    last = (await queue.detail(task.id)).failures[-1]
    assert last.message == "gone; it has cost 3 workers or processes, and is tried no more"
    assert (await queue.do(Retry(task.id))).losses == 0


async def test_taking_back_what_has_ended_meanwhile_changes_nothing(queue: Queue) -> None:
    task = await queue.running()
    done = await queue.do(Complete(task.id, task.token, b""))
    assert await queue.do(TakeBack(task.id, task.token, Event.LOSE, "gone")) == done


async def test_an_operators_retry_starts_the_count_again_and_keeps_the_history(
    queue: Queue,
) -> None:
    task = await queue.running(max_retries=0)
    await queue.do(Fail(task.id, task.token, "E", "first round"))
    again = await queue.do(Retry(task.id))
    assert (again.status, again.retry_count) == (Status.PENDING, 0)
    [claimed] = await queue.claim()
    assert claimed.task.token == 2
    await queue.do(Fail(task.id, 2, "E", "second round"))
    messages = [one.message for one in (await queue.detail(task.id)).failures]
    assert messages == ["first round", "second round"]


async def test_a_repeated_submit_makes_one_task_and_gets_the_first_answer(queue: Queue) -> None:
    submit = queue.a_submit(b"same")
    first = await queue.do(submit)
    queue.clock.advance(5)
    repeat = replace(submit, task=replace(submit.task, created_at=queue.clock.wall()))
    assert await queue.do(repeat) == first
    assert await queue.storage.count(None, None) == 1


async def test_a_repeated_submit_after_the_end_runs_nothing_again(queue: Queue) -> None:
    submit = queue.a_submit()
    await queue.do(submit)
    [claimed] = await queue.claim()
    await queue.do(Complete(claimed.task.id, 1, b""))
    await queue.do(submit)
    assert await queue.claim() == []


@pytest.mark.parametrize(
    "change",
    [
        {"task_type": "other"},
        {"priority": 1},
        {"payload_crc": 1},
        {"timeout": 1},
        {"max_retries": 1},
    ],
)
async def test_an_id_used_for_another_task_is_a_conflict(
    queue: Queue, change: dict[str, object]
) -> None:
    submit = queue.a_submit()
    first = await queue.do(submit)
    with pytest.raises(IdempotencyConflict):
        await queue.do(replace(submit, task=replace(submit.task, **change)))
    assert (await queue.detail(first.id)).task == first


async def test_progress_is_kept_and_forgotten_with_the_next_attempt(queue: Queue) -> None:
    task = await queue.running()
    await queue.do(Progress(task.id, 1, 0.25, "a quarter"))
    kept = (await queue.detail(task.id)).task
    assert (kept.progress, kept.progress_note, kept.status) == (
        0.25,
        "a quarter",
        Status.IN_PROGRESS,
    )
    await queue.do(Release(task.id, 1))
    [again] = await queue.claim()
    assert (again.task.progress, again.task.progress_note) == (None, "")


async def test_time_that_goes_backwards_never_shows_in_updated_at(queue: Queue) -> None:
    task = await queue.running()
    queue.clock.advance(-3600)
    done = await queue.do(Complete(task.id, 1, b""))
    assert done.updated_at == task.updated_at
