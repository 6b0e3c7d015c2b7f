"""Tasks through the PostgreSQL engine itself, without doors: what the database can bear."""

import time
import zlib
from typing import Final

import asyncpg

from taskqueue.core.batch import Batch
from taskqueue.core.clock import SystemClock
from taskqueue.core.commands import Claim, Command, Complete, Submit
from taskqueue.core.ids import new_task_id
from taskqueue.core.task import ClaimedTask, Status, Task
from taskqueue.storage.postgres.connections import database_at
from taskqueue.storage.postgres.days import bounds_of, day_of
from taskqueue.storage.postgres.engine import PostgresStorage

BATCH: Final = 200
PAYLOAD: Final = bytes(range(200))

SIZES: Final = """
    SELECT 'hot table', pg_table_size('taskqueue.tasks') / 1e6
    UNION ALL SELECT 'its indexes', pg_indexes_size('taskqueue.tasks') / 1e6
    UNION ALL SELECT 'batches', pg_total_relation_size('taskqueue.batches') / 1e6"""


class Load:
    """Submits, claims and completes, so many of each in every transaction."""

    def __init__(self, dsn: str) -> None:
        self.done = 0
        """Tasks that were claimed."""
        self._dsn = dsn
        self._storage = PostgresStorage(database_at(dsn))
        self._clock = SystemClock()
        self._held: list[ClaimedTask] = []

    async def open(self) -> None:
        """Connect."""
        await self._storage.open()

    async def close(self) -> None:
        """Leave."""
        await self._storage.close()

    async def run(self, seconds: float) -> float:
        """Tasks per second in so many seconds."""
        began, before = time.perf_counter(), self.done
        while time.perf_counter() - began < seconds:
            await self._step()
        return (self.done - before) / (time.perf_counter() - began)

    async def sizes(self) -> dict[str, float]:
        """Megabytes of the tables whose rows come and go."""
        connection = await asyncpg.connect(self._dsn)
        try:
            return {name: float(size) for name, size in await connection.fetch(SIZES)}
        finally:
            await connection.close()

    async def _step(self) -> None:
        now = self._clock.wall()
        commands: list[Command] = [_submit(now) for _ in range(BATCH)]
        commands += [Complete(one.task.id, one.task.token, b"done") for one in self._held]
        commands.append(Claim("bench", ("bench",), BATCH))
        applied = await self._storage.apply(Batch(commands, now, self._clock.steady()))
        claimed = applied.outcomes[-1]
        assert isinstance(claimed, list)
        self._held = claimed
        self.done += len(claimed)


def _submit(now: int) -> Submit:
    crc = zlib.crc32(PAYLOAD)
    status = Status.PENDING
    task = Task(0, new_task_id(), "bench", 100, status, now, 300_000_000, 3, crc, now, now)
    return Submit(task, PAYLOAD)


async def filled_by_sql(dsn: str, archived: int, pending: int) -> None:
    """Put tasks of another type in, past the doors: completed ones of yesterday, waiting ones."""
    now = SystemClock().wall()
    low, high = bounds_of(day_of(now) - 1)
    connection = await asyncpg.connect(dsn)
    columns = (
        "seq, id, task_type, priority, status, run_at, timeout, max_retries, payload_crc, weight,"
        " created_at, updated_at, last_event, retry_count, token, progress_note"
    )
    try:
        for table in ("archive", "payloads", "results"):
            await connection.execute(
                f"CREATE TABLE taskqueue.{table}_d{day_of(now) - 1} PARTITION OF taskqueue.{table} "
                f"FOR VALUES FROM ({low}) TO ({high})"
            )
        half = (high - low) // 2
        await connection.execute(
            f"INSERT INTO taskqueue.archive ({columns}) "
            f"SELECT {low} + n::bigint * {half // max(1, archived)}, gen_random_uuid(), 'old', "
            f"100, 'completed', {now}, 300000000, 3, 0, 200, {now}, {now}, 'complete', 0, 1, '' "
            f"FROM generate_series(1, {archived}) n"
        )
        await connection.execute(
            f"INSERT INTO taskqueue.tasks ({columns}, ready) "
            f"SELECT {low + half} + n::bigint * 1000, gen_random_uuid(), 'old' || n % 10, 100, "
            f"'pending', {now} - n, 300000000, 3, 0, 200, {now}, {now}, 'submit', 0, 0, '', 1 "
            f"FROM generate_series(1, {pending}) n"
        )
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()
