"""What a transaction asks of an engine's tables."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from taskqueue.core.audit import AuditEntry
from taskqueue.core.batch import Changes, Tally
from taskqueue.core.commands import Purge
from taskqueue.core.keys import Key
from taskqueue.core.repeats import Kept
from taskqueue.core.task import Status, Task, Tier


class Purged(NamedTuple):
    """What a purge deleted: ended tasks by what they are counted under, and other rows."""

    tasks: list[tuple[str, Status, Tier, int]]
    most: int
    """The largest number of rows of one kind, to be held against the limit."""


class Tables(Protocol):
    """What a transaction asks of an engine. All that is written is written in one transaction.

    Raise DataDamaged where a row makes no sense.
    """

    async def load(self, ids: Sequence[str], new: Sequence[str]) -> list[Task]:
        """The tasks with these ids, as far as there are any; nobody else changes them now.

        Those of `new` are brought by submits: as a rule there are none yet.
        """
        ...

    async def kept(self, places: Sequence[tuple[str, str, str]], wall: int) -> list[Kept]:
        """Answers kept under these scopes, names and keys, unless their time is over."""
        ...

    async def next_seq(self, submits: int) -> int:
        """The first of as many numbers for new tasks, which nobody else gets."""
        ...

    async def write(self, changes: Changes, wall: int) -> None:
        """Write what a working set has changed."""
        ...

    async def keys(self) -> list[Key]:
        """Every API key; nobody else changes them now."""
        ...

    async def save_keys(self, keys: Sequence[Key]) -> None:
        """Write these keys, new or changed."""
        ...

    async def enter(self, entries: Sequence[AuditEntry]) -> None:
        """Enter lines in the audit log, which numbers them."""
        ...

    async def leads(self) -> bool:
        """Whether this broker may do housekeeping, until the end of the transaction."""
        ...

    async def promote(self, wall: int, limit: int) -> dict[int, str]:
        """Make claimable what is due; the types of those tasks, by their numbers."""
        ...

    async def purge(self, purge: Purge, wall: int) -> Purged:
        """Delete what is past retention."""
        ...

    async def pick(self, task_types: Sequence[str], limit: int) -> list[tuple[Task, int]]:
        """The first claimable tasks of these types, in claim order, each with its payload's size.

        Nobody else claims them now.
        """
        ...

    async def payloads(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """The payloads of tasks by their numbers; those that are empty or lost may be left out."""
        ...

    async def checkpoints(self, seqs: Sequence[int]) -> dict[int, bytes]:
        """What attempts have kept for the next ones, by the numbers of their tasks."""
        ...

    async def next_due(self) -> int | None:
        """The earliest `run_at` among the tasks that wait for their time."""
        ...

    async def count(self, tally: Tally, wall: int) -> None:
        """Change the counters."""
        ...
