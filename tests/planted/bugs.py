"""Deliberate bugs, each a switch, and which promise it breaks. The list only ever grows.

A bug that was found in the product belongs here too, so that it stays caught.
"""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from taskqueue.broker import ledger
from taskqueue.core import batch, lifecycle
from taskqueue.core.batch import Batch, Tally, WorkingSet
from taskqueue.core.commands import Complete, Fail, Release
from taskqueue.core.errors import InvalidStatus, TaskQueueError
from taskqueue.core.task import Event, Status, Task
from taskqueue.storage.sqlite import statements, transaction

Patch = pytest.MonkeyPatch


def token_not_compared(patch: Patch) -> None:
    """Any token will do for a task that runs."""
    patch.setattr(lifecycle, "_holds_lease", lambda task, _token: task.status is Status.IN_PROGRESS)


def status_guard_dropped(patch: Patch) -> None:
    """An operator's words take hold in any status."""
    real = lifecycle._move

    def move(task: Task, event: Event, wall: int, **changes: Any) -> Task:
        try:
            return real(task, event, wall, **changes)
        except InvalidStatus:
            after = Status.CANCELLED if event is Event.CANCEL else Status.PENDING
            return replace(task, status=after, last_event=event)

    patch.setattr(lifecycle, "_move", move)


def acknowledged_before_the_commit(patch: Patch) -> None:
    """Callers are told that all is well while the transaction is still under way."""
    real = ledger.Ledger._commit

    async def commit(self: Any, commands: Any, receivers: Any) -> None:
        for receiver in receivers:
            if not receiver.done():
                receiver.set_result(0)
        await real(self, commands, receivers)

    patch.setattr(ledger.Ledger, "_commit", commit)


def order_broken_at_equal_times(patch: Patch) -> None:
    """Of two tasks ready at the same moment the later one goes first."""
    real = statements.pick.__wrapped__
    patch.setattr(
        statements,
        "pick",
        lambda types: real(types).replace("run_at, seq", "run_at, seq DESC"),
    )


def priority_ignored(patch: Patch) -> None:
    """First in first out, whatever the priority."""
    real = statements.pick.__wrapped__
    patch.setattr(
        statements, "pick", lambda types: real(types).replace("priority DESC, run_at", "run_at")
    )


def token_not_raised(patch: Patch) -> None:
    """A task is given out again under the token of its last claim."""
    real = lifecycle.claim

    def claim(task: Task, worker_id: str, *, wall: int, steady: int) -> Task:
        return replace(real(task, worker_id, wall=wall, steady=steady), token=max(task.token, 1))

    patch.setattr(lifecycle, "claim", claim)


def completion_not_repeatable(patch: Patch) -> None:
    """The second word about an attempt is always refused."""
    real = lifecycle._end_attempt

    def end(task: Task, word: Complete | Fail | Release, wall: int) -> Any:
        lifecycle._require_lease(task, word.token)
        return real(task, word, wall)

    patch.setattr(lifecycle, "_end_attempt", end)


def retry_not_counted(patch: Patch) -> None:
    """A failure costs nothing: a poisoned task would run for ever."""
    real = lifecycle._retry_or_bury

    def fail(task: Task, *arguments: Any, **options: Any) -> Task:
        return replace(real(task, *arguments, **options), retry_count=task.retry_count)

    patch.setattr(lifecycle, "_retry_or_bury", fail)


def release_costs_a_retry(patch: Patch) -> None:
    """A worker that shuts down uses its tasks' retries up."""
    real = lifecycle._end_attempt

    def end(task: Task, word: Complete | Fail | Release, wall: int) -> Any:
        after, failure = real(task, word, wall)
        if isinstance(word, Release) and after is not task:
            after = replace(after, retry_count=task.retry_count + 1)
        return after, failure

    patch.setattr(lifecycle, "_end_attempt", end)


def counters_drift_on_cancel(patch: Patch) -> None:
    """A cancelled task is still counted as pending."""
    real = Tally.move

    def move(self: Tally, before: Task | None, after: Task, steady: int) -> None:
        real(self, None if after.last_event is Event.CANCEL else before, after, steady)

    patch.setattr(Tally, "move", move)


def promoted_early(patch: Patch) -> None:
    """Scheduled tasks become claimable a second before their time."""
    patch.setattr(statements, "DUE", statements.DUE.replace("run_at <= ?", "run_at - 1000000 <= ?"))


def batch_poisoned_by_one_bad_command(patch: Patch) -> None:
    """One refused command fails its whole transaction."""

    def decide(self: Any, command: Any) -> Any:
        return (
            self.work.settle(command) if hasattr(command, "task_id") else self.work.submit(command)
        )

    patch.setattr(transaction.Transaction, "_decide", decide)


def checksum_skipped(patch: Patch) -> None:
    """Damaged payloads are handed out."""

    class Agreeable(int):
        def __ne__(self, other: object) -> bool:
            return False

    class Trusting:
        @staticmethod
        def crc32(_data: bytes) -> int:
            return Agreeable(0)

    patch.setattr(transaction, "zlib", Trusting)


def submit_repeated_makes_two(patch: Patch) -> None:
    """The working set forgets what the engine has loaded for it."""
    real = batch.WorkingSet.__init__

    def init(self: WorkingSet, of: Batch, loaded: Any, next_seq: int) -> None:
        real(self, of, [], next_seq)

    patch.setattr(batch.WorkingSet, "__init__", init)


Bug = Callable[[Patch], None]

IN_THE_QUEUE: tuple[Bug, ...] = (
    token_not_compared,
    status_guard_dropped,
    order_broken_at_equal_times,
    priority_ignored,
    token_not_raised,
    completion_not_repeatable,
    retry_not_counted,
    release_costs_a_retry,
    counters_drift_on_cancel,
    promoted_early,
    batch_poisoned_by_one_bad_command,
    submit_repeated_makes_two,
)
"""Those that the storage suite has to catch."""

CAUGHT_AS = (AssertionError, TaskQueueError, pytest.fail.Exception)
"""How a test fails: by its assertion, an error nobody expected, or one that did not come."""
