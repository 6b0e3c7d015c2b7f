"""The PostgreSQL engine behind the storage port: one writer, some readers, the other brokers."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

import asyncpg
import structlog

from taskqueue.core.audit import AuditEntry
from taskqueue.core.batch import Applied, Batch
from taskqueue.core.errors import BrokerUnavailable, StorageRefused
from taskqueue.core.keys import Key
from taskqueue.core.task import LogLine, Status, Task, TaskDetail
from taskqueue.storage.cluster import Cluster
from taskqueue.storage.migrations import newest_of
from taskqueue.storage.port import Count, Storage, TaskQuery, Totals
from taskqueue.storage.postgres import schema
from taskqueue.storage.postgres.audit import audit
from taskqueue.storage.postgres.connections import (
    LOST,
    Connection,
    Database,
    close,
    connect,
    unavailable,
)
from taskqueue.storage.postgres.days import SHIFT
from taskqueue.storage.postgres.keeping import Keeping
from taskqueue.storage.postgres.membership import Membership
from taskqueue.storage.postgres.reader import Reader
from taskqueue.storage.postgres.tables import FLOOR_MARGIN, WHOLE_LOOKS, Memory
from taskqueue.storage.postgres.writer import Writer

ROUND_SECONDS: Final = 1.0
STALE_SECONDS: Final = 5.0
"""After this time the depth of the queue is taken as read even if commits came in between."""

log = structlog.get_logger(component="storage")


class PostgresStorage(Storage):
    """Tasks in a database that other brokers may use as well."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._memory = Memory()
        self._writer = Writer(database, self._memory)
        self._reader = Reader(database)
        self._membership = Membership(database, self._memory, self._writer, self._reader)
        self.cluster: Cluster = self._membership
        self._keeping = Keeping(database, self._memory, self._membership)
        self._looks = 0
        self._stale_at = 0.0
        self._deadline_floor = 0
        self._round: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, bring the schema up to date, join the other brokers.

        Raises BrokerUnavailable where no writable server answers, StorageRefused where the schema
        cannot be used.
        """
        connection = await connect(self._database, "read-write", "start")
        try:
            await self._use_schema(connection)
            await schema.require_whole(connection)
            await self._membership.join(connection)
            await self._keeping.make_days(connection)
            latest = await connection.fetchval(
                "SELECT greatest((SELECT max(seq) FROM taskqueue.tasks), "
                "(SELECT max(seq) FROM taskqueue.archive), 0)"
            )
            self._memory.step = latest >> SHIFT
            await self._writer.open()
        except (*LOST, asyncpg.PostgresError) as error:
            raise unavailable(self._database, error) from error
        finally:
            await close(connection)
        await self._refresh()
        self._round = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Finish what was begun and leave the other brokers."""
        if self._round is not None:
            self._round.cancel()
            await asyncio.gather(self._round, return_exceptions=True)
        await self._writer.close()
        await self._keeping.close()
        await self._membership.leave()
        await self._reader.close()

    async def apply(self, batch: Batch) -> Applied:
        """Commit a batch, unless it is known that no commit would be confirmed."""
        complaint = self._membership.complaint
        if complaint is not None:
            raise BrokerUnavailable(f"{complaint}; nothing was changed, try again", retry_after=1.0)
        applied = await self._writer.apply(batch)
        self._reader.use_primary()
        return applied

    async def get(self, task_id: str) -> TaskDetail | None:
        return await self._reader.get(task_id)

    async def look(self, ids: Sequence[str]) -> list[Task]:
        return await self._reader.look(ids)

    async def payload(self, task_id: str) -> bytes | None:
        return await self._reader.payload(task_id)

    async def find(self, query: TaskQuery) -> list[Task]:
        return await self._reader.find(query)

    async def count(self, status: Status | None, task_type: str | None) -> int:
        return await self._reader.count(status, task_type)

    async def number(self, query: TaskQuery) -> int:
        return await self._reader.number(query)

    async def totals(self, since: int) -> Totals:
        floors = [lane.floor for lane in self._memory.lanes.all()]
        return await self._reader.totals(since, min(floors, default=0))

    async def counts(self) -> list[Count]:
        return await self._reader.counts()

    async def keys(self) -> list[Key]:
        return await self._reader.keys()

    async def audit_log(self, before: int, limit: int) -> list[AuditEntry]:
        return await self._reader.audit_log(before, limit)

    async def overdue(self, steady: int, limit: int) -> list[Task]:
        # The entries of claims that have ended lie before: while somebody holds an old snapshot
        # there may be millions of them.
        self._looks += 1
        floor = 0 if self._looks % WHOLE_LOOKS == 1 else self._deadline_floor
        overdue = await self._reader.overdue(floor, steady, limit)
        if len(overdue) < limit:
            # Those that were found may be there the next time too.
            earliest = min((task.deadline or 0 for task in overdue), default=steady)
            self._deadline_floor = earliest - FLOOR_MARGIN
        return overdue

    async def expired(self, wall: int, limit: int) -> list[Task]:
        return await self._reader.expired(wall, limit)

    async def logs(self, task_id: str) -> list[LogLine] | None:
        return await self._reader.logs(task_id)

    async def held(self, worker_ids: Sequence[str]) -> list[Task]:
        return await self._reader.held(worker_ids)

    async def holders(self) -> list[str]:
        return await self._reader.holders()

    async def next_due(self) -> int | None:
        return await self._reader.next_due(self._memory.due_floor)

    async def audit(self) -> list[str]:
        return await audit(self._reader)

    async def _use_schema(self, connection: Connection) -> None:
        version = await schema.schema_version(connection)
        schema.require_known(version)
        if version == newest_of(schema.MIGRATIONS):
            return
        try:
            done = await schema.migrate(connection)
        except asyncpg.InsufficientPrivilegeError as error:
            raise StorageRefused(
                f"the database has schema {version} and this role may not change it ({error}); "
                "run tq migrate with a role that may"
            ) from error
        log.info("the schema was brought up to date", migrations=done)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(ROUND_SECONDS)
            try:
                await self._keeping.round()
                await self._refresh()
            except BrokerUnavailable as error:
                log.warning("the round of the engine failed, next follows", error=error.message)

    async def _refresh(self) -> None:
        """Learn what other brokers have changed: lanes, the depth of the queue."""
        before = self._writer.pending_changes
        pending = await self._reader.count(Status.PENDING, None)
        if before == self._writer.pending_changes or time.monotonic() > self._stale_at:
            self._writer.pending = pending
            self._stale_at = time.monotonic() + STALE_SECONDS
        lanes = await self._reader.fetch("SELECT task_type, priority FROM taskqueue.lanes")
        self._memory.lanes.add((row[0], row[1]) for row in lanes)
