"""The tables of the PostgreSQL engine, as a transaction uses them, each statement for all rows.

Rows that may be wanted by two brokers are locked in the order of their ids, and what a transaction
waits for comes always in the same order: unique keys, tasks, lanes, new ids, keys. So no two wait
for each other.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from taskqueue.core import repeats
from taskqueue.core.audit import AuditEntry
from taskqueue.core.batch import MINUTE, Changes, Tally, readiness
from taskqueue.core.commands import Purge
from taskqueue.core.errors import BrokerUnavailable, DataDamaged
from taskqueue.core.keys import Key
from taskqueue.core.repeats import Kept
from taskqueue.core.task import Status, Task, tier_of
from taskqueue.storage.postgres import statements as sql
from taskqueue.storage.postgres.connections import Connection
from taskqueue.storage.postgres.days import DAY, first_seq, step_of
from taskqueue.storage.postgres.lanes import Lane, Lanes
from taskqueue.storage.rows import TASK_FIELDS, decoded, row_of_task
from taskqueue.storage.tables import Purged, Tables

ENDED: Final = frozenset({Status.COMPLETED, Status.CANCELLED})
"""The statuses of tasks that are in the archive; all others are live."""

FLOOR_MARGIN: Final = 60_000_000
"""Microseconds that a look at what is due begins before the one that found it all."""

WHOLE_LOOKS: Final = 60
"""One in so many looks begins at the beginning."""

FIELDS: Final = len(TASK_FIELDS)


class Meanwhile(Exception):
    """Another broker has done something since this transaction looked: it is to look again."""


class Memory:
    """What a broker's transactions know from one to the next."""

    def __init__(self) -> None:
        self.broker = 0
        self.number = 0
        """Of the latest batch that is written."""
        self.term = 0
        """Of this broker's leadership; its housekeeping is refused in any other."""
        self.step = 0
        """The latest step that tasks were numbered in."""
        self.lanes = Lanes()
        self.latest_claims: dict[str, str] = {}
        """By worker, the key under which the answer to its latest claim is kept."""
        self.due_floor = 0
        """No task waits for an earlier moment than this one, as far as is known."""
        self.promotions = 0
        self.past_retention = 0
        """The moment before which tasks ended that need not be kept, as the latest purge said."""


def as_tasks(rows: Iterable[Any]) -> list[Task]:
    """Tasks from the first columns of rows. Raises DataDamaged where they make no sense."""
    try:
        return msgspec.convert([decoded(row[:FIELDS]) for row in map(tuple, rows)], list[Task])
    except msgspec.MsgspecError as error:
        raise DataDamaged(f"a stored row makes no sense: {error}") from error


