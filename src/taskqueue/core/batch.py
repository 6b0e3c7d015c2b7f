"""A batch of commands and what it comes to: the part of a transaction that every engine shares.

An engine loads the tasks a batch speaks of, lets a `WorkingSet` decide command by command, writes
what has changed, then does the same for the claims. The decisions are `core.lifecycle`'s; this
module keeps the books of one batch.
"""

import zlib
from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from msgspec import Struct, field, structs

from taskqueue.core import lifecycle, repeats
from taskqueue.core.audit import AuditEntry
from taskqueue.core.commands import (
    AttemptNote,
    Audited,
    BareCommand,
    Cancel,
    Checkpoint,
    Claim,
    Command,
    Complete,
    CreateKey,
    Delete,
    Expire,
    Log,
    Outcome,
    Submit,
    TaskCommand,
)
from taskqueue.core.errors import TaskNotFound, TaskQueueError
from taskqueue.core.repeats import Kept
from taskqueue.core.task import CLAIMABLE, Event, Failure, LogLine, Status, Task, Tier, tier_of

MINUTE = 60_000_000
_FAILED_ATTEMPT: Final = (Event.FAIL, Event.LOSE, Event.TIME_OUT)


class Batch(Struct, frozen=True):
    """Commands for one transaction, and the time at which it takes place on both clocks."""

    commands: list[Command]
    wall: int
    steady: int


class Applied(Struct, frozen=True):
    """What a batch came to, told once it is durable.

    `outcomes` has one entry per command, in order. `moved` lists each change of a task, in order.
    `ready` counts by type the tasks that the batch left newly claimable, and those that a claim
    was denied only for the size of the batch. `next_due` is the earliest `run_at` among the tasks
    it left waiting. `pending` is the depth of the queue.
    """

    outcomes: list[Outcome | TaskQueueError]
    moved: list[Task]
    ready: dict[str, int]
    next_due: int | None
    pending: int

    def stopped(self) -> list[tuple[str, str, int]]:
        """The claims of running tasks that it has cancelled: worker, task, token."""
        return [
            (task.worker_id or "", task.id, task.token)
            for task in self.moved
            if task.last_event is Event.STOP
        ]


class CounterKey(NamedTuple):
    """What tasks are counted by."""

    task_type: str
    status: Status
    tier: Tier


class Minute(Struct):
    """What one minute saw: ended attempts, and the time successful ones took in microseconds."""

    completed: int = 0
    failed: int = 0
    busy: int = 0


class Tally(Struct):
    """Changes to the counters, summed by kind of step, and what the current minute saw."""

    minute: Minute = field(default_factory=Minute)
    _steps: dict[tuple[str, Status | None, Status | None, Tier], int] = field(
        default_factory=dict[tuple[str, Status | None, Status | None, Tier], int]
    )

    def move(self, before: Task | None, after: Task, steady: int) -> None:
        """Count one change of a task; `before` is None for a new one."""
        was = None if before is None else before.status
        tier = tier_of(after.priority)
        if before is not None and before.priority != after.priority:
            self._add(before.task_type, was, None, tier_of(before.priority))
            was = None
        self._add(after.task_type, was, after.status, tier)
        event = after.last_event
        if event is Event.COMPLETE:
            self.minute.completed += 1
            # Negative where a stall was forgiven, or the clock set, since the claim.
            self.minute.busy += max(0, steady - (after.claimed_at or steady))
        elif event in _FAILED_ATTEMPT:
            self.minute.failed += 1

    def remove(self, task_type: str, status: Status, tier: Tier, number: int = 1) -> None:
        """Count tasks that were deleted."""
        self._add(task_type, status, None, tier, number)

    def changes(self) -> dict[CounterKey, tuple[int, int]]:
        """By how many the tasks under each key have grown, and how many came under it."""
        changes: dict[CounterKey, tuple[int, int]] = {}
        for (task_type, was, now, tier), number in self._steps.items():
            if was is not None:
                key = CounterKey(task_type, was, tier)
                present, entered = changes.get(key, (0, 0))
                changes[key] = present - number, entered
            if now is not None:
                key = CounterKey(task_type, now, tier)
                present, entered = changes.get(key, (0, 0))
                changes[key] = present + number, entered + number
        return changes

    def _add(
        self, task_type: str, was: Status | None, now: Status | None, tier: Tier, number: int = 1
    ) -> None:
        step = task_type, was, now, tier
        self._steps[step] = self._steps.get(step, 0) + number


