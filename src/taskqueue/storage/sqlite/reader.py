"""Reads: short, on read-only connections of their own, never in the writer's way."""

import contextlib
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Final

import apsw
import msgspec

from taskqueue.core.audit import AuditEntry
from taskqueue.core.batch import CounterKey, Minute
from taskqueue.core.errors import BrokerUnavailable, DataDamaged
from taskqueue.core.keys import Key
from taskqueue.core.task import Failure, LogLine, Status, Task, TaskDetail, Tier
from taskqueue.storage.port import Count, TaskQuery, Totals
from taskqueue.storage.sqlite import statements as sql
from taskqueue.storage.sqlite.tables import load_keys, load_tasks

ABOVE_ALL: Final = 2**63 - 1
CACHE_KIB: Final = 8 * 1024
BUSY_MS: Final = 2_000

HOLDERS: Final = """
    WITH RECURSIVE holder (id) AS (
        SELECT min(worker_id) FROM tasks WHERE status = 'in_progress'
        UNION ALL
        SELECT (SELECT min(worker_id) FROM tasks
                WHERE status = 'in_progress' AND worker_id > holder.id)
        FROM holder WHERE holder.id IS NOT NULL)
    SELECT json_group_array(id) FROM holder WHERE id IS NOT NULL"""
HELD: Final = f"""
    SELECT {sql.AS_JSON} FROM (
        SELECT tasks.* FROM json_each(?) AS holder CROSS JOIN tasks
        ON status = 'in_progress' AND worker_id = holder.value)"""
OVERDUE: Final = f"""
    SELECT {sql.AS_JSON} FROM (
        SELECT tasks.* FROM json_each(?) AS holder CROSS JOIN tasks
        ON status = 'in_progress' AND worker_id = holder.value AND deadline <= ?
        LIMIT ?)"""
EXPIRED: Final = f"""
    SELECT {sql.AS_JSON} FROM (
        SELECT * FROM tasks INDEXED BY by_expiry WHERE expires_at IS NOT NULL
        AND status IN ('pending', 'failed') AND expires_at <= ? LIMIT ?)"""

_ENTRIES: Final = msgspec.json.Decoder(list[AuditEntry])
_NAMES: Final = msgspec.json.Decoder(list[str])


