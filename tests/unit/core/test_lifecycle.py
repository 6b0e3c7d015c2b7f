"""The rules alone: every status with every command, and what each step changes."""

import pytest
from msgspec.structs import replace

from taskqueue.core import lifecycle
from taskqueue.core.clock import SECOND
from taskqueue.core.commands import (
    Cancel,
    Change,
    Checkpoint,
    Complete,
    Delete,
    Expire,
    Extend,
    Fail,
    Log,
    Progress,
    Release,
    Retry,
    TakeBack,
    TaskCommand,
)
from taskqueue.core.errors import IdempotencyConflict, InvalidStatus, LeaseLost
from taskqueue.core.task import Event, Failure, LogLevel, Options, Status, Task
from tests.support.tasks import START, a_submit

NEW = replace(a_submit().task, seq=1)
RUNNING = lifecycle.claim(NEW, "w", wall=START, steady=START)
OLD_TOKEN, LIVE_TOKEN = 0, 1


def settled(task: Task, command: TaskCommand, wall: int = START) -> Task:
    return lifecycle.settle(task, command, wall=wall, steady=START)[0]


TASKS = {
    Status.PENDING: NEW,
    Status.IN_PROGRESS: RUNNING,
    Status.COMPLETED: settled(RUNNING, Complete(NEW.id, 1, b"")),
    Status.FAILED: settled(RUNNING, Fail(NEW.id, 1, "E", "m")),
    Status.DEAD_LETTER: settled(RUNNING, Fail(NEW.id, 1, "E", "m", retryable=False)),
    Status.CANCELLED: settled(NEW, Cancel(NEW.id)),
}


def words(token: int) -> dict[Event, TaskCommand]:
    return {
        Event.COMPLETE: Complete(NEW.id, token, b""),
        Event.FAIL: Fail(NEW.id, token, "E", "m"),
        Event.RELEASE: Release(NEW.id, token),
        Event.LOSE: TakeBack(NEW.id, token, Event.LOSE, "gone"),
        Event.TIME_OUT: TakeBack(NEW.id, token, Event.TIME_OUT, "late"),
        Event.CANCEL: Cancel(NEW.id),
        Event.CHANGE: Change(NEW.id, priority=7),
        Event.RETRY: Retry(NEW.id),
    }


BY_OPERATOR = (Event.CANCEL, Event.CHANGE, Event.RETRY)


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("event", words(LIVE_TOKEN))
def test_each_command_leads_where_the_table_says_and_nowhere_else(
    status: Status, event: Event
) -> None:
    task, command = TASKS[status], words(LIVE_TOKEN)[event]
    if (status, event) in lifecycle.MOVES:
        after = settled(task, command)
        assert (after.status, after.last_event) == (lifecycle.MOVES[status, event][0], event)
        assert (after.deadline, after.token) == (None, task.token)
    elif event in (Event.LOSE, Event.TIME_OUT) or task.last_event is event is not Event.CANCEL:
        assert settled(task, command) is task
    else:
        with pytest.raises(InvalidStatus if event in BY_OPERATOR else LeaseLost):
            settled(task, command)


@pytest.mark.parametrize("status", Status)
def test_a_cancel_that_does_not_mind_a_running_attempt_ends_it(status: Status) -> None:
    task, command = TASKS[status], Cancel(NEW.id, running=True)
    if status is Status.IN_PROGRESS:
        after = settled(task, command)
        assert (after.status, after.last_event) == (Status.CANCELLED, Event.STOP)
        assert (after.deadline, after.token) == (None, task.token)
        with pytest.raises(LeaseLost):
            settled(after, Complete(NEW.id, task.token, b""))
    elif status in (Status.PENDING, Status.FAILED):
        assert settled(task, command) == settled(task, Cancel(NEW.id))
    else:
        with pytest.raises(InvalidStatus):
            settled(task, command)


def test_a_task_given_back_for_later_costs_no_retry() -> None:
    after = settled(RUNNING, Release(NEW.id, LIVE_TOKEN, delay=5))
    assert (after.status, after.retry_count) == (Status.PENDING, RUNNING.retry_count)
    assert after.run_at == after.updated_at + 5


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("event", [Event.COMPLETE, Event.FAIL, Event.RELEASE])
def test_a_word_under_an_old_token_never_takes_hold(status: Status, event: Event) -> None:
    task = replace(TASKS[status], token=TASKS[status].token + 1)
    with pytest.raises(LeaseLost):
        settled(task, words(LIVE_TOKEN)[event])


def test_taking_back_under_an_old_token_changes_nothing() -> None:
    assert settled(RUNNING, words(OLD_TOKEN)[Event.LOSE]) is RUNNING


@pytest.mark.parametrize("event", [Event.FAIL, Event.LOSE, Event.TIME_OUT])
def test_an_attempt_without_retries_left_is_the_last_one(event: Event) -> None:
    task = replace(RUNNING, retry_count=3)
    word = words(LIVE_TOKEN)[event]
    after, failure = lifecycle.settle(task, word, wall=START + 1, steady=START)
    assert (after.status, after.retry_count, after.last_event) == (Status.DEAD_LETTER, 3, event)
    assert failure is not None
    assert (failure.attempt, failure.at, failure.worker_id) == (1, START + 1, "w")