class PostgresTables(Tables):
    """Reads and writes inside the transaction that is open on a connection."""

    def __init__(
        self, connection: Connection, memory: Memory, wall: int, *, trusts_new: bool
    ) -> None:
        self._connection = connection
        self._memory = memory
        self._wall = wall
        self._trusts_new = trusts_new
        """Whether new tasks are looked for in the archive once they are there, not before."""
        self._weights: dict[int, int] = {}
        self._live: set[int] = set()
        self._picked: dict[int, Task] = {}
        self._unique: set[str] = set()
        """The unique keys that are held and that nobody else can take now."""
        self.new_lanes: list[tuple[str, int]] = []
        """To be known once the transaction is committed."""
        self.claims_kept: dict[str, str] = {}
        """Likewise."""
        self.due_floor: int | None = None
        """Likewise, if it was looked for what is due."""

    async def load(self, ids: Sequence[str], new: Sequence[str]) -> list[Task]:
        wanted = sorted({*ids, *new})
        live = await self._connection.fetch(sql.LOAD_LIVE, wanted)
        passed_over = set(new).difference(ids) if self._trusts_new else set()
        rest = _without(wanted, live, passed_over)
        ended = await self._connection.fetch(sql.LOAD_ENDED, rest) if rest else []
        missing = _without(rest, ended, set(new))
        # One may have moved between the two looks; what a single look finds nowhere is nowhere.
        if missing and await self._connection.fetchval(sql.IS_SOMEWHERE, missing):
            raise Meanwhile
        self._live.update(row[0] for row in live)
        self._weights.update((row[0], row[FIELDS]) for row in (*live, *ended))
        return as_tasks((*live, *ended))

    async def kept(self, places: Sequence[tuple[str, str, str]], wall: int) -> list[Kept]:
        unique = sorted({name for scope, name, _ in places if scope == repeats.UNIQUE})
        others = [place for place in places if place[0] != repeats.UNIQUE]
        rows: list[Any] = []
        if unique:
            rows += await self._connection.fetch(sql.HOLD_UNIQUE_NAMES, _texts(unique))
            self._unique = {row[1] for row in rows}
        if others:
            scopes, names, keys = zip(*others, strict=True)
            rows += await self._connection.fetch(
                sql.KEPT, scopes, _texts(names), _texts(keys), wall
            )
        return [Kept(*row) for row in rows]

    async def next_seq(self, submits: int) -> int:
        if submits:
            self._memory.step = max(self._memory.step + 1, step_of(self._wall))
        return first_seq(self._memory.step, self._memory.broker)

    async def write(self, changes: Changes, wall: int) -> None:
        tasks = [*changes.inserted, *changes.updated]
        for task in tasks:
            if readiness(task, wall) == 1:
                self._memory.lanes.lower(task.task_type, task.priority, task.run_at)
            self._picked.pop(task.seq, None)
        await self._open_lanes(tasks)
        if changes.deleted:
            await self._delete([task.seq for task in changes.deleted])
        await self._insert(changes)
        await self._update(changes.updated, wall)
        await self._write_bytes(changes)
        if changes.has_notes:
            await self._write_notes(changes)
        await self._keep(changes.kept)

    async def keys(self) -> list[Key]:
        await self._connection.execute(sql.LOCK_KEYS)
        return as_keys(await self._connection.fetch(sql.KEYS))

    async def save_keys(self, keys: Sequence[Key]) -> None:
        for key in keys:
            await self._connection.execute(
                sql.SAVE_KEY, *msgspec.to_builtins(msgspec.structs.astuple(key))
            )

    async def enter(self, entries: Sequence[AuditEntry]) -> None:
        rows = [msgspec.structs.astuple(entry)[1:] for entry in entries]
        columns = [_texts(column) for column in zip(*rows, strict=True)]
        await self._connection.execute(sql.ENTER, *columns)

    async def leads(self) -> bool:
        memory = self._memory
        term = await self._connection.fetchval(sql.HOLD_TERM, memory.broker, memory.term)
        return term is not None

    async def promote(self, wall: int, limit: int) -> dict[int, str]:
        memory = self._memory
        memory.promotions += 1
        if memory.promotions % WHOLE_LOOKS == 1:
            memory.due_floor = 0
        rows = await self._connection.fetch(sql.PROMOTE, self._memory.due_floor, wall, limit)
        for _, task_type, priority, run_at in rows:
            memory.lanes.lower(task_type, priority, run_at)
        # A lane whose first task came to another broker for later may be known to that one only.
        known = {(lane.task_type, lane.priority) for lane in memory.lanes.all()}
        self.new_lanes += sorted({(row[1], row[2]) for row in rows} - known)
        if len(rows) < limit:
            self.due_floor = wall - FLOOR_MARGIN
        return {seq: task_type for seq, task_type, _, _ in rows}

    async def purge(self, purge: Purge, wall: int) -> Purged:
        # Whole days are dropped with their partitions; rows one by one only where retention is
        # shorter, and in the partition for what outlived its day.
        self._memory.past_retention = purge.before
        table = "archive" if wall - purge.before < DAY else "archive_rest"
        past = await self._connection.fetch(
            sql.PURGE.format(table=table), purge.before, purge.limit
        )
        expired = await self._connection.fetch(sql.PURGE_EXPIRED, wall, purge.limit)
        rows = [*past, *expired]
        await self._delete_bytes([row[0] for row in rows])
        return Purged(
            [(task_type, Status(status), tier_of(rank), 1) for _, task_type, status, rank in rows],
            max(len(past), len(expired), await self._forget(purge, wall)),
        )

    async def checkpoints(self, seqs: Sequence[int]) -> dict[int, bytes]:
        return dict(map(tuple, await self._connection.fetch(sql.CHECKPOINTS, seqs)))

    async def pick(self, task_types: Sequence[str], limit: int) -> list[tuple[Task, int]]:
        self.leave_rest()
        lanes = self._memory.lanes.of(task_types)
        # Others may have told of a new lane meanwhile: looked into twice, it would give all twice.
        known = {lane[:2] for lane in lanes}
        lanes += [
            Lane(*lane, 0)
            for lane in dict.fromkeys(self.new_lanes)
            if lane[0] in task_types and lane not in known
        ]
        if not lanes or limit <= 0:
            return []
        lanes.sort(key=lambda lane: -lane.priority)
        levels = tuple(Counter(lane.priority for lane in lanes).values())
        bindings = [value for lane in lanes for value in lane]
        rows = await self._connection.fetch(sql.pick(levels), limit, *bindings)
        tasks = as_tasks(rows)
        self._memory.lanes.note(lanes, tasks, limit, self._wall)
        picked = [(task, int(row[FIELDS])) for task, row in zip(tasks, rows, strict=True)]
        self._live.update(task.seq for task in tasks)
        self._picked = {task.seq: task for task in tasks}
        self._weights.update((task.seq, weight) for task, weight in picked)
        # Each merge is in order; what was passed over for a moment may come a little later.
        return sorted(picked, key=lambda one: (-one[0].priority, one[0].run_at, one[0].seq))

    def leave_rest(self) -> None:
        """What was picked and not claimed is to be found by the next pick."""
        for task in self._picked.values():
            self._memory.lanes.lower(task.task_type, task.priority, task.run_at)
        self._picked = {}

    async def payloads(self, seqs: Sequence[int]) -> dict[int, bytes]:
        return dict(map(tuple, await self._connection.fetch(sql.PAYLOADS, seqs)))

    async def next_due(self) -> int | None:
        due: int | None = await self._connection.fetchval(sql.NEXT_DUE, self._memory.due_floor)
        return due

    async def count(self, tally: Tally, wall: int) -> None:
        counts = [[*key, *change] for key, change in tally.changes().items() if any(change)]
        seen = tally.minute
        tag = await self._connection.execute(
            sql.NOTE_BATCH,
            self._memory.broker,
            self._memory.number + 1,
            wall // MINUTE * MINUTE,
            [seen.completed, seen.failed, seen.busy],
            msgspec.json.encode(counts).decode(),
        )
        if tag != "INSERT 0 1":
            raise BrokerUnavailable(
                "This broker was silent for so long that the others have given it up; it is "
                "joining them again, nothing was changed, try again",
                retry_after=1.0,
            )

    async def _open_lanes(self, tasks: list[Task]) -> None:
        lanes = self._memory.lanes.unknown(tasks)
        if lanes:
            types, priorities = zip(*lanes, strict=True)
            await self._connection.execute(sql.INSERT_LANES, types, priorities)
            self.new_lanes += lanes

    async def _insert(self, changes: Changes) -> None:
        if not changes.inserted:
            return
        self._weights.update((seq, len(payload)) for seq, payload in changes.payloads)
        # In the order of their ids, as others who bring the same ones do.
        tasks = sorted(changes.inserted, key=lambda task: task.id)
        await self._put_live(tasks)
        # Nobody else can submit them from here on. Whoever did before may have seen them end.
        if await self._connection.fetchval(sql.ENDED_MEANWHILE, [task.id for task in tasks]):
            raise Meanwhile
        ended = [task for task in tasks if task.status in ENDED]
        if ended:
            await self._connection.execute(sql.DELETE_LIVE, [task.seq for task in ended])
            await self._put_ended(ended)
        seqs, payloads = zip(*changes.payloads, strict=True)
        await self._connection.execute(sql.INSERT_PAYLOADS, seqs, payloads)

    async def _update(self, tasks: list[Task], wall: int) -> None:
        staying = [task for task in tasks if task.seq in self._live and task.status not in ENDED]
        leaving = [task.seq for task in tasks if task.seq in self._live and task.status in ENDED]
        moving = [task for task in tasks if (task.seq in self._live) is (task.status in ENDED)]
        returning = [task.seq for task in moving if task.seq not in self._live]
        if staying:
            rows = [_changing(task, wall) for task in staying]
            await self._connection.execute(sql.UPDATE_LIVE, *zip(*rows, strict=True))
        if leaving:
            await self._connection.execute(sql.DELETE_LIVE, leaving)
        if returning:
            await self._connection.execute(sql.DELETE_ENDED, returning)
        await self._put_live([task for task in moving if task.status not in ENDED])
        await self._put_ended([task for task in moving if task.status in ENDED])

    async def _put_live(self, tasks: list[Task]) -> None:
        if not tasks:
            return
        rows = [
            (*_row(task), self._weights.get(task.seq, 0), readiness(task, self._wall))
            for task in tasks
        ]
        await self._connection.execute(sql.INSERT_LIVE, *zip(*rows, strict=True))
        self._live.update(task.seq for task in tasks)

    async def _put_ended(self, tasks: list[Task]) -> None:
        if not tasks:
            return
        rows = [(*_row(task), self._weights.get(task.seq, 0)) for task in tasks]
        await self._connection.execute(sql.INSERT_ENDED, *zip(*rows, strict=True))
        self._live.difference_update(task.seq for task in tasks)

    async def _write_bytes(self, changes: Changes) -> None:
        results = changes.checked_results()
        if results:
            await self._connection.execute(sql.INSERT_RESULTS, *zip(*results, strict=True))
        if changes.failures:
            rows = [
                (seq, *map(_text, msgspec.structs.astuple(failure)))
                for seq, failure in changes.failures
            ]
            await self._connection.execute(sql.INSERT_FAILURES, *zip(*rows, strict=True))

    async def _write_notes(self, changes: Changes) -> None:
        if changes.logs:
            rows = [(seq, *map(_text, msgspec.structs.astuple(line))) for seq, line in changes.logs]
            await self._connection.execute(sql.INSERT_LOGS, *zip(*rows, strict=True))
        if changes.checkpoints:
            columns = zip(*sorted(changes.checkpoints.items()), strict=True)
            await self._connection.execute(sql.PUT_CHECKPOINTS, *columns)

    async def _delete(self, seqs: list[int]) -> None:
        for deletion in (sql.DELETE_LIVE, sql.DELETE_ENDED):
            await self._connection.execute(deletion, seqs)
        await self._delete_bytes(seqs)

    async def _delete_bytes(self, seqs: list[int]) -> None:
        if seqs:
            for deletion in sql.DELETE_BYTES:
                await self._connection.execute(deletion, seqs)

    async def _keep(self, answers: list[Kept]) -> None:
        if not answers:
            return
        claims = {one.name: one.key for one in answers if one.scope == repeats.CLAIM}
        old = [
            (repeats.CLAIM, name, known)
            for name, key in claims.items()
            if (known := self._memory.latest_claims.get(name, key)) != key
        ]
        taken = {one.name for one in answers if one.scope == repeats.UNIQUE} & self._unique
        old += [(repeats.UNIQUE, name, name) for name in taken]
        self._unique -= taken
        if old:
            columns = [_texts(column) for column in zip(*sorted(old), strict=True)]
            await self._connection.execute(sql.FORGET_NAMED, *columns)
        latest = {(one.scope, one.name, one.key): one for one in answers}
        # In one order, as others who keep the same ones do.
        rows = [msgspec.structs.astuple(latest[place]) for place in sorted(latest)]
        columns = [_texts(column) for column in zip(*rows, strict=True)]
        tag = await self._connection.execute(sql.KEEP, *columns, self._wall)
        if int(tag.rpartition(" ")[2]) < len(rows):
            raise Meanwhile
        self.claims_kept |= claims

    async def _forget(self, purge: Purge, wall: int) -> int:
        numbers: list[int] = []
        await self._connection.execute(sql.KEEP_UNIQUE, wall, purge.limit)
        for statement, before in (
            (sql.FORGET_KEPT, wall),
            (sql.FORGET_AUDIT, purge.audit_before),
        ):
            tag = await self._connection.execute(statement, before, purge.limit)
            numbers.append(int(tag.rpartition(" ")[2]))
        return max(numbers)


