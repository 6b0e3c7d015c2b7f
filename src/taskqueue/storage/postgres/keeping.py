"""What the engine itself needs done: counts folded, days opened and dropped, floors looked under.

Each broker folds what it has counted; the leader does the rest. Everything is small, on a
connection of its own, and can be left to the next round.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

import asyncpg
import structlog

from taskqueue.core.batch import MINUTE
from taskqueue.core.errors import BrokerUnavailable
from taskqueue.core.task import Status, tier_of
from taskqueue.storage.postgres import days
from taskqueue.storage.postgres.connections import (
    LOST,
    Connection,
    Database,
    close,
    connect,
    unavailable,
)
from taskqueue.storage.postgres.membership import GONE_SECONDS, LOCAL, NOW, Membership
from taskqueue.storage.postgres.schema import MIGRATION_LOCK
from taskqueue.storage.postgres.statements import FROZEN_SECONDS, NOTES
from taskqueue.storage.postgres.tables import Memory

DAILY: Final = ("archive", "payloads", "results")
"""The tables with a partition for each day."""

CLOSE_SECONDS: Final = 3.0
ROUND_SECONDS: Final = 120.0
"""How long a round may take before its connection is given up."""

DAYS_SECONDS: Final = 60.0
"""How often the leader looks which days are to be opened and dropped."""

DAYS_AHEAD: Final = 2
MINUTES_KEPT: Final = 7 * 24 * 60 * MINUTE
SWEEP_SHARE: Final = 20
"""A sweep waits so many times as long as the one before it took."""

LEAST_SWEEP_SECONDS: Final = 2.0

FOLD: Final = f"""
    WITH broker AS (
        SELECT number, folded, {LOCAL} FROM taskqueue.brokers WHERE number = $1
        FOR NO KEY UPDATE
    ), taken AS (
        DELETE FROM taskqueue.batches USING broker
        WHERE batches.broker = broker.number AND batches.number > broker.folded
            AND batches.number <= $2
        RETURNING batches.number, minute, seen, counts
    ), counted AS (
        INSERT INTO taskqueue.counters
        SELECT one ->> 0, one ->> 1, one ->> 2, sum((one ->> 3)::bigint), sum((one ->> 4)::bigint)
        FROM taken CROSS JOIN LATERAL jsonb_array_elements(counts) AS one
        GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
        ON CONFLICT (task_type, status, tier) DO UPDATE SET
            present = counters.present + excluded.present,
            entered = counters.entered + excluded.entered
    ), clocked AS (
        INSERT INTO taskqueue.minutes
        SELECT minute, sum(seen[1]), sum(seen[2]), sum(seen[3]) FROM taken
        WHERE seen[1] + seen[2] > 0 GROUP BY 1 ORDER BY 1
        ON CONFLICT (minute) DO UPDATE SET
            completed = minutes.completed + excluded.completed,
            failed = minutes.failed + excluded.failed, busy = minutes.busy + excluded.busy
    )
    UPDATE taskqueue.brokers SET folded = latest.number
    FROM (SELECT max(number) AS number FROM taken) AS latest
    WHERE brokers.number = $1 AND latest.number IS NOT NULL"""
"""A fold that is lost with the primary leaves everything as it was before."""
GONE: Final = """
    SELECT number FROM taskqueue.brokers
    WHERE number <> $1 AND seen < clock_timestamp() - make_interval(secs => $2)
    ORDER BY number FOR UPDATE SKIP LOCKED"""
"""Brokers to be given up. A batch of theirs is either seen by the statements that follow, or finds
that its broker is gone."""
FORGET_BROKER: Final = "DELETE FROM taskqueue.brokers WHERE number = $1"
FORGET_MINUTES: Final = "DELETE FROM taskqueue.minutes WHERE minute < $1"
FORGET_WORKERS: Final = """
    DELETE FROM taskqueue.workers WHERE seen < clock_timestamp() - interval '1 day'"""
DAYS: Final = """
    SELECT substring(relname FROM '[0-9]+$')::int FROM pg_class
    JOIN pg_inherits ON inhrelid = pg_class.oid
    WHERE inhparent = to_regclass($1) AND relname ~ '_d[0-9]+$'"""
LOOK: Final = """
    SELECT run_at FROM taskqueue.tasks
    WHERE ready = 1 AND task_type = $1 AND priority = $2 ORDER BY run_at LIMIT 1"""

LOCK_DAILY: Final = (
    f"LOCK TABLE {', '.join(f'taskqueue.{table}' for table in DAILY)} IN ACCESS EXCLUSIVE MODE"
)

log = structlog.get_logger(component="storage")


class Keeping:
    """The chores of the engine."""

    def __init__(self, database: Database, memory: Memory, membership: Membership) -> None:
        self._database = database
        self._memory = memory
        self._membership = membership
        self._connection: Connection | None = None
        self._next_sweep = 0.0
        self._next_days = 0.0
        self._kept_days: set[int] = set()

    async def round(self) -> None:
        """Do what is due. Raises BrokerUnavailable."""
        try:
            if self._connection is None or self._connection.is_closed():
                self._connection = await connect(self._database, "read-write", "chores")
            async with asyncio.timeout(ROUND_SECONDS):
                await self._connection.execute(FOLD, self._memory.broker, self._memory.number)
                await self._sweep(self._connection)
                if self._membership.is_leader:
                    await self._lead(self._connection)
        except (*LOST, asyncpg.PostgresError) as error:
            if self._connection is not None:
                self._connection.terminate()
            raise unavailable(self._database, error) from error

    async def close(self) -> None:
        """Fold what is left and hang up; what cannot be folded any more the leader folds later."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.round()
        except (BrokerUnavailable, TimeoutError) as error:
            log.warning("the last counts were left to the leader", error=str(error))
        await close(self._connection)

    async def make_days(self, connection: Connection) -> None:
        """Make the partitions of today and the next days.

        Tasks of a day that has none go into the partition for the rest.
        """
        today = days.day_of(await connection.fetchval(NOW))
        for day in range(today, today + DAYS_AHEAD):
            if day in self._kept_days:
                continue
            low, high = days.bounds_of(day)
            try:
                async with _chore(connection):
                    await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
                    for table in DAILY:
                        await connection.execute(
                            f"CREATE TABLE IF NOT EXISTS taskqueue.{table}_d{day} "
                            f"PARTITION OF taskqueue.{table} FOR VALUES FROM ({low}) TO ({high})"
                        )
                self._kept_days.add(day)
            except asyncpg.PostgresError as error:
                log.warning("a partition could not be made yet", day=day, error=str(error))
                return

    async def drop_days(self, connection: Connection, before: int) -> None:
        """Drop the partitions of days whose tasks all ended before a moment in microseconds.

        Live tasks of such a day keep their payloads: those move to the partition for the rest.
        """
        for day in sorted(row[0] for row in await connection.fetch(DAYS, "taskqueue.archive")):
            if days.EPOCH + (day + 1) * days.DAY > before:
                return
            if await _is_past(connection, day, before):
                await self._drop_day(connection, day, before)

    async def _lead(self, connection: Connection) -> None:
        now = await connection.fetchval(NOW)
        await connection.execute(FORGET_MINUTES, now // MINUTE * MINUTE - MINUTES_KEPT)
        await connection.execute(FORGET_WORKERS)
        if time.monotonic() >= self._next_days:
            self._next_days = time.monotonic() + DAYS_SECONDS
            await self.make_days(connection)
            await self.drop_days(connection, self._memory.past_retention)
        async with _chore(connection):
            gone = await connection.fetch(GONE, self._memory.broker, float(GONE_SECONDS))
            for (number,) in gone:
                await connection.execute(FOLD, number, 2**62)
                await connection.execute(FORGET_BROKER, number)

    async def _drop_day(self, connection: Connection, day: int, before: int) -> None:
        low, high = days.bounds_of(day)
        try:
            async with _chore(connection):
                # Nothing of this day changes any more, while all others go on.
                await connection.execute(
                    f"LOCK TABLE {', '.join(f'taskqueue.{table}_d{day}' for table in DAILY)} "
                    "IN SHARE ROW EXCLUSIVE MODE"
                )
                if not await _is_past(connection, day, before):
                    return  # a task of that day has ended just now
                await self._uncount(connection, day)
                for table in NOTES:
                    await connection.execute(
                        f"DELETE FROM taskqueue.{table} AS old "
                        f"USING taskqueue.archive_d{day} AS ended WHERE old.seq = ended.seq"
                    )
                await connection.execute(LOCK_DAILY)  # from here on everyone waits
                for table in DAILY:
                    await connection.execute(
                        f"ALTER TABLE taskqueue.{table} DETACH PARTITION taskqueue.{table}_d{day}"
                    )
                await connection.execute(
                    "SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; "
                    "SET LOCAL enable_seqscan = off; "
                    f"INSERT INTO taskqueue.payloads SELECT bytes.* FROM taskqueue.tasks "
                    f"JOIN taskqueue.payloads_d{day} AS bytes ON bytes.seq = ANY (ARRAY[tasks.seq])"
                    f" WHERE tasks.seq >= {low} AND tasks.seq < {high}"
                )
                for table in DAILY:
                    await connection.execute(f"DROP TABLE taskqueue.{table}_d{day}")
            self._kept_days.discard(day)
            log.info("a day past retention was dropped", day=day, first=low, next=high)
        except asyncpg.PostgresError as error:
            log.warning("a day past retention could not be dropped yet", day=day, error=str(error))

    async def _uncount(self, connection: Connection, day: int) -> None:
        rows = await connection.fetch(
            f"SELECT task_type, status, priority, count(*) FROM taskqueue.archive_d{day} "
            "GROUP BY 1, 2, 3"
        )
        gone: dict[tuple[str, str, str], int] = {}
        for task_type, status, priority, number in rows:
            key = task_type, Status(status), tier_of(priority)
            gone[key] = gone.get(key, 0) + number
        columns: list[Any] = [list(column) for column in zip(*sorted(gone), strict=True)]
        if columns:
            numbers = [gone[key] for key in sorted(gone)]
            await connection.execute(
                "INSERT INTO taskqueue.counters "
                "SELECT *, 0 FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[]) "
                "ON CONFLICT (task_type, status, tier) DO UPDATE "
                "SET present = counters.present + excluded.present",
                *columns,
                [-number for number in numbers],
            )

    async def _sweep(self, connection: Connection) -> None:
        """Look below the floors for what was committed later than its time says."""
        if time.monotonic() < self._next_sweep:
            return
        begun = time.monotonic()
        for lane in self._memory.lanes.all():
            run_at = await connection.fetchval(LOOK, lane.task_type, lane.priority)
            if run_at is not None:
                self._memory.lanes.lower(lane.task_type, lane.priority, run_at)
            await asyncio.sleep(0)
        lasted = time.monotonic() - begun
        self._next_sweep = time.monotonic() + max(LEAST_SWEEP_SECONDS, SWEEP_SHARE * lasted)


@asynccontextmanager
async def _chore(connection: Connection) -> AsyncIterator[None]:
    """A transaction that never holds the brokers up for long."""
    async with connection.transaction():
        await connection.execute(
            "SET LOCAL lock_timeout = '500ms'; "
            f"SET LOCAL idle_in_transaction_session_timeout = '{FROZEN_SECONDS}s'"
        )
        yield


async def _is_past(connection: Connection, day: int, before: int) -> bool:
    latest = await connection.fetchval(f"SELECT max(updated_at) FROM taskqueue.archive_d{day}")
    return latest is None or bool(latest < before)
