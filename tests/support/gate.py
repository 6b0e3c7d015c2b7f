"""Storages whose transactions end when the test says so."""

import asyncio
from collections.abc import Sequence

from taskqueue.core.audit import AuditEntry
from taskqueue.core.batch import Applied, Batch, Minute
from taskqueue.core.keys import Key
from taskqueue.core.task import LogLine, Status, Task, TaskDetail
from taskqueue.storage.cluster import Alone, Cluster
from taskqueue.storage.port import Count, Storage, TaskQuery, Totals
from tests.support.model import ModelStorage


class SlowStorage(ModelStorage):
    """The model of a queue, whose transactions begin only while `may_commit` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.may_commit = asyncio.Event()
        self.may_commit.set()

    async def apply(self, batch: Batch) -> Applied:
        await self.may_commit.wait()
        return await super().apply(batch)


class GatedStorage(Storage):
    """Holds each batch until `commit` or `fail`; every outcome is 0, every read finds nothing."""

    def __init__(self) -> None:
        self.cluster: Cluster = Alone()
        self.batches: list[Batch] = []
        self._gate: asyncio.Future[None] | None = None

    @property
    def begun(self) -> int:
        """How many transactions have begun."""
        return len(self.batches)

    async def apply(self, batch: Batch) -> Applied:
        self.batches.append(batch)
        self._gate = asyncio.get_running_loop().create_future()
        await self._gate
        return Applied([0 for _ in batch.commands], [], {}, None, 0)

    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def keys(self) -> list[Key]:
        return []

    async def audit_log(self, before: int, limit: int) -> list[AuditEntry]:
        return []

    async def get(self, task_id: str) -> TaskDetail | None:
        return None

    async def look(self, ids: Sequence[str]) -> list[Task]:
        return []

    async def payload(self, task_id: str) -> bytes | None:
        return None

    async def find(self, query: TaskQuery) -> list[Task]:
        return []

    async def count(self, status: Status | None, task_type: str | None) -> int:
        return 0

    async def totals(self, since: int) -> Totals:
        return Totals([], Minute(), None)

    async def counts(self) -> list[Count]:
        return []

    async def overdue(self, steady: int, limit: int) -> list[Task]:
        return []

    async def number(self, query: TaskQuery) -> int:
        return 0

    async def expired(self, wall: int, limit: int) -> list[Task]:
        return []

    async def logs(self, task_id: str) -> list[LogLine] | None:
        return None

    async def held(self, worker_ids: Sequence[str]) -> list[Task]:
        return []

    async def holders(self) -> list[str]:
        return []

    async def next_due(self) -> int | None:
        return None

    async def audit(self) -> list[str]:
        return []

    def commit(self) -> None:
        """Let the transaction that is under way succeed."""
        if self._gate is not None and not self._gate.done():
            self._gate.set_result(None)

    def fail(self, error: Exception) -> None:
        """Let the transaction that is under way fail."""
        assert self._gate is not None
        self._gate.set_exception(error)