def as_keys(rows: Iterable[Any]) -> list[Key]:
    """API keys from rows. Raises DataDamaged where they make no sense."""
    try:
        return msgspec.convert([tuple(row) for row in rows], list[Key])
    except msgspec.ValidationError as error:
        raise DataDamaged(f"a stored key makes no sense: {error}") from error


def _row(task: Task) -> tuple[Any, ...]:
    return tuple(map(_text, row_of_task(task)))


def _changing(task: Task, wall: int) -> tuple[Any, ...]:
    return (
        task.seq,
        task.status,
        readiness(task, wall),
        task.run_at,
        task.updated_at,
        task.last_event,
        task.retry_count,
        task.token,
        _text(task.worker_id),
        task.claimed_at,
        task.deadline,
        task.progress,
        _text(task.progress_note),
        task.losses,
        task.priority,
        task.expires_at,
        task.logged,
    )


def _without(ids: list[str], rows: Sequence[Any], others: set[str]) -> list[str]:
    """The ids that are neither among the rows nor the others."""
    known = others.union(row[1] for row in rows)
    return [task_id for task_id in ids if task_id not in known]


def _text(value: Any) -> Any:
    # PostgreSQL has no NUL in texts; its visible sign says as much.
    return value.replace("\0", "␀") if isinstance(value, str) and "\0" in value else value


def _texts(column: Sequence[Any]) -> list[Any]:
    return [_text(value) for value in column]