class Changes(Struct):
    """What a working set wants written: first what is deleted, as its id may come anew."""

    inserted: list[Task] = field(default_factory=list[Task])
    updated: list[Task] = field(default_factory=list[Task])
    payloads: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])
    results: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])
    failures: list[tuple[int, Failure]] = field(default_factory=list[tuple[int, Failure]])
    logs: list[tuple[int, LogLine]] = field(default_factory=list[tuple[int, LogLine]])
    checkpoints: dict[int, bytes] = field(default_factory=dict[int, bytes])
    deleted: list[Task] = field(default_factory=list[Task])
    kept: list[Kept] = field(default_factory=list[Kept])

    def delete(self, task: Task) -> None:
        """Delete a task with all that is kept of it."""
        self.deleted.append(task)
        self.results = [one for one in self.results if one[0] != task.seq]
        self.failures = [one for one in self.failures if one[0] != task.seq]
        self.logs = [one for one in self.logs if one[0] != task.seq]
        self.checkpoints.pop(task.seq, None)

    @property
    def has_notes(self) -> bool:
        """Whether attempts have left lines or checkpoints."""
        return bool(self.logs or self.checkpoints)

    def checked_results(self) -> list[tuple[int, int, bytes]]:
        """The results, each with its CRC-32 before it."""
        return [(seq, zlib.crc32(result), result) for seq, result in self.results]


class WorkingSet:
    """The tasks that one batch touches, as they stand after each command decided so far.

    `kept` are the answers of earlier batches to what this one may repeat.
    """

    def __init__(
        self, batch: Batch, loaded: Iterable[Task], next_seq: int, kept: Iterable[Kept] = ()
    ) -> None:
        self.moved: list[Task] = []
        self.has_changed = False
        self.tally = Tally()
        self.next_seq = next_seq
        self._wall = batch.wall
        self._steady = batch.steady
        self._tasks = {task.id: task for task in loaded}
        self._kept = {(answer.scope, answer.name): answer for answer in kept}
        self._new: dict[str, bytes] = {}
        self._touched: set[str] = set()
        self._changes = Changes()

    def submit(self, command: Submit) -> Task:
        """Take a new task in; a repeat gets the task as it was first taken.

        Raises IdempotencyConflict if its id or key stands for a different task.
        """
        repeat = command.repeat
        if repeat is not None:
            kept = self._kept.get((repeats.SUBMIT, repeat.key))
            if kept is not None:
                return repeats.first_answer(kept, command.task, repeat)
        task = self._take_in(command) if command.unique is None else self._take_unique(command)
        if repeat is not None:
            self._keep_answer(repeats.keep_submit(task, repeat))
        return task

    def settle(self, command: TaskCommand) -> Task:
        """Carry out a command about one task. Raises what `lifecycle.settle` raises."""
        task = self._tasks.get(command.task_id)
        if task is None or not task.task_type.startswith(command.scope):
            raise TaskNotFound("Task not found")
        after, failure = lifecycle.settle(task, command, wall=self._wall, steady=self._steady)
        if isinstance(command, AttemptNote):
            self._keep(after)
            self._keep_note(task, after, command)
        elif isinstance(command, Delete):
            self._drop(task)
        elif after is not task:
            self._record(task, after)
            if isinstance(command, Complete):
                self._changes.results.append((task.seq, command.result))
            if failure is not None:
                self._changes.failures.append((task.seq, failure))
        return after

    def claim(self, task: Task, worker_id: str) -> Task:
        """Give a ready task to a worker."""
        after = lifecycle.claim(task, worker_id, wall=self._wall, steady=self._steady)
        self._record(task, after)
        return after

    def still_held(self, claim: Claim) -> list[Task]:
        """What a repeated claim was given and is still its worker's."""
        repeat = claim.repeat
        kept = self._kept.get((repeats.CLAIM, claim.worker_id))
        if repeat is None or kept is None or kept.key != repeat.key:
            return []
        return [
            task
            for task_id, token in repeats.claimed(kept)
            if (task := self._tasks.get(task_id)) is not None
            and task.task_type in claim.task_types
            and lifecycle.holds_lease(task, token)
        ]

    def keep_claim(self, claim: Claim, claimed: list[Task]) -> None:
        """Keep what a claim was given, in case it is repeated."""
        if claim.repeat is not None and claimed:
            self._keep_answer(repeats.keep_claim(claim.worker_id, claimed, claim.repeat))

    def bury_damaged(self, task: Task) -> None:
        """Set a task aside whose payload is damaged."""
        after, failure = lifecycle.bury_damaged(task, wall=self._wall)
        self._record(task, after)
        self._changes.failures.append((task.seq, failure))

    def expire(self, task: Task) -> None:
        """Take a task out of the queue that waited beyond its expiry."""
        expiry = Expire(task.id)
        after, failure = lifecycle.settle(task, expiry, wall=self._wall, steady=self._steady)
        self._record(task, after)
        if failure is not None:
            self._changes.failures.append((task.seq, failure))

    def take_changes(self) -> Changes:
        """What is to be written since the last call."""
        changes = self._changes
        for task_id in self._touched:
            task = self._tasks[task_id]
            payload = self._new.pop(task_id, None)
            if payload is None:
                changes.updated.append(task)
            else:
                changes.inserted.append(task)
                changes.payloads.append((task.seq, payload))
        self._touched.clear()
        self._changes = Changes()
        return changes

    def waiting_run_at(self) -> int | None:
        """The earliest `run_at` among the tasks left waiting for their time."""
        return min(
            (
                task.run_at
                for task in self._tasks.values()
                if task.status in CLAIMABLE and task.run_at > self._wall
            ),
            default=None,
        )

    def newly_ready(self) -> Counter[str]:
        """How many tasks of each type the batch made claimable and did not hand out."""
        made = {task.id for task in self.moved}
        return Counter(
            task.task_type
            for task_id in made
            if (task := self._tasks.get(task_id)) is not None
            and task.status in CLAIMABLE
            and task.run_at <= self._wall
        )

    def _take_in(self, command: Submit) -> Task:
        known = self._tasks.get(command.task.id)
        if known is not None:
            lifecycle.require_same_submission(known, command)
            return known
        task = structs.replace(command.task, seq=self.next_seq)
        self.next_seq += 1
        self._new[task.id] = command.payload
        self._record(None, task)
        return task

    def _take_unique(self, command: Submit) -> Task:
        """Take a task in unless another one of its key is there, whose answer it gets then."""
        unique = command.unique
        assert unique is not None  # noqa: S101  for the type checker
        kept = self._kept.get((repeats.UNIQUE, unique.key))
        if kept is not None:
            first = repeats.holder_of(kept)
            holder = self._tasks.get(first.task_id)
            is_taken = unique.is_taken(first, holder, self._wall)
            if is_taken and first.task_id != command.task.id:
                if not unique.replaces:
                    known = {"id": first.task_id, "created_at": first.created_at}
                    return structs.replace(command.task, **known)
                if holder is not None and holder.status in CLAIMABLE:
                    self.settle(Cancel(holder.id))
        task = self._take_in(command)
        self._keep_answer(repeats.keep_unique(task, unique, self._wall))
        return task

    def _keep_note(self, task: Task, after: Task, command: AttemptNote) -> None:
        if isinstance(command, Checkpoint):
            self._changes.checkpoints[task.seq] = command.data
        elif isinstance(command, Log) and after.logged > task.logged:
            line = LogLine(task.token, self._wall, command.level, command.message)
            self._changes.logs.append((task.seq, line))

    def _drop(self, task: Task) -> None:
        self.has_changed = True
        self._touched.discard(task.id)
        self._new.pop(task.id, None)
        self._changes.delete(task)
        del self._tasks[task.id]
        self.tally.remove(task.task_type, task.status, tier_of(task.priority))

    def _keep_answer(self, answer: Kept) -> None:
        self.has_changed = True
        self._kept[answer.scope, answer.name] = answer
        self._changes.kept.append(answer)

    def _keep(self, after: Task) -> None:
        self.has_changed = True
        self._tasks[after.id] = after
        self._touched.add(after.id)

    def _record(self, before: Task | None, after: Task) -> None:
        self._keep(after)
        self.moved.append(after)
        self.tally.move(before, after, self._steady)


