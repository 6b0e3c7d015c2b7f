"""Reads: each from one snapshot, on the primary, or on a standby while there is no primary.

A standby may be behind: it is not asked any more once this broker has written, and that it does not
know a task says nothing.
"""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from weakref import WeakSet

import asyncpg
import msgspec

from taskqueue.core.audit import AuditEntry
from taskqueue.core.batch import CounterKey, Minute
from taskqueue.core.errors import BrokerUnavailable, DataDamaged
from taskqueue.core.keys import Key
from taskqueue.core.task import Failure, LogLine, Status, Task, TaskDetail, Tier
from taskqueue.storage.port import Count, TaskQuery, Totals
from taskqueue.storage.postgres import statements as sql
from taskqueue.storage.postgres.connections import (
    LOST,
    Connection,
    Database,
    close,
    connect,
)
from taskqueue.storage.postgres.tables import ENDED, as_keys, as_tasks

READERS: Final = 4
TABLES: Final[tuple[str, ...]] = ("tasks", "archive")
READ_SECONDS: Final = 15
"""How long one snapshot may be read from; a frozen server is not waited for."""

AUDIT_SECONDS: Final = 1_800
STANDBY_SECONDS: Final = 2.0
"""How long a connection to a standby is used before the primary is tried again."""

BY_TYPE: Final = (None, Status.PENDING, Status.COMPLETED)
"""With these statuses the tasks of a type are listed by the index by type: most have them."""

ABOVE_ALL: Final = 2**63 - 1

BEGIN: Final = f"""
    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; SET LOCAL jit = off;
    SET LOCAL plan_cache_mode = force_custom_plan;
    SET LOCAL statement_timeout = '{READ_SECONDS}s'"""

COUNTS: Final = """
    WITH news AS (
        SELECT one ->> 0 AS task_type, one ->> 1 AS status, one ->> 2 AS tier,
               (one ->> 3)::bigint AS present, (one ->> 4)::bigint AS entered
        FROM taskqueue.brokers JOIN taskqueue.batches
            ON batches.broker = brokers.number AND batches.number > brokers.folded
        CROSS JOIN LATERAL jsonb_array_elements(batches.counts) AS one)
    SELECT task_type, status, tier, sum(present)::bigint AS present, sum(entered)::bigint AS entered
    FROM (SELECT * FROM taskqueue.counters UNION ALL SELECT * FROM news) AS every
    WHERE ($1::text IS NULL OR task_type = $1) AND ($2::text IS NULL OR status = $2)
    GROUP BY 1, 2, 3"""
MINUTES: Final = """
    WITH news AS (
        SELECT minute, batches.seen[1] AS completed, batches.seen[2] AS failed,
               batches.seen[3] AS busy
        FROM taskqueue.brokers JOIN taskqueue.batches
            ON batches.broker = brokers.number AND batches.number > brokers.folded)
    SELECT coalesce(sum(completed), 0)::bigint, coalesce(sum(failed), 0)::bigint,
           coalesce(sum(busy), 0)::bigint
    FROM (SELECT * FROM taskqueue.minutes UNION ALL SELECT * FROM news) AS every
    WHERE minute >= $1"""
OLDEST: Final = """
    SELECT min(run_at) FROM taskqueue.lanes CROSS JOIN LATERAL (
        SELECT run_at FROM taskqueue.tasks
        WHERE ready = 1 AND tasks.task_type = lanes.task_type AND tasks.priority = lanes.priority
            AND run_at >= $1
        ORDER BY run_at LIMIT 1) AS first"""
OVERDUE: Final = f"""
    SELECT {sql.task_columns("tasks")} FROM taskqueue.tasks
    WHERE status = 'in_progress' AND deadline >= $1 AND deadline <= $2
    ORDER BY deadline LIMIT $3"""
EXPIRED: Final = f"""
    SELECT {sql.task_columns("tasks")} FROM taskqueue.tasks
    WHERE expires_at <= $1 AND status IN ('pending', 'failed') ORDER BY expires_at LIMIT $2"""
HELD: Final = f"""
    SELECT {sql.task_columns("tasks")} FROM taskqueue.tasks
    WHERE status = 'in_progress' AND worker_id = ANY($1::text[])"""
