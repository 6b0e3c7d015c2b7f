"""The tables of the SQLite engine, as a transaction uses them. No threads, no commit.

Every coroutine here answers without waiting.
"""

from collections.abc import Sequence
from typing import Any, Final

import apsw
import msgspec

from taskqueue.core.audit import AuditEntry
from taskqueue.core.batch import MINUTE, Changes, CounterKey, Tally, readiness
from taskqueue.core.commands import Purge
from taskqueue.core.errors import DataDamaged
from taskqueue.core.keys import Key
from taskqueue.core.repeats import Kept
from taskqueue.core.task import Status, Task, Tier, tier_of
from taskqueue.storage.rows import row_of_task
from taskqueue.storage.sqlite import statements as sql
from taskqueue.storage.tables import Purged, Tables

MINUTES_KEPT: Final = 7 * 24 * 60 * MINUTE

_TASKS: Final = msgspec.json.Decoder(list[Task])
_PICKED: Final = msgspec.json.Decoder(list[tuple[Task, int]])
_KEPT: Final = msgspec.json.Decoder(list[Kept])
_KEYS: Final = msgspec.json.Decoder(list[Key])
_PAIRS: Final = msgspec.json.Decoder(list[tuple[int, int]])
_DUE: Final = msgspec.json.Decoder(list[tuple[int, str]])
_FINISHED: Final = msgspec.json.Decoder(list[tuple[int, str, Status, int, int]])

_PURGEABLE: Final = frozenset({Status.COMPLETED, Status.CANCELLED})


def load_tasks(connection: apsw.Connection, statement: str, bindings: Sequence[Any]) -> list[Task]:
    """The tasks that a statement returns as one JSON array."""
    return sql.decoded(connection, _TASKS, statement, bindings)


def load_keys(connection: apsw.Connection) -> list[Key]:
    """Every API key, oldest first."""
    return sql.decoded(connection, _KEYS, sql.KEYS)


