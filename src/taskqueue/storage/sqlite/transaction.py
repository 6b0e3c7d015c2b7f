"""One batch on one connection: load, decide, write, claim, count. No threads, no commit."""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, Final

import apsw
import msgspec

from taskqueue.core import repeats
from taskqueue.core.batch import (
    MINUTE,
    Batch,
    CounterKey,
    WorkingSet,
    audit_entry,
    bare,
    kept_under,
)
from taskqueue.core.commands import (
    Audited,
    Claim,
    CreateKey,
    KeyCommand,
    NoteKeyUse,
    Outcome,
    Promote,
    Purge,
    RevokeKey,
    RotateKey,
    Submit,
)
from taskqueue.core.errors import DataDamaged, TaskQueueError
from taskqueue.core.keyring import KeyRing
from taskqueue.core.keys import Key
from taskqueue.core.repeats import Kept
from taskqueue.core.task import CLAIMABLE, ClaimedTask, Status, Task, tier_of
from taskqueue.storage.sqlite import statements as sql

LARGEST_CLAIM_BYTES: Final = 16 * 1024 * 1024
LARGEST_BATCH_BYTES: Final = 128 * 1024 * 1024
MOST_CLAIMED: Final = 4_096
"""Tasks handed out in one transaction: some 50 ms of work, so that nobody waits long."""

MINUTES_KEPT: Final = 7 * 24 * 60 * MINUTE

_TASKS: Final = msgspec.json.Decoder(list[Task])
_PICKED: Final = msgspec.json.Decoder(list[tuple[Task, int]])
_KEPT: Final = msgspec.json.Decoder(list[Kept])
_KEYS: Final = msgspec.json.Decoder(list[Key])
_PAIRS: Final = msgspec.json.Decoder(list[tuple[int, int]])
_DUE: Final = msgspec.json.Decoder(list[tuple[int, str]])
_FINISHED: Final = msgspec.json.Decoder(list[tuple[int, str, Status, int, int]])

_PURGEABLE: Final = frozenset({Status.COMPLETED, Status.CANCELLED})

Claimant = tuple[int, Claim]
"""A claim and its place in the batch."""


def load_tasks(connection: apsw.Connection, statement: str, bindings: Sequence[Any]) -> list[Task]:
    """The tasks that a statement returns as one JSON array."""
    return sql.decoded(connection, _TASKS, statement, bindings)


def load_keys(connection: apsw.Connection) -> list[Key]:
    """Every API key, oldest first."""
    return sql.decoded(connection, _KEYS, sql.KEYS)