HOLDERS: Final = """
    WITH RECURSIVE holders AS (
        (SELECT worker_id FROM taskqueue.tasks WHERE status = 'in_progress'
         ORDER BY worker_id LIMIT 1)
        UNION ALL
        SELECT (SELECT worker_id FROM taskqueue.tasks
                WHERE status = 'in_progress' AND worker_id > holders.worker_id
                ORDER BY worker_id LIMIT 1)
        FROM holders WHERE worker_id IS NOT NULL)
    SELECT worker_id FROM holders WHERE worker_id IS NOT NULL"""
"""From one holder to the next in the index: DISTINCT would read what all of them hold."""


class Reader:
    """Questions to the database. All raise BrokerUnavailable where it cannot be read."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._idle: list[tuple[Connection, float]] = []
        self._slots = asyncio.Semaphore(READERS)
        self._standbys: WeakSet[Connection] = WeakSet()
        self._written_at = 0.0

    def use_primary(self) -> None:
        """There is a primary: what was just written there is to be read from now on."""
        self._written_at = time.monotonic()

    async def close(self) -> None:
        """Hang up everywhere; nothing may be under way."""
        idle, self._idle = self._idle, []
        for connection, _ in idle:
            await close(connection)

    async def get(self, task_id: str) -> TaskDetail | None:
        """One task, its result checked against its checksum, its failures oldest first."""
        async with self._snapshot() as connection:
            task = await self._load(connection, task_id)
            if task is None:
                return None
            result = None
            if task.status is Status.COMPLETED:
                rows = await connection.fetch(
                    "SELECT crc, data FROM taskqueue.results WHERE seq = $1",
                    task.seq,
                )
                result = _checked(
                    rows, f"the stored result of task {task_id} does not match its checksum"
                )
            failures = await connection.fetch(
                f"SELECT {sql.FAILURE_COLUMNS} FROM taskqueue.failures "
                "WHERE seq = $1 ORDER BY number",
                task.seq,
            )
        return TaskDetail(task, result, [Failure(*row) for row in failures])

    async def look(self, ids: Sequence[str]) -> list[Task]:
        """How these tasks stand."""
        async with self._snapshot() as connection:
            rows = [row for table in TABLES for row in await connection.fetch(_look(table), ids)]
            if len(rows) < len(set(ids)):
                self._require_primary(connection)
        return as_tasks(rows)

    async def payload(self, task_id: str) -> bytes | None:
        """The bytes of a task, checked."""
        async with self._snapshot() as connection:
            task = await self._load(connection, task_id)
            if task is None:
                return None
            rows = await connection.fetch(
                "SELECT $2::bigint, data FROM taskqueue.payloads WHERE seq = $1",
                task.seq,
                task.payload_crc,
            )
        return _checked(rows, f"the stored payload of task {task_id} does not match its checksum")

    async def logs(self, task_id: str) -> list[LogLine] | None:
        """The lines that the attempts at a task have logged, oldest first."""
        async with self._snapshot() as connection:
            task = await self._load(connection, task_id)
            if task is None:
                return None
            rows = await connection.fetch(
                "SELECT attempt, at, level, message FROM taskqueue.logs "
                "WHERE seq = $1 ORDER BY number",
                task.seq,
            )
        return [LogLine(*row) for row in rows]

    async def find(self, query: TaskQuery) -> list[Task]:
        """The tasks a query asks for, newest first, out of live ones and archive."""
        async with self._snapshot() as connection:
            counts = await connection.fetch(COUNTS, query.task_type, query.status)
            if sum(row["present"] for row in counts) <= query.offset:
                return []  # says at once what a scan of a whole type would say
            if query.is_labelled:
                await connection.execute("SET LOCAL enable_bitmapscan = on")
            statement, bindings = list_statement(query)
            return as_tasks(await connection.fetch(statement, *bindings))

    async def count(self, status: Status | None, task_type: str | None) -> int:
        """How many tasks there are, by the counters."""
        async with self._snapshot() as connection:
            rows = await connection.fetch(COUNTS, task_type, status)
        return sum(int(row["present"]) for row in rows)

    async def number(self, query: TaskQuery) -> int:
        """How many tasks a query with labels matches."""
        bindings: list[Any] = []
        where = f"WHERE {' AND '.join(_conditions(query, bindings))}"
        parts = [f"SELECT count(*) AS number FROM taskqueue.{table} {where}" for table in TABLES]
        async with self._snapshot() as connection:
            await connection.execute("SET LOCAL enable_bitmapscan = on")
            return int(
                await connection.fetchval(
                    f"SELECT sum(number) FROM ({' UNION ALL '.join(parts)}) AS every", *bindings
                )
            )

    async def counts(self) -> list[Count]:
        """The counters of each type."""
        async with self._snapshot() as connection:
            return [_as_count(row) for row in await connection.fetch(COUNTS, None, None)]

    async def totals(self, since: int, floor: int) -> Totals:
        """The counters over all types, the recent minutes, and the oldest ready task from `floor`
        on."""
        async with self._snapshot() as connection:
            rows = await connection.fetch(COUNTS, None, None)
            minute = await connection.fetchrow(MINUTES, since)
            oldest = await connection.fetchval(OLDEST, floor)
        sums: dict[tuple[Status, Tier], tuple[int, int]] = {}
        for one in map(_as_count, rows):
            present, entered = sums.get((one.key.status, one.key.tier), (0, 0))
            sums[one.key.status, one.key.tier] = present + one.present, entered + one.entered
        return Totals(
            [Count(CounterKey("", *key), *numbers) for key, numbers in sums.items()],
            Minute(*(minute or (0, 0, 0))),
            oldest,
        )

    async def keys(self) -> list[Key]:
        """Every API key, oldest first."""
        async with self._snapshot() as connection:
            return as_keys(await connection.fetch(sql.KEYS))

    async def audit_log(self, before: int, limit: int) -> list[AuditEntry]:
        """Entries of the audit log below a number, newest first."""
        async with self._snapshot() as connection:
            rows = await connection.fetch(
                f"SELECT {sql.AUDIT_COLUMNS} FROM taskqueue.audit "
                "WHERE number < $1 ORDER BY number DESC LIMIT $2",
                before,
                limit,
            )
        return [AuditEntry(*row) for row in rows]

    async def overdue(self, floor: int, steady: int, limit: int) -> list[Task]:
        """Running tasks with a deadline from `floor` to `steady`."""
        async with self._snapshot() as connection:
            return as_tasks(await connection.fetch(OVERDUE, floor, steady, limit))

    async def expired(self, wall: int, limit: int) -> list[Task]:
        """Waiting tasks past their expiry."""
        async with self._snapshot() as connection:
            return as_tasks(await connection.fetch(EXPIRED, wall, limit))

    async def held(self, worker_ids: Sequence[str]) -> list[Task]:
        """What these workers hold."""
        async with self._snapshot() as connection:
            return as_tasks(await connection.fetch(HELD, worker_ids))

    async def holders(self) -> list[str]:
        """Every worker that holds something."""
        async with self._snapshot() as connection:
            return [row[0] for row in await connection.fetch(HOLDERS)]

    async def next_due(self, floor: int) -> int | None:
        """When the next waiting task is due, of those due at `floor` or later."""
        async with self._snapshot() as connection:
            due: int | None = await connection.fetchval(sql.NEXT_DUE, floor)
            return due

    async def fetch(self, statement: str, *bindings: Any) -> list[Any]:
        """The rows of one statement."""
        async with self._snapshot() as connection:
            return await connection.fetch(statement, *bindings)

    async def fetch_slowly(self, statement: str) -> list[Any]:
        """The rows of one statement that reads everything."""
        async with self._snapshot(AUDIT_SECONDS) as connection:
            await connection.execute(f"SET LOCAL statement_timeout = '{AUDIT_SECONDS}s'")
            return await connection.fetch(statement)

    @asynccontextmanager
    async def _snapshot(self, seconds: float = READ_SECONDS) -> AsyncIterator[Connection]:
        async with self._slots:
            connection, until = await self._take()
            is_sound = False
            try:
                async with asyncio.timeout(seconds):
                    await connection.execute(BEGIN)
                    yield connection
                    await connection.execute("ROLLBACK")
                is_sound = True
            except (*LOST, asyncpg.PostgresError) as error:
                raise BrokerUnavailable(
                    f"The storage cannot be read: {error}; try again", retry_after=1.0
                ) from error
            finally:
                # One that has met an error is not used again.
                if is_sound:
                    self._idle.append((connection, until))
                else:
                    connection.terminate()

    async def _take(self) -> tuple[Connection, float]:
        while self._idle:
            connection, until = self._idle.pop()
            ends = until if until - STANDBY_SECONDS > self._written_at else 0.0
            if not connection.is_closed() and time.monotonic() < ends:
                return connection, until
            connection.terminate()
        try:
            return await connect(self._database, "read-write", "reads"), float("inf")
        except BrokerUnavailable:
            until = time.monotonic() + STANDBY_SECONDS
            connection = await connect(self._database, "any", "reads")
            self._standbys.add(connection)
            return connection, until

    async def _load(self, connection: Connection, task_id: str) -> Task | None:
        for table in TABLES:
            rows = await connection.fetch(_look(table), [task_id])
            if rows:
                return as_tasks(rows)[0]
        self._require_primary(connection)
        return None

    def _require_primary(self, connection: Connection) -> None:
        """Raise BrokerUnavailable for a connection on which "there is none" may be old news."""
        if connection in self._standbys:
            raise BrokerUnavailable(
                "no writable primary of the database answers, and its standby may lack this task; "
                "try again",
                retry_after=1.0,
            )


def list_statement(query: TaskQuery) -> tuple[str, list[Any]]:
    """The statement that lists what a query asks for, and its bindings."""
    bindings: list[Any] = [query.limit + query.offset]
    conditions = _conditions(query, bindings)
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    places = TABLES
    if query.status is not None:
        places = ("archive",) if query.status in ENDED else ("tasks",)
    parts = [
        f"(SELECT {sql.task_columns(place)} FROM taskqueue.{place} {where} "
        f"ORDER BY {_order(query)} LIMIT $1)"
        for place in places
    ]
    bindings.append(query.offset)
    return (
        f"SELECT * FROM ({' UNION ALL '.join(parts)}) AS found "
        f"ORDER BY seq DESC LIMIT $1 - ${len(bindings)}::bigint OFFSET ${len(bindings)}::bigint",
        bindings,
    )


def _conditions(query: TaskQuery, bindings: list[Any]) -> list[str]:
    """What a listed task must be; its values are added to the bindings.

    What runs, and the tasks of a type, may be the oldest of all: to look for them from the newest
    task on would be to read everything, which looks cheap to the planner. So condition and order
    leave it only the index of what runs, and the one by type; or the one of labels.
    """
    conditions = [f"status = '{query.status}'"] if query.status is not None else []
    seq, task_type = "seq", "task_type"
    if query.status is Status.IN_PROGRESS or query.is_labelled:
        seq, task_type = "seq + 0", "task_type || ''"
    if query.is_labelled:
        wanted = {"tags": query.tags, "metadata": dict(query.metadata)}
        bindings.append(msgspec.json.encode({k: v for k, v in wanted.items() if v}).decode())
        conditions.append(f"options IS NOT NULL AND options::jsonb @> ${len(bindings)}::jsonb")
    before = str(ABOVE_ALL)
    if query.before_seq is not None:
        bindings.append(query.before_seq)
        before = f"${len(bindings)}"
        conditions.append(f"{seq} < {before}")
    if query.task_type is not None:
        bindings.append(query.task_type)
        place = f"${len(bindings)}"
        conditions.append(
            f"task_type >= {place} AND (task_type, seq) < ({place}, {before}::bigint)"
            if _is_by_type(query)
            else f"{task_type} = {place}"
        )
    return conditions


def _is_by_type(query: TaskQuery) -> bool:
    return query.status in BY_TYPE and not query.is_labelled


def _order(query: TaskQuery) -> str:
    if query.status is Status.IN_PROGRESS or query.is_labelled:
        return "seq + 0 DESC"
    if query.task_type is not None and _is_by_type(query):
        return "task_type DESC, seq DESC"
    return "seq DESC"


def _look(table: str) -> str:
    return f"SELECT {sql.task_columns(table)} FROM taskqueue.{table} WHERE id = ANY($1::uuid[])"


def _checked(rows: list[Any], complaint: str) -> bytes | None:
    for crc, data in rows:
        if zlib.crc32(data) != crc:
            raise DataDamaged(complaint)
        return bytes(data)
    return None


def _as_count(row: Any) -> Count:
    task_type, status, tier, present, entered = row
    try:
        return Count(CounterKey(task_type, Status(status), Tier(tier)), present, entered)
    except ValueError as error:
        raise DataDamaged(f"a stored counter makes no sense: {error}") from error
