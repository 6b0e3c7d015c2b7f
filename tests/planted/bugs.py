"""Deliberate bugs, each a switch that breaks one promise. The list only ever grows.

A bug that was found in the product belongs here too, so that it stays caught. `table` says which
check of the suite each one has to fail.
"""

from collections.abc import Callable
from typing import Any

import pytest
from msgspec.structs import replace

from taskqueue.broker import ledger
from taskqueue.broker.access import Access, Caller
from taskqueue.broker.broker import Broker
from taskqueue.broker.crew import Crew
from taskqueue.broker.limits import RateLimiter
from taskqueue.broker.upkeep import Upkeep
from taskqueue.broker.workers import Workers
from taskqueue.core import batch, lifecycle, repeats
from taskqueue.core.batch import Batch, Tally, WorkingSet
from taskqueue.core.clock import SECOND, Clock, ManualClock
from taskqueue.core.commands import Complete, Fail, Purge, Release
from taskqueue.core.errors import InvalidStatus, OutcomeUnknown, TaskQueueError
from taskqueue.core.keys import Key
from taskqueue.core.task import Event, Status, Task
from taskqueue.storage import claiming, transaction
from taskqueue.storage.sqlite import reader, statements, tables, writer
from taskqueue.storage.sqlite.mark import CommitMark

Patch = pytest.MonkeyPatch
Bug = Callable[[Patch], None]


# What a word may do to a task.


def token_not_compared(patch: Patch) -> None:
    """Any token will do for a task that runs."""
    patch.setattr(lifecycle, "holds_lease", lambda task, _token: task.status is Status.IN_PROGRESS)


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


def delay_forgotten(patch: Patch) -> None:
    """A failed task comes back at once."""
    patch.setattr(lifecycle, "_usual_delay", lambda _task, _spread: 0)


def lost_worker_costs_a_delay(patch: Patch) -> None:
    """A task whose worker died waits as if it had failed."""
    real = lifecycle._retry_or_bury

    def fail(task: Task, event: Event, wall: int, delay: int, *, retryable: bool) -> Task:
        late = 5 * SECOND if event is Event.LOSE else delay
        return real(task, event, wall, late, retryable=retryable)

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


def release_waits_for_the_old_clock(patch: Patch) -> None:
    """A task released after the clock was set back waits until its old time comes again."""
    real = lifecycle._end_attempt

    def end(task: Task, word: Complete | Fail | Release, wall: int) -> Any:
        after, failure = real(task, word, wall)
        return replace(after, run_at=task.run_at) if isinstance(word, Release) else after, failure

    patch.setattr(lifecycle, "_end_attempt", end)


def id_used_for_another_task(patch: Patch) -> None:
    """Other content under a known id is answered as if it had been taken."""
    patch.setattr(lifecycle, "require_same_submission", lambda _known, _repeat: None)


def submit_repeated_makes_two(patch: Patch) -> None:
    """The working set forgets what the engine has loaded for it."""
    real = batch.WorkingSet.__init__

    def init(self: WorkingSet, of: Batch, loaded: Any, next_seq: int, kept: Any = ()) -> None:
        real(self, of, [], next_seq, kept)

    patch.setattr(batch.WorkingSet, "__init__", init)


def batch_poisoned_by_one_bad_command(patch: Patch) -> None:
    """One refused command fails its whole transaction."""

    def decide(self: Any, command: Any, _may_do_chores: bool) -> Any:
        return (
            self.work.settle(command) if hasattr(command, "task_id") else self.work.submit(command)
        )

    patch.setattr(transaction.Transaction, "_decide", decide)


def counters_drift_on_cancel(patch: Patch) -> None:
    """A cancelled task is still counted as pending."""
    real = Tally.move

    def move(self: Tally, before: Task | None, after: Task, steady: int) -> None:
        real(self, None if after.last_event is Event.CANCEL else before, after, steady)

    patch.setattr(Tally, "move", move)


# Which task goes first, and when.


