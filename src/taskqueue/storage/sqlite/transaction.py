"""One batch on one connection: load, decide, write, claim, count. No threads, no commit."""

import zlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

import apsw
import msgspec

from taskqueue.core.batch import MINUTE, Batch, CounterKey, WorkingSet
from taskqueue.core.commands import Claim, Command, Outcome, Promote, Purge, Submit
from taskqueue.core.errors import TaskQueueError
from taskqueue.core.task import CLAIMABLE, ClaimedTask, Status, Task, tier_of
from taskqueue.storage.sqlite import statements as sql

LARGEST_CLAIM_BYTES: Final = 16 * 1024 * 1024
LARGEST_BATCH_BYTES: Final = 128 * 1024 * 1024

_TASKS: Final = msgspec.json.Decoder(list[Task])
_PICKED: Final = msgspec.json.Decoder(list[tuple[Task, int]])
_PAIRS: Final = msgspec.json.Decoder(list[tuple[int, int]])
_DUE: Final = msgspec.json.Decoder(list[tuple[int, str]])
_FINISHED: Final = msgspec.json.Decoder(list[tuple[int, str, Status, int]])

Claimant = tuple[int, Claim]
"""A claim and its place in the batch."""


def load_tasks(connection: apsw.Connection, statement: str, bindings: Sequence[Any]) -> list[Task]:
    """The tasks that a statement returns as one JSON array."""
    return _TASKS.decode(sql.row_of(connection, statement, bindings)[0])