class SqliteTables(Tables):
    """Reads and writes inside the transaction that is open on a connection."""

    def __init__(self, connection: apsw.Connection, next_seq: int) -> None:
        self._connection = connection
        self._next_seq = next_seq

    async def load(self, ids: Sequence[str], new: Sequence[str]) -> list[Task]:
        return load_tasks(self._connection, sql.LOAD, (_as_text([*ids, *new]),))

    async def kept(self, places: Sequence[tuple[str, str, str]], wall: int) -> list[Kept]:
        return sql.decoded(self._connection, _KEPT, sql.KEPT, (_as_text(places), wall))

    async def next_seq(self, submits: int) -> int:  # noqa: ARG002  there is nobody else
        return self._next_seq

    async def write(self, changes: Changes, wall: int) -> None:
        connection = self._connection
        self._delete([task.seq for task in changes.deleted])
        sql.INSERT_TASKS.run(
            connection, [(*row_of_task(task), readiness(task, wall)) for task in changes.inserted]
        )
        sql.INSERT_PAYLOADS.run(connection, changes.payloads)
        sql.UPDATE_TASKS.run(connection, [_as_update(task, wall) for task in changes.updated])
        sql.INSERT_RESULTS.run(connection, changes.checked_results())
        sql.INSERT_FAILURES.run(
            connection,
            [(seq, *msgspec.structs.astuple(failure)) for seq, failure in changes.failures],
        )
        for answer in changes.kept:
            connection.execute(sql.KEEP, msgspec.structs.astuple(answer))
        if changes.has_notes:
            self._write_notes(changes)

    async def keys(self) -> list[Key]:
        return load_keys(self._connection)

    async def save_keys(self, keys: Sequence[Key]) -> None:
        for key in keys:
            row = msgspec.structs.astuple(
                msgspec.structs.replace(key, permissions=_as_text(key.permissions))
            )
            self._connection.execute(sql.SAVE_KEY, row)

    async def enter(self, entries: Sequence[AuditEntry]) -> None:
        for entry in entries:
            _, *row = msgspec.structs.astuple(entry)
            self._connection.execute(sql.ADD_TO_AUDIT, row)

    async def leads(self) -> bool:
        return True

    async def promote(self, wall: int, limit: int) -> dict[int, str]:
        due = sql.decoded(self._connection, _DUE, sql.DUE, (wall, limit))
        if due:
            self._connection.execute(sql.PROMOTE, (sql.as_json_numbers(seq for seq, _ in due),))
        return dict(due)

    async def purge(self, purge: Purge, wall: int) -> Purged:
        gone: list[tuple[str, Status, Tier, int]] = []
        most = self._forget(purge, wall)
        for statement, before in (
            (sql.PAST_RETENTION, purge.before),
            (sql.PAST_OWN_RETENTION, wall),
        ):
            finished = sql.decoded(self._connection, _FINISHED, statement, (before, purge.limit))
            if any(
                status not in _PURGEABLE or moment >= before for _, _, status, _, moment in finished
            ):
                raise DataDamaged("the index of ended tasks leads to one that may not be deleted")
            self._delete([seq for seq, *_ in finished])
            gone += [(name, status, tier_of(rank), 1) for _, name, status, rank, _ in finished]
            most = max(most, len(finished))
        return Purged(gone, most)

    def _delete(self, seqs: Sequence[int]) -> None:
        if seqs:
            for deletion in sql.DELETIONS:
                self._connection.execute(deletion, (sql.as_json_numbers(seqs),))

    def _write_notes(self, changes: Changes) -> None:
        sql.INSERT_LOGS.run(
            self._connection,
            [(seq, *msgspec.structs.astuple(line)) for seq, line in changes.logs],
        )
        sql.PUT_CHECKPOINTS.run(self._connection, list(changes.checkpoints.items()))

    def _forget(self, purge: Purge, wall: int) -> int:
        numbers: list[int] = []
        self._connection.execute(sql.HOLD_UNIQUE, (wall, purge.limit))
        for statement, before in (
            (sql.FORGET_KEPT, wall),
            (sql.FORGET_AUDIT, purge.audit_before),
        ):
            self._connection.execute(statement, (before, purge.limit))
            numbers.append(self._connection.changes())
        return max(numbers)

    async def pick(self, task_types: Sequence[str], limit: int) -> list[tuple[Task, int]]:
        bindings = [value for name in task_types for value in (name, limit)]
        return sql.decoded(self._connection, _PICKED, sql.pick(len(task_types)), (*bindings, limit))

    async def payloads(self, seqs: Sequence[int]) -> dict[int, bytes]:
        payloads: dict[int, bytes] = {}
        sizes, joined = sql.row_of(self._connection, sql.PAYLOADS, (sql.as_json_numbers(seqs),))
        start = 0
        for seq, size in _PAIRS.decode(sizes):
            if size:
                payloads[seq] = joined[start : start + size]
                start += size
        return payloads

    async def checkpoints(self, seqs: Sequence[int]) -> dict[int, bytes]:
        return dict(sql.rows_of(self._connection, sql.CHECKPOINTS, (sql.as_json_numbers(seqs),)))

    async def next_due(self) -> int | None:
        due: int | None = sql.row_of(self._connection, sql.NEXT_DUE)[0]
        return due

    async def count(self, tally: Tally, wall: int) -> None:
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
            minute = wall // MINUTE * MINUTE
            self._connection.execute(
                sql.ADD_TO_MINUTE, (minute, seen.completed, seen.failed, seen.busy)
            )
            self._connection.execute(sql.FORGET_MINUTES, (minute - MINUTES_KEPT,))


def _as_text(value: Any) -> Any:
    return msgspec.json.encode(value).decode()


def _as_update(task: Task, wall: int) -> tuple[Any, ...]:
    return (
        task.seq,
        task.status,
        readiness(task, wall),
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
        task.losses,
        task.priority,
        task.expires_at,
        task.logged,
    )