def order_broken_at_equal_times(patch: Patch) -> None:
    """Of two tasks ready at the same moment the later one goes first."""
    _rewrite_pick(patch, ("run_at, seq", "run_at, seq DESC"), ("since, number", "since, -number"))


def priority_ignored(patch: Patch) -> None:
    """First in first out, whatever the priority."""
    _rewrite_pick(patch, ("priority DESC, run_at", "run_at"), ("rank DESC, since", "since"))


def line_by_order_of_submission(patch: Patch) -> None:
    """A scheduled task stands in line from its submission, not from the moment it was ready."""
    _rewrite_pick(patch, ("run_at, seq LIMIT", "seq LIMIT"), ("since, number", "number"))


def _rewrite_pick(patch: Patch, *changes: tuple[str, str]) -> None:
    real = statements.pick.__wrapped__

    def pick(types: int) -> str:
        text = str(real(types))
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        return text

    patch.setattr(statements, "pick", pick)


def promoted_early(patch: Patch) -> None:
    """Scheduled tasks become claimable a second before their time."""
    assert "run_at <= ?" in statements.DUE
    patch.setattr(statements, "DUE", statements.DUE.replace("run_at <= ?", "run_at - 1000000 <= ?"))


def purged_too_early(patch: Patch) -> None:
    """What ended at the very moment of the cut is deleted as well."""
    real = tables.SqliteTables.purge
    patch.setattr(
        tables.SqliteTables,
        "purge",
        lambda self, purge, wall: real(self, Purge(purge.before + 1, purge.limit), wall),
    )


# What is durable, and who is told so.


def acknowledged_before_the_commit(patch: Patch) -> None:
    """Callers are told that all is well while the transaction is still under way."""
    real = ledger.Ledger._commit

    async def commit(self: Any, commands: Any, receivers: Any) -> None:
        for receiver in receivers:
            if not receiver.done():
                receiver.set_result(0)
        await real(self, commands, receivers)

    patch.setattr(ledger.Ledger, "_commit", commit)


def watcher_told_before_the_commit(patch: Patch) -> None:
    """Who waits for a task's end is told when the worker's word comes in."""
    real = Broker.complete

    def complete(self: Any, request: Any) -> Any:
        self._watch._wake(self._watch._watchers.get(request.task_id, ()))
        return real(self, request)

    patch.setattr(Broker, "complete", complete)


def unknown_outcome_told_as_success(patch: Patch) -> None:
    """The callers of a transaction whose outcome nobody knows are told that all is well."""

    def refuse(receivers: Any, _error: TaskQueueError) -> None:
        for receiver in receivers:
            receiver.set_result(0)

    patch.setattr(ledger, "_refuse", refuse)


def failed_sync_taken_for_a_commit(patch: Patch) -> None:
    """The engine answers although the disk has said that it could not sync."""
    real = writer.Writer._commit

    def commit(self: Any, *arguments: Any) -> None:
        try:
            real(self, *arguments)
        except OutcomeUnknown:
            return

    patch.setattr(writer.Writer, "_commit", commit)


def commits_not_synced(patch: Patch) -> None:
    """A commit is answered before it is on the disk."""
    real = writer.open_for_writing

    def open_for_writing(folder: Any) -> Any:
        connection = real(folder)
        connection.execute("PRAGMA synchronous = NORMAL").fetchall()
        return connection

    patch.setattr(writer, "open_for_writing", open_for_writing)


def commit_number_not_kept(patch: Patch) -> None:
    """Nothing beside the database says how many commits it must hold."""
    patch.setattr(CommitMark, "write", lambda _self, _number: None)


class _Trusting:
    """A checksum that always fits."""

    class Agreeable(int):
        def __ne__(self, other: object) -> bool:
            return False

    def crc32(self, _data: bytes) -> int:
        return self.Agreeable(0)


def payload_checksum_skipped(patch: Patch) -> None:
    """Damaged payloads are handed out."""
    patch.setattr(claiming, "zlib", _Trusting())


