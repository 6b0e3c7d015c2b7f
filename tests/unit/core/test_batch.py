"""The books of one batch: what is to be written, told and counted, without any engine."""

import pytest

from taskqueue.core.batch import Batch, CounterKey, Minute, Tally, WorkingSet
from taskqueue.core.clock import SECOND
from taskqueue.core.commands import Cancel, Complete, Fail, Progress, Retry
from taskqueue.core.errors import TaskNotFound
from taskqueue.core.task import Status, Task, Tier
from tests.support.tasks import START, a_submit


def a_set(*loaded: Task, next_seq: int = 1, now: int = START) -> WorkingSet:
    return WorkingSet(Batch([], now, now), loaded, next_seq)


def a_running_task() -> Task:
    work = a_set()
    return work.claim(work.submit(a_submit()), "w")


def test_a_new_task_is_inserted_once_in_its_latest_form() -> None:
    work = a_set(next_seq=7)
    submit = a_submit(b"bytes")
    task = work.submit(submit)
    assert (task.seq, work.next_seq) == (7, 8)
    assert work.submit(submit) is task
    cancelled = work.settle(Cancel(task.id))
    changes = work.take_changes()
    assert (changes.inserted, changes.updated) == ([cancelled], [])
    assert changes.payloads == [(7, b"bytes")]
    assert work.moved == [task, cancelled]


def test_changes_are_taken_once_and_later_ones_are_updates() -> None:
    work = a_set()
    task = work.submit(a_submit())
    work.take_changes()
    claimed = work.claim(task, "w")
    changes = work.take_changes()
    assert (changes.inserted, changes.updated, changes.payloads) == ([], [claimed], [])
    assert work.take_changes() == type(changes)()


def test_a_result_and_a_failure_are_written_with_the_task() -> None:
    done, failed = a_running_task(), a_running_task()
    work = a_set(done, failed)
    work.settle(Complete(done.id, 1, b"result"))
    work.settle(Fail(failed.id, 1, "E", "m"))
    changes = work.take_changes()
    assert changes.results == [(done.seq, b"result")]
    assert [(seq, str(failure)) for seq, failure in changes.failures] == [(failed.seq, "E: m")]


def test_progress_is_written_and_told_to_nobody() -> None:
    task = a_running_task()
    work = a_set(task)
    after = work.settle(Progress(task.id, 1, 0.5, "half"))
    assert work.has_changed
    assert (work.moved, work.take_changes().updated) == ([], [after])


def test_a_repeat_and_a_refusal_change_nothing() -> None:
    running = a_running_task()
    done = a_set(running).settle(Complete(running.id, 1, b""))
    work = a_set(done)
    assert work.settle(Complete(done.id, 1, b"other")) is done
    with pytest.raises(TaskNotFound):
        work.settle(Cancel("nobody"))
    assert not work.has_changed
    assert work.take_changes() == type(work.take_changes())()


def test_a_damaged_task_is_set_aside_with_the_reason() -> None:
    work = a_set()
    task = work.submit(a_submit())
    work.take_changes()
    work.bury_damaged(task)
    changes = work.take_changes()
    assert [one.status for one in changes.updated] == [Status.DEAD_LETTER]
    assert [failure.kind for _, failure in changes.failures] == ["DataDamaged"]


def test_what_is_ready_and_what_waits_is_known_after_each_command() -> None:
    work = a_set()
    assert work.waiting_run_at() is None
    ready, taken = work.submit(a_submit()), work.submit(a_submit())
    later = work.submit(a_submit(run_at=START + 9 * SECOND))
    work.submit(a_submit(run_at=START + 10 * SECOND))
    work.claim(taken, "w")
    assert work.newly_ready() == {"work": 1}
    assert work.waiting_run_at() == later.run_at
    work.settle(Cancel(ready.id))
    work.settle(Cancel(later.id))
    assert work.newly_ready() == {}
    assert work.waiting_run_at() == START + 10 * SECOND
    work.settle(Retry(ready.id))
    assert work.newly_ready() == {"work": 1}


def test_the_counters_follow_each_step() -> None:
    work = a_set()
    task = work.submit(a_submit(priority=200))
    work.settle(Cancel(task.id))
    work.tally.remove("work", Status.CANCELLED, Tier.HIGH)
    assert work.tally.changes() == {
        CounterKey("work", Status.PENDING, Tier.HIGH): (0, 1),
        CounterKey("work", Status.CANCELLED, Tier.HIGH): (0, 1),
    }


def test_a_minute_counts_ended_attempts_and_never_a_time_below_zero() -> None:
    task = a_running_task()
    done = a_set(task).settle(Complete(task.id, 1, b""))
    failed = a_set(task).settle(Fail(task.id, 1, "E", "m"))
    tally = Tally()
    tally.move(task, done, START + 2 * SECOND)
    tally.move(task, done, START - 5 * SECOND)  # a stall was forgiven meanwhile
    tally.move(task, failed, START)
    assert tally.minute == Minute(completed=2, failed=1, busy=2 * SECOND)