class Transaction:
    """Carries a batch out inside a transaction that the caller begins and ends."""

    def __init__(self, connection: apsw.Connection, batch: Batch, next_seq: int) -> None:
        self.outcomes: list[Outcome | TaskQueueError] = [0] * len(batch.commands)
        self.next_due: int | None = None
        self._connection = connection
        self._batch = batch
        self.work = WorkingSet(batch, self._load(batch.commands), next_seq)
        self._promoted: dict[int, str] = {}
        self._purged = 0
        self._bytes_left = LARGEST_BATCH_BYTES

    def run(self) -> None:
        """Decide and write everything but the claims, then the claims."""
        claimants: list[Claimant] = []
        chores: list[tuple[int, Promote | Purge]] = []
        for place, command in enumerate(self._batch.commands):
            match command:
                case Claim():
                    claimants.append((place, command))
                case Promote() | Purge():
                    chores.append((place, command))
                case _:
                    self.outcomes[place] = self._decide(command)
        self._write()
        for place, chore in chores:
            self.outcomes[place] = self._do_chore(chore)
        for alike in _runs_of_same_types(claimants):
            self._serve(alike)
        self.next_due = self._earliest(self.work.waiting_run_at())
        if self.has_changed:
            self._count()

    @property
    def has_changed(self) -> bool:
        """Whether there is anything to commit."""
        return self.work.has_changed or bool(self._promoted or self._purged)

    def ready(self) -> dict[str, int]:
        """How many tasks of each type became claimable and were not handed out."""
        return self.work.newly_ready() + Counter(self._promoted.values())

    def pending_change(self) -> int:
        """By how many the pending tasks have grown."""
        return sum(
            number
            for key, number in self.work.tally.present.items()
            if key.status is Status.PENDING
        )

    def _load(self, commands: list[Command]) -> list[Task]:
        ids = [
            command.task.id if isinstance(command, Submit) else command.task_id
            for command in commands
            if not isinstance(command, Claim | Promote | Purge)
        ]
        if not ids:
            return []
        return load_tasks(self._connection, sql.LOAD, (msgspec.json.encode(ids).decode(),))

    def _decide(self, command: Any) -> Outcome | TaskQueueError:
        try:
            if isinstance(command, Submit):
                return self.work.submit(command)
            return self.work.settle(command)
        except TaskQueueError as error:
            return error

    def _do_chore(self, chore: Promote | Purge) -> int:
        return self._promote(chore) if isinstance(chore, Promote) else self._purge(chore)

    def _promote(self, chore: Promote) -> int:
        due = _DUE.decode(sql.row_of(self._connection, sql.DUE, (self._batch.wall, chore.limit))[0])
        if due:
            self._connection.execute(sql.PROMOTE, (sql.as_json_numbers(seq for seq, _ in due),))
            self._promoted.update(due)
        self.next_due = self._earliest(sql.row_of(self._connection, sql.NEXT_DUE, ())[0])
        return len(due)

    def _purge(self, chore: Purge) -> int:
        answer = sql.row_of(self._connection, sql.PAST_RETENTION, (chore.before, chore.limit))
        finished = _FINISHED.decode(answer[0])
        if finished:
            seqs = sql.as_json_numbers(seq for seq, *_ in finished)
            for deletion in sql.DELETIONS:
                self._connection.execute(deletion, (seqs,))
            for _, task_type, status, priority in finished:
                self.work.tally.remove(task_type, status, tier_of(priority), 1)
            self._purged += len(finished)
        return len(finished)

    def _serve(self, claimants: list[Claimant]) -> None:
        """Deal ready tasks out to claims on the same types, first come, first served."""
        while True:
            plan = self._plan(claimants, self._pick(claimants))
            payloads = self._payloads([task for _, task in plan])
            damaged = [
                task for _, task in plan if zlib.crc32(payloads[task.seq]) != task.payload_crc
            ]
            if not damaged:
                break
            for task in damaged:
                self._promoted.pop(task.seq, None)
                self.work.bury_damaged(task)
            self._write()
        served: dict[int, list[ClaimedTask]] = {place: [] for place, _ in claimants}
        workers = {place: claim.worker_id for place, claim in claimants}
        for place, task in plan:
            payload = payloads[task.seq]
            self._promoted.pop(task.seq, None)
            self._bytes_left -= len(payload)
            served[place].append(ClaimedTask(self.work.claim(task, workers[place]), payload))
        for place, claimed in served.items():
            self.outcomes[place] = claimed
        self._write()

    def _pick(self, claimants: list[Claimant]) -> list[tuple[Task, int]]:
        types = claimants[0][1].task_types
        limit = sum(claim.limit for _, claim in claimants)
        bindings = [value for name in types for value in (name, limit)]
        return _PICKED.decode(
            sql.row_of(self._connection, sql.pick(len(types)), (*bindings, limit))[0]
        )

    def _plan(
        self, claimants: list[Claimant], picked: list[tuple[Task, int]]
    ) -> list[tuple[int, Task]]:
        """Who gets which task: in order, within each claim's number and the limits on bytes."""
        plan: list[tuple[int, Task]] = []
        bytes_left = self._bytes_left
        following = iter(picked)
        upcoming = next(following, None)
        for place, claim in claimants:
            number, size = 0, 0
            while upcoming is not None and number < claim.limit:
                task, weight = upcoming
                is_too_heavy = number and size + weight > LARGEST_CLAIM_BYTES
                if is_too_heavy or weight > bytes_left:
                    break
                plan.append((place, task))
                number, size = number + 1, size + weight
                bytes_left -= weight
                upcoming = next(following, None)
        return plan

    def _payloads(self, tasks: list[Task]) -> dict[int, bytes]:
        if not tasks:
            return {}
        wanted = sql.as_json_numbers(task.seq for task in tasks)
        sizes, joined = sql.row_of(self._connection, sql.PAYLOADS, (wanted,))
        payloads = {task.seq: b"" for task in tasks}
        start = 0
        for seq, size in _PAIRS.decode(sizes):
            payloads[seq] = joined[start : start + size] if size else b""
            start += size
        return payloads

    def _write(self) -> None:
        changes = self.work.take_changes()
        connection, wall = self._connection, self._batch.wall
        sql.INSERT_TASKS.run(
            connection, [(*_as_row(task), _readiness(task, wall)) for task in changes.inserted]
        )
        sql.INSERT_PAYLOADS.run(connection, changes.payloads)
        sql.UPDATE_TASKS.run(connection, [_as_update(task, wall) for task in changes.updated])
        sql.INSERT_RESULTS.run(
            connection, [(seq, zlib.crc32(result), result) for seq, result in changes.results]
        )
        sql.INSERT_FAILURES.run(
            connection,
            [(seq, *msgspec.structs.astuple(failure)) for seq, failure in changes.failures],
        )

    def _count(self) -> None:
        tally = self.work.tally
        rows: dict[CounterKey, tuple[int, int]] = {}
        for key in tally.present.keys() | tally.entered.keys():
            present, entered = tally.present[key], tally.entered[key]
            of_all = CounterKey("", key.status, key.tier)
            before = rows.get(of_all, (0, 0))
            rows[of_all] = (before[0] + present, before[1] + entered)
            rows[key] = (present, entered)
        sql.ADD_TO_COUNTERS.run(
            self._connection,
            [
                (key.task_type, key.status, key.tier, present, entered)
                for key, (present, entered) in rows.items()
            ],
        )
        seen = tally.minute
        if seen.completed or seen.failed:
            minute = self._batch.wall // MINUTE * MINUTE
            self._connection.execute(
                sql.ADD_TO_MINUTE, (minute, seen.completed, seen.failed, seen.busy)
            )

    def _earliest(self, moment: int | None) -> int | None:
        return min((one for one in (self.next_due, moment) if one is not None), default=None)


def _runs_of_same_types(claimants: list[Claimant]) -> list[list[Claimant]]:
    runs: list[list[Claimant]] = []
    for claimant in claimants:
        if runs and set(runs[-1][0][1].task_types) == set(claimant[1].task_types):
            runs[-1].append(claimant)
        else:
            runs.append([claimant])
    return runs


def _readiness(task: Task, wall: int) -> int | None:
    return int(task.run_at <= wall) if task.status in CLAIMABLE else None


def _as_row(task: Task) -> tuple[Any, ...]:
    return msgspec.structs.astuple(task)


def _as_update(task: Task, wall: int) -> tuple[Any, ...]:
    return (
        task.seq,
        task.status,
        _readiness(task, wall),
        task.run_at,
        task.updated_at,
        task.last_event,
        task.retry_count,
        task.token,
        task.worker_id,
        task.claimed_at,
        task.deadline,
        task.progress,
        task.progress_note,
    )
