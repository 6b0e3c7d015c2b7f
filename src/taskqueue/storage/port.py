"""The seam between the broker and the engines: batches of commands in, outcomes out, and reads.

No engine decides anything: the rules are in `core.lifecycle`, the bookkeeping of a batch is in
`core.batch`. Every engine must pass the suite in tests/contract/storage.
"""

from collections.abc import Sequence
from typing import Protocol

from msgspec import Struct

from taskqueue.core.audit import AuditEntry
from taskqueue.core.batch import Applied, Batch, CounterKey, Minute
from taskqueue.core.keys import Key
from taskqueue.core.task import LogLine, Status, Task, TaskDetail
from taskqueue.storage.cluster import Cluster


class TaskQuery(Struct, frozen=True):
    """Which tasks to list: newest first, those before `before_seq` where it is given.

    They have all of the `tags` and all of the `metadata`.
    """

    status: Status | None = None
    task_type: str | None = None
    limit: int = 100
    offset: int = 0
    before_seq: int | None = None
    tags: tuple[str, ...] = ()
    metadata: tuple[tuple[str, str], ...] = ()

    @property
    def is_labelled(self) -> bool:
        """Whether it asks for tags or metadata."""
        return bool(self.tags or self.metadata)


class Count(Struct, frozen=True):
    """How many tasks are present under a key, and how many have ever come under it."""

    key: CounterKey
    present: int
    entered: int


class Totals(Struct, frozen=True):
    """The counters without their types, and what the minutes asked for saw together."""

    counts: list[Count]
    recent: Minute
    oldest_ready: int | None


class Storage(Protocol):
    """An engine. Methods raise BrokerUnavailable when the storage cannot be reached."""

    cluster: Cluster
    """The other brokers on the same engine."""

    async def open(self) -> None:
        """Take possession of the storage and bring its schema up to date."""
        ...

    async def close(self) -> None:
        """Finish what was begun and let go of the storage."""
        ...

    async def apply(self, batch: Batch) -> Applied:
        """Carry out a batch in one transaction and return once it is durable.

        Words about tasks take effect first, in their order; then those about keys; then promotions
        and purges; then claims, in their order, so that a claim can be served by a submit of the
        same batch. Audited commands are entered in the audit log with what came of them.

        A command that is refused has its error as its outcome and spoils none of the others.
        Raises BrokerUnavailable if nothing was changed, OutcomeUnknown if that cannot be said.
        """
        ...

    async def get(self, task_id: str) -> TaskDetail | None:
        """One task with its result and failures. Raises DataDamaged for damaged bytes."""
        ...

    async def look(self, ids: Sequence[str]) -> list[Task]:
        """How these tasks stand, those of them that there are, in any order."""
        ...

    async def payload(self, task_id: str) -> bytes | None:
        """The bytes a task was submitted with. Raises DataDamaged for damaged bytes."""
        ...

    async def find(self, query: TaskQuery) -> list[Task]:
        """The tasks that a query asks for, newest first."""
        ...

    async def count(self, status: Status | None, task_type: str | None) -> int:
        """How many tasks there are, from the counters: the cost does not grow with them."""
        ...

    async def number(self, query: TaskQuery) -> int:
        """How many tasks a query with tags or metadata matches, whatever its page: counted."""
        ...

    async def totals(self, since: int) -> Totals:
        """The counters over all types, with the minutes that began at `since` or later."""
        ...

    async def counts(self) -> list[Count]:
        """The counters by type."""
        ...

    async def keys(self) -> list[Key]:
        """Every API key, oldest first."""
        ...

    async def audit_log(self, before: int, limit: int) -> list[AuditEntry]:
        """Up to `limit` entries of the audit log with numbers below `before`, newest first."""
        ...

    async def overdue(self, steady: int, limit: int) -> list[Task]:
        """Running tasks whose deadline is at or before `steady`."""
        ...

    async def expired(self, wall: int, limit: int) -> list[Task]:
        """Tasks that wait though their expiry is at or before `wall`."""
        ...

    async def logs(self, task_id: str) -> list[LogLine] | None:
        """The log of a task, oldest line first; None if there is no such task."""
        ...

    async def held(self, worker_ids: Sequence[str]) -> list[Task]:
        """The tasks that these workers hold."""
        ...

    async def holders(self) -> list[str]:
        """Every worker that holds a task."""
        ...

    async def next_due(self) -> int | None:
        """The earliest `run_at` among the tasks that wait for their time."""
        ...

    async def audit(self) -> list[str]:
        """Each way in which the counters differ from the rows; none in a sound storage."""
        ...
