"""The SQLite engine behind the storage port: threads for its writer and readers, nothing more."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from taskqueue.core.audit import AuditEntry
from taskqueue.core.batch import Applied, Batch
from taskqueue.core.keys import Key
from taskqueue.core.task import LogLine, Status, Task, TaskDetail
from taskqueue.storage.cluster import Alone, Cluster
from taskqueue.storage.port import Count, Storage, TaskQuery, Totals
from taskqueue.storage.sqlite import writer
from taskqueue.storage.sqlite.folder import DataFolder
from taskqueue.storage.sqlite.mark import CommitMark
from taskqueue.storage.sqlite.moved import require_not_moved
from taskqueue.storage.sqlite.reader import Reader
from taskqueue.storage.sqlite.writer import Writer

READERS: Final = 2

Answer = TypeVar("Answer")


class SqliteStorage(Storage):
    """Tasks in one SQLite file in a data folder that no other broker uses."""

    def __init__(self, path: Path) -> None:
        self.cluster: Cluster = Alone()
        self._path = path
        self._write_thread = ThreadPoolExecutor(1, "tq-writer")
        self._read_threads = ThreadPoolExecutor(READERS, "tq-reader")
        self._side_thread = ThreadPoolExecutor(1, "tq-checkpoint")
        self._checkpointing: asyncio.Future[None] | None = None
        self._checkpointed_pages = 0

    async def open(self) -> None:
        """Lock the data folder, open the database, refuse it if acknowledged commits are missing.

        One whose tasks were moved to another engine is refused as well.

        Raises StorageRefused.
        """
        with ExitStack() as undo:
            self._folder = DataFolder(self._path)
            undo.callback(self._folder.close)
            require_not_moved(self._folder.path)
            self._mark = CommitMark(self._folder.path)
            undo.callback(self._mark.close)
            self._writer = Writer(self._folder, self._mark)
            await self._on_writer(self._writer.open)
            self._reader = Reader(self._folder.database, READERS)
            undo.pop_all()

    async def close(self) -> None:
        """Finish what was begun, close the database and give the folder up."""
        if self._checkpointing is not None:
            await asyncio.wait([self._checkpointing])
        await asyncio.to_thread(self._read_threads.shutdown)
        self._reader.close()
        await self._on_writer(self._writer.close)
        self._write_thread.shutdown()
        self._side_thread.shutdown()
        self._mark.close()
        self._folder.close()

    async def apply(self, batch: Batch) -> Applied:
        """Commit a batch on the writer thread, one hop there and back."""
        applied = await self._on_writer(partial(self._writer.apply, batch))
        self._checkpoint_if_due()
        return applied

    async def get(self, task_id: str) -> TaskDetail | None:
        return await self._on_reader(partial(self._reader.get, task_id))

    async def look(self, ids: Sequence[str]) -> list[Task]:
        return await self._on_reader(partial(self._reader.look, ids))

    async def payload(self, task_id: str) -> bytes | None:
        return await self._on_reader(partial(self._reader.payload, task_id))

    async def find(self, query: TaskQuery) -> list[Task]:
        return await self._on_reader(partial(self._reader.find, query))

    async def count(self, status: Status | None, task_type: str | None) -> int:
        return await self._on_reader(partial(self._reader.count, status, task_type))

    async def number(self, query: TaskQuery) -> int:
        return await self._on_reader(partial(self._reader.number, query))

    async def totals(self, since: int) -> Totals:
        return await self._on_reader(partial(self._reader.totals, since))

    async def counts(self) -> list[Count]:
        return await self._on_reader(self._reader.counts)

    async def keys(self) -> list[Key]:
        return await self._on_reader(self._reader.keys)

    async def audit_log(self, before: int, limit: int) -> list[AuditEntry]:
        return await self._on_reader(partial(self._reader.audit_log, before, limit))

    async def overdue(self, steady: int, limit: int) -> list[Task]:
        return await self._on_reader(partial(self._reader.overdue, steady, limit))

    async def expired(self, wall: int, limit: int) -> list[Task]:
        return await self._on_reader(partial(self._reader.expired, wall, limit))

    async def logs(self, task_id: str) -> list[LogLine] | None:
        return await self._on_reader(partial(self._reader.logs, task_id))

    async def held(self, worker_ids: Sequence[str]) -> list[Task]:
        return await self._on_reader(partial(self._reader.held, worker_ids))

    async def holders(self) -> list[str]:
        return await self._on_reader(self._reader.holders)

    async def next_due(self) -> int | None:
        return await self._on_reader(self._reader.next_due)

    async def audit(self) -> list[str]:
        return await self._on_reader(self._reader.audit)

    async def _on_writer(self, work: Callable[[], Answer]) -> Answer:
        # Shielded: a caller who goes must not cancel what others wait for.
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._write_thread, work))

    async def _on_reader(self, work: Callable[[], Answer]) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._read_threads, work)

    def _checkpoint_if_due(self) -> None:
        pages = self._writer.wal_pages
        if pages < self._checkpointed_pages:
            self._checkpointed_pages = 0  # the log has started over
        loop = asyncio.get_running_loop()
        if pages >= self._writer.restart_at:
            # Queued before the next batch: between two transactions the log can start over.
            loop.run_in_executor(self._write_thread, self._writer.checkpoint)
        elif pages - self._checkpointed_pages >= writer.CHECKPOINT_PAGES and (
            self._checkpointing is None or self._checkpointing.done()
        ):
            self._checkpointed_pages = pages
            aside = partial(writer.checkpoint_aside, self._folder, self._mark)
            self._checkpointing = loop.run_in_executor(self._side_thread, aside)
