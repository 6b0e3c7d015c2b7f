"""One batch inside one transaction, the same for every engine: load, decide, write, claim, count.

It is written as coroutines over the tables of an engine. Those of an engine that answers without
waiting never suspend, and `carried_out` runs such a transaction to its end on the spot.
"""

from collections import Counter
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

from taskqueue.core import repeats
from taskqueue.core.batch import (
    Applied,
    Batch,
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
from taskqueue.core.repeats import Kept
from taskqueue.core.task import Status, Task
from taskqueue.storage.claiming import Claimant, Claiming
from taskqueue.storage.tables import Tables

_NOT_LEADER: Final = BrokerUnavailable("this broker does not lead any more, another one does")

Result = TypeVar("Result")


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
        await self._serve(claimants)
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
            if isinstance(command, Submit | Claim)
            for place in kept_under(command)
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
            elif answer.scope == repeats.UNIQUE:
                ids.append(repeats.holder_of(answer).task_id)
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

    async def _serve(self, claimants: list[Claimant]) -> None:
        if claimants:
            claiming = Claiming(
                self._tables, self.work, self._batch.wall, self.outcomes, self._promoted
            )
            await claiming.serve(claimants)
            self._withheld = claiming.withheld

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
