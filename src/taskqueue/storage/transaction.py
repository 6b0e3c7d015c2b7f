"""One batch inside one transaction, the same for every engine: load, decide, write, claim, count.

It is written as coroutines over the tables of an engine. Those of an engine that answers without
waiting never suspend, and `carried_out` runs such a transaction to its end on the spot.
"""

import zlib
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol, TypeVar

from taskqueue.core import repeats
from taskqueue.core.audit import AuditEntry
from taskqueue.core.batch import (
    Applied,
    Batch,
    Changes,
    Tally,
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
    TakeBack,
)
from taskqueue.core.errors import BrokerUnavailable, DataDamaged, TaskQueueError
from taskqueue.core.keyring import KeyRing
from taskqueue.core.keys import Key
from taskqueue.core.repeats import Kept
from taskqueue.core.task import CLAIMABLE, ClaimedTask, Status, Task, Tier

LARGEST_CLAIM_BYTES: Final = 16 * 1024 * 1024
LARGEST_BATCH_BYTES: Final = 128 * 1024 * 1024
MOST_CLAIMED: Final = 4_096
"""Tasks handed out in one transaction: some 50 ms of work, so that nobody waits long."""

_NOT_LEADER: Final = BrokerUnavailable("this broker does not lead any more, another one does")

Claimant = tuple[int, Claim]
"""A claim and its place in the batch."""

Result = TypeVar("Result")


class Purged(NamedTuple):
    """What a purge deleted: ended tasks by what they are counted under, and other rows."""

    tasks: list[tuple[str, Status, Tier, int]]
    most: int
    """The largest number of rows of one kind, to be held against the limit."""


