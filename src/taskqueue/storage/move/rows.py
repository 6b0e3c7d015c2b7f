"""What is moved, in the one form in which both engines are read, and the checksums over it."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Final, Self

import msgspec
from msgspec import Struct, field

from taskqueue.core.audit import AuditEntry
from taskqueue.core.keys import Key
from taskqueue.core.repeats import Kept
from taskqueue.core.task import Failure, LogLine, Task

Row = tuple[Any, ...]


def _names(struct: type[Struct]) -> list[str]:
    return [one.name for one in msgspec.structs.fields(struct)]


TASK_COLUMNS: Final = _names(Task)
STATUS: Final = TASK_COLUMNS.index("status")
TASK_TYPE: Final = TASK_COLUMNS.index("task_type")
CREATED_AT: Final = TASK_COLUMNS.index("created_at")
TASK_ID: Final = TASK_COLUMNS.index("id")

PART_COLUMNS: Final = {
    "payloads": ["seq", "data"],
    "results": ["seq", "crc", "data"],
    "failures": ["seq", *_names(Failure)],
    "checkpoints": ["seq", "data"],
    "logs": ["seq", *_names(LogLine)],
}
"""Tables of what belongs to tasks, with their columns in one order for both engines."""

KEY_COLUMNS: Final = _names(Key)
PERMISSIONS: Final = KEY_COLUMNS.index("permissions")

SIDE_TABLES: Final = {
    "counters": ["task_type", "status", "tier", "present", "entered"],
    "minutes": ["minute", "completed", "failed", "busy"],
    "keys": KEY_COLUMNS,
    "audit": _names(AuditEntry),
    "kept": _names(Kept),
}
"""Tables beside the tasks and their bytes, with their columns in one order for both engines."""

_DIGEST_BYTES: Final = 16
_MODULUS: Final = 1 << (8 * _DIGEST_BYTES)


class Whole(Struct):
    """Some tasks with all that belongs to them, each row beginning with its task's number.

    The last column of a task is its readiness.
    """

    tasks: list[Row] = field(default_factory=list)
    payloads: list[Row] = field(default_factory=list)
    results: list[Row] = field(default_factory=list)
    failures: list[Row] = field(default_factory=list)
    checkpoints: list[Row] = field(default_factory=list)
    logs: list[Row] = field(default_factory=list)

    @property
    def tables(self) -> list[list[Row]]:
        """The tasks, and each kind of what belongs to them."""
        return [self.tasks, *(getattr(self, part) for part in PART_COLUMNS)]

    def renumbered(self, numbers: dict[int, int]) -> Self:
        """The same under other numbers."""
        return type(self)(*([(numbers[row[0]], *row[1:]) for row in rows] for rows in self.tables))

    def digests(self) -> dict[int, bytes]:
        """A digest of each task, over all its fields and bytes; lines count in their order."""
        parts: dict[int, list[Row]] = {}
        for kind, rows in enumerate(self.tables):
            for row in rows:
                parts.setdefault(row[0], []).append((kind, *row))
        return {seq: digest(rows) for seq, rows in parts.items()}


class Tally:
    """How many rows there are, and a checksum over them that does not depend on their order."""

    def __init__(self) -> None:
        self.number = 0
        self._sum = 0

    def add(self, digests: Iterable[bytes]) -> None:
        """Count rows with these digests."""
        for one in digests:
            self.number += 1
            self._sum = (self._sum + int.from_bytes(one, "big")) % _MODULUS

    @property
    def checksum(self) -> str:
        """32 hexadecimal digits."""
        return f"{self._sum:0{2 * _DIGEST_BYTES}x}"


class Sums:
    """What a look at one engine came to."""

    def __init__(self) -> None:
        self.tasks = Tally()
        self.statuses: Counter[str] = Counter()
        self.types: Counter[str] = Counter()
        self.parts: Counter[str] = Counter()
        self.sides = {table: Tally() for table in SIDE_TABLES}

    def add(self, whole: Whole, digests: dict[int, bytes]) -> None:
        """Count some tasks."""
        self.tasks.add(digests.values())
        self.statuses.update(row[STATUS] for row in whole.tasks)
        self.types.update(row[TASK_TYPE] for row in whole.tasks)
        for part in PART_COLUMNS:
            self.parts[part] += len(getattr(whole, part))

    def lines(self) -> list[tuple[str, int, str]]:
        """What there is, how often, and its checksum where it has one."""
        return [
            ("tasks", self.tasks.number, self.tasks.checksum),
            *((f"status {name}", number, "") for name, number in sorted(self.statuses.items())),
            *((f"type {name}", number, "") for name, number in sorted(self.types.items())),
            *((part, self.parts[part], "") for part in PART_COLUMNS),
            *((table, one.number, one.checksum) for table, one in self.sides.items()),
        ]


def digest(value: Any) -> bytes:
    """A digest of anything that is made of numbers, texts, bytes and lists."""
    return hashlib.blake2b(msgspec.msgpack.encode(value), digest_size=_DIGEST_BYTES).digest()


def writable(row: Sequence[Any]) -> Row:
    """A row as PostgreSQL can hold it: it has no NUL in texts, whose visible sign says as much."""
    return tuple(
        value.replace("\0", "␀") if isinstance(value, str) and "\0" in value else value
        for value in row
    )