def result_checksum_skipped(patch: Patch) -> None:
    """Damaged results are handed out."""
    patch.setattr(reader, "zlib", _Trusting())


# Leases, deadlines, stalls.


def lease_not_checked(patch: Patch) -> None:
    """The tasks of a dead worker are never taken back."""
    patch.setattr(Workers, "silent", lambda _self: [])


def lease_on_the_wall_clock(patch: Patch) -> None:
    """Leases run on the clock that jumps when the system's time is set."""
    real = Workers.__init__

    class Wall:
        def __init__(self, clock: Clock) -> None:
            self.steady = clock.wall

    def init(self: Workers, clock: Clock, lease: int, grace: int | None = None) -> None:
        real(self, Wall(clock), lease, grace)  # type: ignore[arg-type]

    patch.setattr(Workers, "__init__", init)


def stall_not_forgiven(patch: Patch) -> None:
    """The time in which the broker stood still counts against its workers."""
    patch.setattr(ManualClock, "forgive", lambda _self, _microseconds: None)


def restart_loses_every_worker(patch: Patch) -> None:
    """A new broker takes back what the old one's workers hold."""

    async def adopt(self: Any) -> None:
        held = await self._storage.held(await self._storage.holders())
        await self.take_back(held, Event.LOSE, "unknown")

    patch.setattr(Upkeep, "_adopt_unknown_holders", adopt)


def beat_revives(patch: Patch) -> None:
    """A worker that was taken for lost is told that it still holds its tasks."""

    async def reconcile(_self: Any, _request: Any, _caller: Any) -> list[str]:
        return []

    patch.setattr(Crew, "_reconcile", reconcile)


def deadline_not_enforced(patch: Patch) -> None:
    """An attempt may last for ever as long as its worker beats."""

    async def take_back(_self: Any) -> None:
        return

    patch.setattr(Upkeep, "_take_back_overdue", take_back)


# Who is let in, how often, and what a repeat gets.


def permission_not_compared(patch: Patch) -> None:
    """Any valid key is good for anything."""
    patch.setattr(Key, "permits", lambda _self, _permission: True)


def scope_not_compared(patch: Patch) -> None:
    """A key for some task types reaches all of them."""
    patch.setattr(Caller, "require_type", lambda _self, _task_type: None)


def key_outlives_its_end(patch: Patch) -> None:
    """A revoked key is let in as before."""
    patch.setattr(Key, "is_live", lambda _self, _wall: True)


def revoked_waits_go_on(patch: Patch) -> None:
    """What was begun under a key goes on when it is revoked."""
    patch.setattr(Access, "_cut_off", lambda _self, _key_id: None)


def old_secret_for_ever(patch: Patch) -> None:
    """The secret before a rotation stays valid beside the new one."""
    patch.setattr(
        Key, "digests", lambda self, _wall: [one for one in (self.digest, self.old_digest) if one]
    )


def requests_not_counted(patch: Patch) -> None:
    """Every request is let in."""
    real = RateLimiter.take

    def take(self: Any, caller: str, rate: int, burst: int, cost: int = 1) -> Any:
        return real(self, caller, rate, burst, 0 * cost)

    patch.setattr(RateLimiter, "take", take)


def key_used_for_another_task(patch: Patch) -> None:
    """Other content under a known idempotency key is answered as if it had been taken."""
    patch.setattr(repeats, "require_same", lambda *_words: None)


def repeated_claim_claims_more(patch: Patch) -> None:
    """A claim that is repeated gets other tasks."""
    patch.setattr(batch.WorkingSet, "still_held", lambda _self, _claim: [])


def refusals_not_audited(patch: Patch) -> None:
    """What was refused is entered as if it had been done."""
    real = batch.audit_entry

    def entry(command: Any, outcome: Any, wall: int) -> Any:
        return replace(real(command, outcome, wall), outcome="ok")

    patch.setattr(transaction, "audit_entry", entry)