@pytest.mark.parametrize(
    ("command", "delay"),
    [
        (Fail(NEW.id, 1, "E", "m"), 5 * SECOND),
        (Fail(NEW.id, 1, "E", "m", spread=-1), 4_500_000),
        (Fail(NEW.id, 1, "E", "m", delay=0), 0),
        (TakeBack(NEW.id, 1, Event.TIME_OUT, "late", spread=1), 5_500_000),
        (TakeBack(NEW.id, 1, Event.LOSE, "gone", spread=1), 0),
    ],
)
def test_how_an_attempt_failed_decides_when_the_next_one_is(
    command: TaskCommand, delay: int
) -> None:
    after = settled(RUNNING, command)
    assert (after.run_at, after.retry_count) == (START + delay, 1)


def test_progress_is_kept_while_the_attempt_lasts_and_refused_afterwards() -> None:
    after = settled(RUNNING, Progress(NEW.id, 1, 0.5, "half"), START + 1)
    assert (after.progress, after.progress_note, after.updated_at) == (0.5, "half", START + 1)
    assert lifecycle.claim(
        settled(after, Release(NEW.id, 1)), "w", wall=START, steady=START
    ).progress_note == ("")
    with pytest.raises(LeaseLost):
        settled(RUNNING, Progress(NEW.id, 0, 0.5, "half"))


@pytest.mark.parametrize("status", Status)
def test_a_task_expires_only_while_it_waits_and_once_its_time_has_come(status: Status) -> None:
    task = replace(TASKS[status], expires_at=START + 10)
    assert settled(task, Expire(task.id), START + 9) is task
    after = settled(task, Expire(task.id), START + 10)
    if status in (Status.PENDING, Status.FAILED):
        assert (after.status, after.last_event) == (Status.CANCELLED, Event.EXPIRE)
        assert after.expires_at is None
    else:
        assert after is task


@pytest.mark.parametrize("status", Status)
def test_only_a_task_that_has_ended_can_be_deleted(status: Status) -> None:
    task = TASKS[status]
    if task.is_terminal:
        assert settled(task, Delete(task.id)) is task
    else:
        with pytest.raises(InvalidStatus, match="only a task that has ended"):
            settled(task, Delete(task.id))


def test_a_retention_of_its_own_begins_with_the_end_and_is_over_with_a_retry() -> None:
    task = replace(RUNNING, options=Options(retention=7), expires_at=START + 1)
    done = settled(task, Complete(NEW.id, 1, b""), START + 100)
    assert done.expires_at == START + 107
    cancelled = settled(replace(NEW, options=Options(retention=7)), Cancel(NEW.id))
    assert cancelled.expires_at == START + 7
    assert settled(cancelled, Retry(NEW.id)).expires_at is None


def test_what_an_attempt_notes_leaves_its_status_and_needs_its_token() -> None:
    for note in (
        Log(NEW.id, 1, LogLevel.INFO, "line"),
        Checkpoint(NEW.id, 1, b"half"),
        Extend(NEW.id, 1, 99),
    ):
        after = settled(RUNNING, note, START + 1)
        assert (after.status, after.last_event) == (Status.IN_PROGRESS, Event.CLAIM)
        assert after.updated_at == START + 1
        with pytest.raises(LeaseLost):
            settled(RUNNING, replace(note, token=0))
    assert settled(RUNNING, Extend(NEW.id, 1, 99)).deadline == START + 99


def test_a_log_has_a_bounded_number_of_lines() -> None:
    full = replace(RUNNING, logged=lifecycle.MOST_LOGGED)
    assert settled(full, Log(NEW.id, 1, LogLevel.INFO, "line")).logged == lifecycle.MOST_LOGGED


def test_a_task_released_under_a_clock_that_was_set_back_is_ready_at_once() -> None:
    assert settled(RUNNING, Release(NEW.id, 1), START + SECOND).run_at == START
    assert settled(RUNNING, Release(NEW.id, 1), START - SECOND).run_at == START - SECOND


@pytest.mark.parametrize("status", Status)
def test_only_a_waiting_task_can_be_set_aside_as_damaged(status: Status) -> None:
    if (status, Event.DAMAGE) not in lifecycle.MOVES:
        with pytest.raises(InvalidStatus):
            lifecycle.bury_damaged(TASKS[status], wall=START)
        return
    after, failure = lifecycle.bury_damaged(TASKS[status], wall=START)
    assert after.is_terminal
    assert str(failure).startswith("DataDamaged: the stored payload")


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("task_type", "task_type"),
        ("payload_crc", "payload"),
        ("priority", "priority"),
        ("timeout", "timeout"),
        ("max_retries", "max_retries"),
    ],
)
def test_a_conflict_names_what_differs(field: str, named: str) -> None:
    submit = a_submit()
    lifecycle.require_same_submission(submit.task, submit)
    other = replace(submit, task=replace(submit.task, **{field: "other"}))
    with pytest.raises(IdempotencyConflict, match=f"with another {named};") as refused:
        lifecycle.require_same_submission(submit.task, other)
    assert refused.value.field == "task_id"


def test_a_failure_reads_well_with_and_without_a_kind() -> None:
    assert str(Failure(1, START, "w", "ValueError", "no")) == "ValueError: no"
    assert str(Failure(1, START, "w", "", "no")) == "no"
