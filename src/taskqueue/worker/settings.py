"""How a worker works."""

from fnmatch import fnmatchcase

from msgspec import Struct

from taskqueue.core.errors import InvalidRequest
from taskqueue.wire.messages import LARGEST_CLAIM


class WorkerSettings(Struct, frozen=True, kw_only=True):
    """How a worker works.

    `concurrency` slots, of which a task takes one unless it weighs more; `shutdown_seconds` to
    finish when told to stop. A process for handlers is replaced after `child_tasks` of them, and
    when it has more than `child_memory_mb` megabytes resident after one; 0 is never. A handler in
    one has `cancel_seconds` to end by itself when its task is cancelled. A handler that
    keeps the event loop busy for `stall_seconds` is named in the log; 0 is never. It runs the
    handlers whose names match one of the patterns `types` (as in `mail.*`), or all if there are
    none, without those that match one of `exclude`.
    """

    concurrency: int = 10
    shutdown_seconds: float = 60.0
    child_tasks: int = 1_000
    child_memory_mb: int = 0
    cancel_seconds: float = 5.0
    stall_seconds: float = 1.0
    types: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise InvalidRequest for what cannot be."""
        if not 1 <= self.concurrency <= LARGEST_CLAIM:
            raise InvalidRequest(
                f"concurrency must be between 1 and {LARGEST_CLAIM}, got {self.concurrency}; "
                "start more workers for more",
                field="concurrency",
            )
        for name in ("child_tasks", "child_memory_mb", "cancel_seconds", "stall_seconds"):
            value = getattr(self, name)
            if not value >= 0:
                raise InvalidRequest(f"{name} must be 0 or more, got {value}", field=name)

    def takes(self, name: str) -> bool:
        """Whether the handler of this name is to be run."""
        is_wanted = not self.types or any(fnmatchcase(name, one) for one in self.types)
        return is_wanted and not any(fnmatchcase(name, one) for one in self.exclude)