class Tables(Protocol):
    """What a transaction asks of an engine. All that is written is written in one transaction.

    Raise DataDamaged where a row makes no sense.
    """

    async def load(self, ids: Sequence[str], new: Sequence[str]) -> list[Task]:
        """The tasks with these ids, as far as there are any; nobody else changes them now.

        Those of `new` are brought by submits: as a rule there are none yet.
        """
        ...

    async def kept(self, places: Sequence[tuple[str, str, str]], wall: int) -> list[Kept]:
        """Answers kept under these scopes, names and keys, unless their time is over."""
        ...

    async def next_seq(self, submits: int) -> int:
        """The first of as many numbers for new tasks, which nobody else gets."""
        ...

    async def write(self, changes: Changes, wall: int) -> None:
        """Write what a working set has changed."""
        ...

    async def keys(self) -> list[Key]:
        """Every API key; nobody else changes them now."""
        ...

    async def save_keys(self, keys: Sequence[Key]) -> None:
        """Write these keys, new or changed."""
        ...

    async def enter(self, entries: Sequence[AuditEntry]) -> None:
        """Enter lines in the audit log, which numbers them."""
        ...

    async def leads(self) -> bool:
        """Whether this broker may do housekeeping, until the end of the transaction."""
        ...

    async def promote(self, wall: int, limit: int) -> dict[int, str]:
        """Make claimable what is due; the types of those tasks, by their numbers."""
        ...

    async def purge(self, purge: Purge, wall: int) -> Purged:
        """Delete what is past retention."""
        ...

    async def pick(self, task_types: Sequence[str], limit: int) -> list[tuple[Task, int]]:
        """The first claimable tasks of these types, in claim order, each with its payload's size.

        Nobody else claims them now.
        """
        ...

    async def payloads(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """The payloads of tasks by their numbers; those that are empty or lost may be left out."""
        ...

    async def next_due(self) -> int | None:
        """The earliest `run_at` among the tasks that wait for their time."""
        ...

    async def count(self, tally: Tally, wall: int) -> None:
        """Change the counters."""
        ...


class Transaction:
    """Carries a batch out inside a transaction that the engine begins and ends."""

    work: WorkingSet

    def __init__(self, tables: Tables, batch: Batch) -> None:
        self.outcomes: list[Outcome | TaskQueueError] = [0] * len(batch.commands)
        self.next_due: int | None = None
        self._tables = tables
        self._batch = batch
        self._commands = [bare(command) for command in batch.commands]
        self._is_noted = False
        self._promoted: dict[int, str] = {}
        self._withheld: Counter[str] = Counter()
        self._tasks_left = MOST_CLAIMED
        self._bytes_left = LARGEST_BATCH_BYTES

    async def run(self) -> None:
        """Decide and write everything but the claims, then the claims."""
        await self._load()
        may_do_chores = await self._leads()
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
                    self.outcomes[place] = self._decide(command, may_do_chores)
        await self._write()
        await self._change_keys(of_keys)
        for place, chore in chores:
            self.outcomes[place] = await self._do_chore(chore) if may_do_chores else _NOT_LEADER
        for alike in _runs_of_same_types(await self._serve_again(claimants)):
            await self._serve(alike)
        self.next_due = await self._earliest_due(chores)
        await self._write_audit()
        if self.has_changed:
            await self._tables.count(self.work.tally, self._batch.wall)

    @property
    def has_changed(self) -> bool:
        """Whether there is anything to commit."""
        return self.work.has_changed or self._is_noted or bool(self._promoted)

    def told(self, pending: int) -> Applied:
        """What the batch came to, once it is durable; `pending` is the depth of the queue."""
        ready = self.work.newly_ready() + Counter(self._promoted.values()) + self._withheld
        return Applied(self.outcomes, self.work.moved, ready, self.next_due, pending)

    def pending_change(self) -> int:
        """By how many the pending tasks have grown."""
        return sum(
            present
            for key, (present, _) in self.work.tally.changes().items()
            if key.status is Status.PENDING
        )

    async def _leads(self) -> bool:
        """Whether housekeeping may be done, if there is any."""
        return (
            any(
                isinstance(command, Promote | Purge)
                or (isinstance(command, TakeBack) and command.is_chore)
                for command in self._commands
            )
            and await self._tables.leads()
        )

    async def _load(self) -> None:
        wanted = [
            place
            for command in self._commands
            if isinstance(command, Submit | Claim) and (place := kept_under(command)) is not None
        ]
        kept = await self._tables.kept(wanted, self._batch.wall) if wanted else []
        tasks = await self._load_tasks(kept)
        submits = sum(isinstance(command, Submit) for command in self._commands)
        next_seq = await self._tables.next_seq(submits)
        self.work = WorkingSet(self._batch, tasks, next_seq, kept)

    async def _load_tasks(self, kept: list[Kept]) -> list[Task]:
        ids = [
            command.task_id
            for command in self._commands
            if not isinstance(command, Submit | Claim | Promote | Purge | KeyCommand)
        ]
        new = [command.task.id for command in self._commands if isinstance(command, Submit)]
        for answer in kept:
            if answer.scope == repeats.CLAIM:
                ids += [task_id for task_id, _token in repeats.claimed(answer)]
        if not (ids or new):
            return []
        tasks = await self._tables.load(ids, new)
        if not {task.id for task in tasks}.issubset((*ids, *new)):
            raise DataDamaged("the index of ids leads to a task that was not asked for")
        return tasks

    def _decide(self, command: Any, may_do_chores: bool) -> Outcome | TaskQueueError:
        if isinstance(command, TakeBack) and command.is_chore and not may_do_chores:
            return _NOT_LEADER
        try:
            if isinstance(command, Submit):
                return self.work.submit(command)
            return self.work.settle(command)
        except TaskQueueError as error:
            return error

    async def _write(self) -> None:
        await self._tables.write(self.work.take_changes(), self._batch.wall)

    async def _change_keys(self, commands: list[tuple[int, KeyCommand]]) -> None:
        if not commands:
            return
        ring = KeyRing(await self._tables.keys(), self._batch.wall)
        for place, command in commands:
            try:
                self.outcomes[place] = ring.settle(command)
            except TaskQueueError as error:
                self.outcomes[place] = error
        if ring.changed:
            await self._tables.save_keys(list(ring.changed.values()))
            self._is_noted = True

    async def _write_audit(self) -> None:
        entries = [
            audit_entry(command, outcome, self._batch.wall)
            for command, outcome in zip(self._batch.commands, self.outcomes, strict=True)
            if isinstance(command, Audited)
        ]
        if entries:
            await self._tables.enter(entries)
            self._is_noted = True

    async def _do_chore(self, chore: Promote | Purge) -> int | TaskQueueError:
        try:
            if isinstance(chore, Promote):
                return await self._promote(chore)
            return await self._purge(chore)
        except DataDamaged as error:
            return error

    async def _promote(self, chore: Promote) -> int:
        due = await self._tables.promote(self._batch.wall, chore.limit)
        self._promoted.update(due)
        return len(due)

    async def _purge(self, chore: Purge) -> int:
        purged = await self._tables.purge(chore, self._batch.wall)
        for task_type, status, tier, number in purged.tasks:
            self.work.tally.remove(task_type, status, tier, number)
        self._is_noted |= bool(purged.most)
        return purged.most

    async def _serve_again(self, claimants: list[Claimant]) -> list[Claimant]:
        """Give repeated claims what they were given before; return the others."""
        others: list[Claimant] = []
        for place, claim in claimants:
            held = self.work.still_held(claim) if claim.repeat is not None else []
            if held:
                # The sizes are not known here; a part at a time keeps the memory bounded.
                payloads = await self._payloads([(task, LARGEST_CLAIM_BYTES) for task in held])
                self.outcomes[place] = [ClaimedTask(task, payloads[task.seq]) for task in held]
            else:
                others.append((place, claim))
        return others

    async def _serve(self, claimants: list[Claimant]) -> None:
        """Deal ready tasks out to claims on the same types, first come, first served."""
        try:
            parts, payloads = await self._choose(claimants)
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
        await self._write()

    async def _choose(self, claimants: list[Claimant]) -> tuple[list[list[Task]], dict[int, bytes]]:
        """Each claim's tasks, and their payloads; what is damaged is set aside on the way."""
        while True:
            picked = await self._pick(claimants)
            parts = self._deal(claimants, picked)
            number = sum(map(len, parts))
            payloads = await self._payloads(picked[:number])
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
            await self._write()

    async def _pick(self, claimants: list[Claimant]) -> list[tuple[Task, int]]:
        types = set(claimants[0][1].task_types)
        limit = sum(claim.limit for _, claim in claimants)
        # One more than may be handed out tells whether there is more.
        picked = await self._tables.pick(sorted(types), min(limit, self._tasks_left + 1))
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

    async def _payloads(self, picked: list[tuple[Task, int]]) -> dict[int, bytes]:
        """The bytes of tasks by their seq; where they are lost, none."""
        payloads = {task.seq: b"" for task, _ in picked}
        for seqs in _cut_by_weight(picked):
            payloads.update(await self._tables.payloads(seqs))
        return payloads

    async def _earliest_due(self, chores: list[tuple[int, Promote | Purge]]) -> int | None:
        """The earliest task that the batch left waiting; after a promotion, of all that wait."""
        if any(isinstance(chore, Promote) for _, chore in chores):
            return await self._tables.next_due()
        return self.work.waiting_run_at()


def carried_out(steps: Coroutine[Any, Any, Result]) -> Result:
    """The result of a coroutine that never waits. Raises RuntimeError if it does."""
    try:
        steps.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    steps.close()
    raise RuntimeError("the tables of this engine are to answer at once")


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
