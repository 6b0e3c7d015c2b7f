"""What holds in every history, whatever happens: checked on each change that an engine tells of.

The model says what an engine has to answer. This says what no engine may ever do, and so finds a
mistake that both of them make.
"""

from collections import Counter
from typing import Final

from taskqueue.core.batch import Applied
from taskqueue.core.retry import RetryPolicy
from taskqueue.core.task import Event, Status, Task

WAITING: Final = {Status.PENDING, Status.FAILED}
RUNNING: Final = {Status.IN_PROGRESS}
ATTEMPT_FAILED: Final = {Status.FAILED, Status.DEAD_LETTER}

STEPS: Final[dict[Event, tuple[set[Status], set[Status]]]] = {
    Event.CLAIM: (WAITING, RUNNING),
    Event.COMPLETE: (RUNNING, {Status.COMPLETED}),
    Event.FAIL: (RUNNING, ATTEMPT_FAILED),
    Event.LOSE: (RUNNING, ATTEMPT_FAILED),
    Event.TIME_OUT: (RUNNING, ATTEMPT_FAILED),
    Event.RELEASE: (RUNNING, {Status.PENDING}),
    Event.CANCEL: (WAITING, {Status.CANCELLED}),
    Event.STOP: (RUNNING, {Status.CANCELLED}),
    Event.EXPIRE: (WAITING, {Status.CANCELLED}),
    Event.CHANGE: (WAITING, WAITING),
    Event.RETRY: ({Status.DEAD_LETTER, Status.CANCELLED}, {Status.PENDING}),
}
"""From which statuses each event leads to which. A submit leads from nothing to pending."""

FOR_LIFE: Final = (
    "seq",
    "task_type",
    "timeout",
    "max_retries",
    "payload_crc",
    "created_at",
)


class Witness:
    """Sees every change of every task, and objects at once to one that must not be."""

    def __init__(self) -> None:
        self._known: dict[str, Task] = {}
        self._executions: Counter[str] = Counter()
        self._latest_wall = 0
        self._latest_seq = 0

    def token_of(self, task_id: str) -> int:
        """The token of the latest claim that was told of, 0 before the first."""
        known = self._known.get(task_id)
        return 0 if known is None else known.token

    def see(self, applied: Applied, wall: int) -> None:
        """Check what a transaction at the time `wall` has changed."""
        self._latest_wall = max(self._latest_wall, wall)
        for task in applied.moved:
            if task.last_event is Event.SUBMIT:
                self._see_new(task)
            else:
                self._see_step(self._known[task.id], task, wall)
            self._known[task.id] = task

    def _see_new(self, task: Task) -> None:
        known = self._known.get(task.id)
        assert known is None or known.is_terminal, (
            "an id got a second task, and the first one cannot have been deleted"
        )
        assert (task.status, task.token, task.retry_count) == (Status.PENDING, 0, 0)
        assert task.seq > self._latest_seq, "a number was given twice"
        self._latest_seq = task.seq
        self._executions[task.id] = 0

    def _see_step(self, was: Task, now: Task, wall: int) -> None:
        befores, afters = STEPS[now.last_event]
        assert was.status in befores, f"{now.last_event} of a task that was {was.status}"
        assert now.status in afters, f"{now.last_event} led to {now.status}"
        assert [getattr(now, one) for one in FOR_LIFE] == [getattr(was, one) for one in FOR_LIFE]
        assert now.updated_at >= was.updated_at, "time went backwards"
        assert now.token == was.token + (now.last_event is Event.CLAIM)
        if now.last_event is Event.CHANGE:
            assert (now.status, now.retry_count) == (was.status, was.retry_count)
            return
        self._count_executions(was, now)
        if now.last_event is Event.CLAIM:
            assert was.run_at <= self._latest_wall, "claimed before its time"
        if now.status is Status.FAILED:
            self._check_delay(was, now, wall)

    def _count_executions(self, was: Task, now: Task) -> None:
        spent = was.retry_count
        if now.last_event is Event.RETRY:
            self._executions[now.id] = spent = 0
        elif now.last_event is Event.CLAIM:
            self._executions[now.id] += 1
        elif now.last_event is Event.RELEASE:
            self._executions[now.id] -= 1
        assert now.retry_count == spent + (now.status is Status.FAILED)
        assert self._executions[now.id] <= now.max_retries + 1, "executed too often"

    def _check_delay(self, was: Task, now: Task, wall: int) -> None:
        waits = now.run_at - wall
        if now.last_event is Event.LOSE:
            assert waits == 0, "a lost worker delayed the next attempt"
        elif now.last_event is Event.TIME_OUT:
            policy = (now.options and now.options.retry) or RetryPolicy()
            usual = min(policy.longest, policy.first * policy.factor**was.retry_count)
            low, high = usual * (1 - policy.jitter), usual * (1 + policy.jitter)
            assert low - 1 <= waits <= high + 1, "outside the band of the jitter"
        else:
            assert waits >= 0