class Transaction:
    """Carries a batch out inside a transaction that the caller begins and ends."""

    def __init__(self, connection: apsw.Connection, batch: Batch, next_seq: int) -> None:
        self.outcomes: list[Outcome | TaskQueueError] = [0] * len(batch.commands)
        self.next_due: int | None = None
        self._connection = connection
        self._batch = batch
        self._commands = [bare(command) for command in batch.commands]
        self._is_noted = False
        kept = self._load_kept()
        self.work = WorkingSet(batch, self._load(kept), next_seq, kept)
        self._promoted: dict[int, str] = {}
        self._withheld: Counter[str] = Counter()
        self._purged = 0
        self._tasks_left = MOST_CLAIMED
        self._bytes_left = LARGEST_BATCH_BYTES

    def run(self) -> None:
        """Decide and write everything but the claims, then the claims."""
        claimants: list[Claimant] = []
        chores: list[tuple[int, Promote | Purge]] = []
        of_keys: list[tuple[int, KeyCommand]] = []
        for place, command in enumerate(self._commands):
            match command:
                case Claim():
                    claimants.append((place, command))
                case Promote() | Purge():
                    chores.append((place, command))
                case CreateKey() | RotateKey() | RevokeKey() | NoteKeyUse():
                    of_keys.append((place, command))
                case _:
                    self.outcomes[place] = self._decide(command)
        self._write()
        self._change_keys(of_keys)
        for place, chore in chores:
            self.outcomes[place] = self._do_chore(chore)
        for alike in _runs_of_same_types(self._serve_again(claimants)):
            self._serve(alike)
        self.next_due = self._earliest_due(chores)
        self._write_audit()
        if self.has_changed:
            self._count()

    @property
    def has_changed(self) -> bool:
        """Whether there is anything to commit."""
        return self.work.has_changed or self._is_noted or bool(self._promoted or self._purged)

    def ready(self) -> dict[str, int]:
        """How many tasks of each type became claimable, or are, and were not handed out."""
        return self.work.newly_ready() + Counter(self._promoted.values()) + self._withheld

    def pending_change(self) -> int:
        """By how many the pending tasks have grown."""
        return sum(
            present
            for key, (present, _) in self.work.tally.changes().items()
            if key.status is Status.PENDING
        )

    def _load_kept(self) -> list[Kept]:
        wanted = [
            place
            for command in self._commands
            if isinstance(command, Submit | Claim) and (place := kept_under(command)) is not None
        ]
        if not wanted:
            return []
        bindings = (msgspec.json.encode(wanted).decode(), self._batch.wall)
        return sql.decoded(self._connection, _KEPT, sql.KEPT, bindings)

    def _load(self, kept: list[Kept]) -> list[Task]:
        ids = [
            command.task.id if isinstance(command, Submit) else command.task_id
            for command in self._commands
            if not isinstance(command, Claim | Promote | Purge | KeyCommand)
        ]
        for answer in kept:
            if answer.scope == repeats.CLAIM:
                ids += [task_id for task_id, _token in repeats.claimed(answer)]
        if not ids:
            return []
        tasks = load_tasks(self._connection, sql.LOAD, (msgspec.json.encode(ids).decode(),))
        if not {task.id for task in tasks}.issubset(ids):
            raise DataDamaged("the index of ids leads to a task that was not asked for")
        return tasks

    def _decide(self, command: Any) -> Outcome | TaskQueueError:
        try:
            if isinstance(command, Submit):
                return self.work.submit(command)
            return self.work.settle(command)
        except TaskQueueError as error:
            return error

    def _change_keys(self, commands: list[tuple[int, KeyCommand]]) -> None:
        if not commands:
            return
        ring = KeyRing(load_keys(self._connection), self._batch.wall)
        for place, command in commands:
            try:
                self.outcomes[place] = ring.settle(command)
            except TaskQueueError as error:
                self.outcomes[place] = error
        for key in ring.changed.values():
            row = msgspec.structs.astuple(
                msgspec.structs.replace(key, permissions=_as_text(key.permissions))
            )
            self._connection.execute(sql.SAVE_KEY, row)
        self._is_noted |= bool(ring.changed)

    def _write_audit(self) -> None:
        for command, outcome in zip(self._batch.commands, self.outcomes, strict=True):
            if isinstance(command, Audited):
                _, *row = msgspec.structs.astuple(audit_entry(command, outcome, self._batch.wall))
                self._connection.execute(sql.ADD_TO_AUDIT, row)
                self._is_noted = True

    def _do_chore(self, chore: Promote | Purge) -> int | TaskQueueError:
        try:
            return self._promote(chore) if isinstance(chore, Promote) else self._purge(chore)
        except DataDamaged as error:
            return error

    def _promote(self, chore: Promote) -> int:
        due = sql.decoded(self._connection, _DUE, sql.DUE, (self._batch.wall, chore.limit))
        if due:
            self._connection.execute(sql.PROMOTE, (sql.as_json_numbers(seq for seq, _ in due),))
            self._promoted.update(due)
        return len(due)

    def _purge(self, chore: Purge) -> int:
        finished = sql.decoded(
            self._connection, _FINISHED, sql.PAST_RETENTION, (chore.before, chore.limit)
        )
        if any(
            status not in _PURGEABLE or updated_at >= chore.before
            for _, _, status, _, updated_at in finished
        ):
            raise DataDamaged("the index of ended tasks leads to one that may not be deleted")
        if finished:
            seqs = sql.as_json_numbers(seq for seq, *_ in finished)
            for deletion in sql.DELETIONS:
                self._connection.execute(deletion, (seqs,))
            for _, task_type, status, priority, _ in finished:
                self.work.tally.remove(task_type, status, tier_of(priority))
            self._purged += len(finished)
        return max(len(finished), self._forget(chore))

    def _forget(self, chore: Purge) -> int:
        numbers: list[int] = []
        for statement, before in (
            (sql.FORGET_KEPT, self._batch.wall),
            (sql.FORGET_AUDIT, chore.audit_before),
        ):
            self._connection.execute(statement, (before, chore.limit))
            numbers.append(self._connection.changes())
        self._purged += sum(numbers)
        return max(numbers)

    def _serve_again(self, claimants: list[Claimant]) -> list[Claimant]:
        """Give repeated claims what they were given before; return the others."""
        others: list[Claimant] = []
        for place, claim in claimants:
            held = self.work.still_held(claim) if claim.repeat is not None else []
            if held:
                # The sizes are not known here; a part at a time keeps the memory bounded.
                payloads = self._payloads([(task, LARGEST_CLAIM_BYTES) for task in held])
                self.outcomes[place] = [ClaimedTask(task, payloads[task.seq]) for task in held]
            else:
                others.append((place, claim))
        return others

    def _serve(self, claimants: list[Claimant]) -> None:
        """Deal ready tasks out to claims on the same types, first come, first served."""
        try:
            parts, payloads = self._choose(claimants)
        except DataDamaged as error:
            for place, _ in claimants:
                self.outcomes[place] = error
            return
        for (place, claim), part in zip(claimants, parts, strict=True):
            claimed: list[ClaimedTask] = []
            for task in part:
                payload = payloads[task.seq]
                self._promoted.pop(task.seq, None)
                self._bytes_left -= len(payload)
                claimed.append(ClaimedTask(self.work.claim(task, claim.worker_id), payload))
            self._tasks_left -= len(claimed)
            self.outcomes[place] = claimed
            self.work.keep_claim(claim, [one.task for one in claimed])
        self._write()

    def _choose(self, claimants: list[Claimant]) -> tuple[list[list[Task]], dict[int, bytes]]:
        """Each claim's tasks, and their payloads; what is damaged is set aside on the way."""
        while True:
            picked = self._pick(claimants)
            parts = self._deal(claimants, picked)
            number = sum(map(len, parts))
            payloads = self._payloads(picked[:number])
            damaged = [
                task
                for task, _ in picked[:number]
                if zlib.crc32(payloads[task.seq]) != task.payload_crc
            ]
            if not damaged:
                if number < len(picked):
                    self._note_withheld(picked[number][0].task_type, claimants, parts)
                return parts, payloads
            for task in damaged:
                self._promoted.pop(task.seq, None)
                self.work.bury_damaged(task)
            self._write()

    def _pick(self, claimants: list[Claimant]) -> list[tuple[Task, int]]:
        types = set(claimants[0][1].task_types)
        limit = sum(claim.limit for _, claim in claimants)
        # One more than may be handed out tells whether there is more.
        limit = min(limit, self._tasks_left + 1)
        bindings = [value for name in types for value in (name, limit)]
        picked = sql.decoded(self._connection, _PICKED, sql.pick(len(types)), (*bindings, limit))
        if any(task.task_type not in types or task.status not in CLAIMABLE for task, _ in picked):
            raise DataDamaged("the index of ready tasks leads to one that may not be claimed")
        return picked

    def _deal(self, claimants: list[Claimant], picked: list[tuple[Task, int]]) -> list[list[Task]]:
        """Who gets which task: in order, within each claim's number and the limits of a batch."""
        bytes_left = self._bytes_left
        following = iter(picked[: self._tasks_left])
        upcoming = next(following, None)
        parts: list[list[Task]] = []
        for _, claim in claimants:
            part: list[Task] = []
            size = 0
            while upcoming is not None and len(part) < claim.limit:
                task, weight = upcoming
                is_too_heavy = part and size + weight > LARGEST_CLAIM_BYTES
                if is_too_heavy or weight > bytes_left:
                    break
                part.append(task)
                size += weight
                bytes_left -= weight
                upcoming = next(following, None)
            parts.append(part)
        return parts

    def _note_withheld(
        self, task_type: str, claimants: list[Claimant], parts: list[list[Task]]
    ) -> None:
        # A claim that goes empty-handed for the limits' sake must be woken for what is left.
        for (_, claim), part in zip(claimants, parts, strict=True):
            if not part:
                self._withheld[task_type] += claim.limit

    def _payloads(self, picked: list[tuple[Task, int]]) -> dict[int, bytes]:
        """The bytes of tasks by their seq; where they are lost, none."""
        payloads = {task.seq: b"" for task, _ in picked}
        for seqs in _cut_by_weight(picked):
            sizes, joined = sql.row_of(self._connection, sql.PAYLOADS, (sql.as_json_numbers(seqs),))
            start = 0
            for seq, size in _PAIRS.decode(sizes):
                if size:
                    payloads[seq] = joined[start : start + size]
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
        for answer in changes.kept:
            connection.execute(sql.KEEP, msgspec.structs.astuple(answer))

    def _count(self) -> None:
        tally = self.work.tally
        rows: dict[CounterKey, tuple[int, int]] = {}
        for key, (present, entered) in tally.changes().items():
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
            self._connection.execute(sql.FORGET_MINUTES, (minute - MINUTES_KEPT,))

    def _earliest_due(self, chores: list[tuple[int, Promote | Purge]]) -> int | None:
        """The earliest task that the batch left waiting; after a promotion, of all that wait."""
        if any(isinstance(chore, Promote) for _, chore in chores):
            due: int | None = sql.row_of(self._connection, sql.NEXT_DUE)[0]
            return due
        return self.work.waiting_run_at()


def _runs_of_same_types(claimants: list[Claimant]) -> list[list[Claimant]]:
    runs: list[list[Claimant]] = []
    for claimant in claimants:
        if runs and set(runs[-1][0][1].task_types) == set(claimant[1].task_types):
            runs[-1].append(claimant)
        else:
            runs.append([claimant])
    return runs


def _cut_by_weight(picked: list[tuple[Task, int]]) -> Iterator[list[int]]:
    # In parts, since the joined bytes of a part are in memory several times over.
    part: list[int] = []
    size = 0
    for task, weight in picked:
        if part and size + weight > LARGEST_CLAIM_BYTES:
            yield part
            part, size = [], 0
        part.append(task.seq)
        size += weight
    if part:
        yield part


def _as_text(value: Any) -> Any:
    return msgspec.json.encode(value).decode()


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