class Reader:
    """Questions to the database, each answered from one snapshot. Safe to use from any thread.

    All raise BrokerUnavailable where the database cannot be read and DataDamaged where what it
    holds makes no sense.
    """

    def __init__(self, database: Path, connections: int) -> None:
        self._database = database
        self._idle: SimpleQueue[apsw.Connection | None] = SimpleQueue()
        for _ in range(connections):
            self._idle.put(None)

    def close(self) -> None:
        """Close every connection; nothing may be under way."""
        with contextlib.suppress(Empty):
            while True:
                connection = self._idle.get_nowait()
                if connection is not None:
                    connection.close()

    def get(self, task_id: str) -> TaskDetail | None:
        """One task, its result checked against its checksum, its failures oldest first."""
        with self._snapshot() as connection:
            task = _load(connection, task_id)
            if task is None:
                return None
            result = _checked(
                sql.rows_of(connection, "SELECT crc, data FROM results WHERE seq = ?", (task.seq,)),
                f"the stored result of task {task_id} does not match its checksum",
            )
            failures = sql.rows_of(
                connection,
                "SELECT attempt, at, worker_id, kind, message, traceback FROM failures "
                "WHERE seq = ? ORDER BY rowid",
                (task.seq,),
            )
        return TaskDetail(task, result, [Failure(*row) for row in failures])

    def look(self, ids: Sequence[str]) -> list[Task]:
        """How these tasks stand."""
        with self._snapshot() as connection:
            return load_tasks(connection, sql.LOAD, (msgspec.json.encode(list(ids)).decode(),))

    def payload(self, task_id: str) -> bytes | None:
        """The bytes of a task, checked."""
        with self._snapshot() as connection:
            task = _load(connection, task_id)
            if task is None:
                return None
            rows = sql.rows_of(
                connection,
                "SELECT payload_crc, data FROM tasks JOIN payloads USING (seq) WHERE seq = ?",
                (task.seq,),
            )
        return _checked(rows, f"the stored payload of task {task_id} does not match its checksum")

    def logs(self, task_id: str) -> list[LogLine] | None:
        """The lines that the attempts at a task have logged, oldest first."""
        with self._snapshot() as connection:
            task = _load(connection, task_id)
            if task is None:
                return None
            rows = sql.rows_of(
                connection,
                "SELECT attempt, at, level, message FROM logs WHERE seq = ? ORDER BY rowid",
                (task.seq,),
            )
        return [LogLine(*row) for row in rows]

    def find(self, query: TaskQuery) -> list[Task]:
        """The tasks a query asks for, newest first, by the narrowest of the indexes that fit."""
        with self._snapshot() as connection:
            if _count(connection, query.status, query.task_type) <= query.offset:
                return []  # says at once what a scan of a whole type would say
            return load_tasks(connection, *list_statement(connection, query))

    def count(self, status: Status | None, task_type: str | None) -> int:
        """How many tasks there are, by the counters."""
        with self._snapshot() as connection:
            return _count(connection, status, task_type)

    def number(self, query: TaskQuery) -> int:
        """How many tasks a query with labels matches."""
        with self._snapshot() as connection:
            where, bindings = labelled(query)
            (number,) = sql.row_of(connection, f"SELECT count(*) {where}", bindings)
        return int(number)

    def totals(self, since: int) -> Totals:
        """The counters over all types and the recent minutes."""
        with self._snapshot() as connection:
            counts = sql.rows_of(connection, "SELECT * FROM counters WHERE task_type = ''")
            completed, failed, busy = sql.row_of(
                connection,
                "SELECT coalesce(sum(completed), 0), coalesce(sum(failed), 0), "
                "coalesce(sum(busy), 0) FROM minutes WHERE minute >= ?",
                (since,),
            )
            types = sql.rows_of(
                connection,
                "SELECT task_type FROM counters "
                "WHERE status IN ('pending', 'failed') AND present > 0 AND task_type <> '' "
                "GROUP BY task_type LIMIT 1000",
            )
            oldest = [self._oldest_ready(connection, task_type) for (task_type,) in types]
        return Totals(
            [_as_count(row) for row in counts],
            Minute(completed, failed, busy),
            min((one for one in oldest if one is not None), default=None),
        )

    def counts(self) -> list[Count]:
        """The counters of each type."""
        return [
            _as_count(row) for row in self._rows("SELECT * FROM counters WHERE task_type <> ''")
        ]

    def keys(self) -> list[Key]:
        """Every API key, oldest first."""
        with self._snapshot() as connection:
            return load_keys(connection)

    def audit_log(self, before: int, limit: int) -> list[AuditEntry]:
        """Entries of the audit log below a number, newest first."""
        with self._snapshot() as connection:
            return sql.decoded(connection, _ENTRIES, sql.AUDIT_LOG, (before, limit))

    def overdue(self, steady: int, limit: int) -> list[Task]:
        """Running tasks past their deadline: one look-up for each holder."""
        with self._snapshot() as connection:
            (holders,) = sql.row_of(connection, HOLDERS)
            return load_tasks(connection, OVERDUE, (holders, steady, limit))

    def expired(self, wall: int, limit: int) -> list[Task]:
        """Waiting tasks past their expiry."""
        with self._snapshot() as connection:
            return load_tasks(connection, EXPIRED, (wall, limit))

    def held(self, worker_ids: Sequence[str]) -> list[Task]:
        """What these workers hold."""
        wanted = msgspec.json.encode(list(worker_ids)).decode()
        with self._snapshot() as connection:
            return load_tasks(connection, HELD, (wanted,))

    def holders(self) -> list[str]:
        """Every worker that holds something: one step of the index for each."""
        with self._snapshot() as connection:
            return sql.decoded(connection, _NAMES, HOLDERS)

    def next_due(self) -> int | None:
        """When the next waiting task is due."""
        ((moment,),) = self._rows(sql.NEXT_DUE)
        return None if moment is None else int(moment)

    def audit(self) -> list[str]:
        """Each difference between what is counted and what is there."""
        found: list[str] = []
        with self._snapshot() as connection:
            for text, statement in _AUDIT:
                found += [text.format(*row) for row in sql.rows_of(connection, statement)]
        return found

    def _oldest_ready(self, connection: apsw.Connection, task_type: str) -> int | None:
        # By levels of priority, each one probe of the index: at most 256 for a type.
        (oldest,) = sql.row_of(
            connection,
            """
            WITH RECURSIVE level (priority) AS (
                SELECT max(priority) FROM tasks WHERE ready = 1 AND task_type = ?1
                UNION ALL
                SELECT (SELECT max(priority) FROM tasks
                        WHERE ready = 1 AND task_type = ?1 AND tasks.priority < level.priority)
                FROM level WHERE level.priority IS NOT NULL)
            SELECT min((SELECT min(run_at) FROM tasks
                        WHERE ready = 1 AND task_type = ?1 AND tasks.priority = level.priority))
            FROM level WHERE level.priority IS NOT NULL""",
            (task_type,),
        )
        return None if oldest is None else int(oldest)

    def _rows(self, statement: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._snapshot() as connection:
            return sql.rows_of(connection, statement, bindings)

    @contextmanager
    def _snapshot(self) -> Iterator[apsw.Connection]:
        """A read transaction; errors of the database come out as BrokerUnavailable."""
        connection = self._idle.get()
        try:
            connection = connection or self._open()
            connection.execute("BEGIN")
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")
        except apsw.Error as error:
            # One that has met an error is not used again.
            if connection is not None:
                with contextlib.suppress(apsw.Error):
                    connection.close()
                connection = None
            raise BrokerUnavailable(
                f"The storage cannot be read: {error}; try again", retry_after=1.0
            ) from error
        finally:
            self._idle.put(connection)

    def _open(self) -> apsw.Connection:
        connection = apsw.Connection(str(self._database), apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(BUSY_MS)
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}").fetchall()
        return connection


def _count(connection: apsw.Connection, status: Status | None, task_type: str | None) -> int:
    (number,) = sql.row_of(
        connection,
        "SELECT coalesce(sum(present), 0) FROM counters "
        "WHERE task_type = ?1 AND (?2 IS NULL OR status = ?2)",
        (task_type or "", status),
    )
    return int(number)


def list_statement(connection: apsw.Connection, query: TaskQuery) -> tuple[str, list[Any]]:
    """The statement that lists what a query asks for, and its bindings."""
    if query.is_labelled:
        where, values = labelled(query)
        before = ABOVE_ALL if query.before_seq is None else query.before_seq
        return (
            f"""
            SELECT {sql.AS_JSON} FROM (
                SELECT tasks.* {where} AND labels.seq < ? ORDER BY labels.seq DESC LIMIT ? OFFSET ?
            )""",
            [*values, before, query.limit, query.offset],
        )
    conditions: list[str] = []
    bindings: list[Any] = []
    if query.status is not None:
        # Spelt out: SQLite compares the text of a condition with that of a partial index.
        conditions.append(f"status = '{query.status}'")
        if query.status is not Status.IN_PROGRESS:
            conditions.append("status <> 'in_progress'")
    if query.task_type is not None:
        conditions.append("task_type = ?")
        bindings.append(query.task_type)
    if query.before_seq is not None:
        conditions.append("seq < ?")
        bindings.append(query.before_seq)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    statement = f"""
        SELECT {sql.AS_JSON} FROM (
            SELECT * FROM tasks {_best_index(connection, query)} {where}
            ORDER BY seq DESC LIMIT ? OFFSET ?)"""
    return statement, [*bindings, query.limit, query.offset]


def labelled(query: TaskQuery) -> tuple[str, list[Any]]:
    """Where tasks with all labels of a query come from, on what conditions, and its bindings."""
    first, *others = [*query.tags, *(f" {name}={value}" for name, value in query.metadata)]
    conditions = ["labels.label = ?"]
    bindings: list[Any] = [first]
    for label in others:
        conditions.append(
            "EXISTS (SELECT 1 FROM labels AS other "
            "WHERE other.label = ? AND other.seq = labels.seq)"
        )
        bindings.append(label)
    for column, value in (("status", query.status), ("task_type", query.task_type)):
        if value is not None:
            conditions.append(f"tasks.{column} = ?")
            bindings.append(value)
    return (
        f"FROM labels CROSS JOIN tasks ON tasks.seq = labels.seq WHERE {' AND '.join(conditions)}",
        bindings,
    )


def _best_index(connection: apsw.Connection, query: TaskQuery) -> str:
    if query.status is Status.IN_PROGRESS:
        return "INDEXED BY by_holder"  # few at any time: sorting them is cheap
    if query.status is None or query.task_type is None:
        return ""
    of_type = _count(connection, None, query.task_type)
    in_status = _count(connection, query.status, None)
    return "INDEXED BY by_type" if of_type < in_status else "INDEXED BY by_status"


def _load(connection: apsw.Connection, task_id: str) -> Task | None:
    found = load_tasks(connection, sql.LOAD, (msgspec.json.encode([task_id]).decode(),))
    if any(task.id != task_id for task in found):
        raise DataDamaged(f"the index of ids leads from {task_id} to another task")
    return found[0] if found else None


def _checked(rows: Any, complaint: str) -> bytes | None:
    for crc, data in rows:
        if zlib.crc32(data) != crc:
            raise DataDamaged(complaint)
        return bytes(data)
    return None


def _as_count(row: tuple[Any, ...]) -> Count:
    task_type, status, tier, present, entered = row
    try:
        return Count(CounterKey(task_type, Status(status), Tier(tier)), present, entered)
    except ValueError as error:
        raise DataDamaged(f"a stored counter makes no sense: {error}") from error


_TIER: Final = (
    "CASE WHEN priority >= 200 THEN 'high' WHEN priority >= 100 THEN 'normal' ELSE 'low' END"
)
_RECOUNT: Final = f"""
    WITH truth AS (
        SELECT task_type, status, {_TIER} AS tier, count(*) AS number FROM tasks GROUP BY 1, 2, 3
        UNION ALL
        SELECT '', status, {_TIER} AS tier, count(*) FROM tasks GROUP BY 1, 2, 3)
    SELECT task_type, status, tier, coalesce(present, 0), coalesce(number, 0)
    FROM truth FULL JOIN counters USING (task_type, status, tier)
    WHERE coalesce(present, 0) <> coalesce(number, 0)"""
_AUDIT: Final = (
    ("counter of type {0!r}, {1}, {2}: says {3}, there are {4}", _RECOUNT),
    (
        "task {0} is {1}, but its readiness is {2}",
        "SELECT id, status, ready FROM tasks "
        "WHERE (status IN ('pending', 'failed')) <> (ready IS NOT NULL)",
    ),
    (
        "task {0} runs without worker or deadline",
        "SELECT id FROM tasks WHERE status = 'in_progress' "
        "AND (worker_id IS NULL OR deadline IS NULL OR claimed_at IS NULL)",
    ),
    (
        "task {0} has no payload",
        "SELECT id FROM tasks WHERE seq NOT IN (SELECT seq FROM payloads)",
    ),
    (
        "task {0} is completed, but has no result",
        "SELECT id FROM tasks WHERE status = 'completed' AND seq NOT IN (SELECT seq FROM results)",
    ),
    (
        "task {0} has a deadline, but is {1}",
        "SELECT id, status FROM tasks WHERE status <> 'in_progress' AND deadline IS NOT NULL",
    ),
    (
        "{0} number {1} belongs to no task",
        " UNION ALL ".join(
            f"SELECT '{kind}', seq FROM {kind}s WHERE seq NOT IN (SELECT seq FROM tasks)"
            for kind in ("payload", "result", "failure", "checkpoint", "log", "label")
        ),
    ),
    (
        "the next task would be number {0}, but number {1} exists",
        "SELECT next_seq, max(seq) FROM ledger, tasks HAVING max(seq) >= next_seq",
    ),
    (
        "the database file: {0}",
        "SELECT integrity_check FROM pragma_integrity_check WHERE integrity_check <> 'ok'",
    ),
)