def readiness(task: Task, wall: int) -> int | None:
    """1 for a task that may be claimed now, 0 for one that waits for its time, else None."""
    return int(task.run_at <= wall) if task.status in CLAIMABLE else None


def bare(command: Command) -> BareCommand:
    """A command without the wrapping that puts it in the audit log."""
    return command.command if isinstance(command, Audited) else command


def kept_under(command: Submit | Claim) -> list[tuple[str, str, str]]:
    """Scope, name and key of each answer that is kept for a request."""
    places: list[tuple[str, str, str]] = []
    if isinstance(command, Claim):
        if command.repeat is not None:
            places.append((repeats.CLAIM, command.worker_id, command.repeat.key))
        return places
    if command.repeat is not None:
        places.append((repeats.SUBMIT, command.repeat.key, command.repeat.key))
    if command.unique is not None:
        places.append((repeats.UNIQUE, command.unique.key, command.unique.key))
    return places


def audit_entry(command: Audited, outcome: Outcome | TaskQueueError, wall: int) -> AuditEntry:
    """The line of the audit log for a command and what came of it; the engine numbers it."""
    inner = command.command
    if isinstance(inner, TaskCommand):
        target = inner.task_id
    else:
        target = inner.key.id if isinstance(inner, CreateKey) else inner.key_id
    actor = command.actor
    return AuditEntry(
        number=0,
        at=wall,
        key_id=actor.key_id,
        name=actor.name,
        address=actor.address,
        operation=command.operation,
        target=target,
        outcome=outcome.code if isinstance(outcome, TaskQueueError) else "ok",
    )
