"""The task as the queue knows it: what is asked for, how it stands, what went wrong."""

from enum import StrEnum
from typing import Final

from msgspec import Struct

from taskqueue.core.retry import RetryPolicy


class Word(StrEnum):
    """A word of the queue's vocabulary; it hashes as its text does, in C."""

    __hash__ = str.__hash__


class Status(Word):
    """Where a task stands in its life. `lifecycle.MOVES` says how it gets from one to the next."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    DEAD_LETTER = "dead_letter"
    CANCELLED = "cancelled"


TERMINAL: Final = frozenset({Status.COMPLETED, Status.DEAD_LETTER, Status.CANCELLED})
"""The statuses in which a task stays unless an operator says otherwise."""

CLAIMABLE: Final = frozenset({Status.PENDING, Status.FAILED})
"""The statuses from which a worker may claim a task once its `run_at` has come."""


class Event(Word):
    """What can happen to a task. The last one is kept with it."""

    SUBMIT = "submit"
    CLAIM = "claim"
    COMPLETE = "complete"
    FAIL = "fail"
    RELEASE = "release"
    LOSE = "lose"
    TIME_OUT = "time_out"
    DAMAGE = "damage"
    CANCEL = "cancel"
    STOP = "stop"
    EXPIRE = "expire"
    CHANGE = "change"
    RETRY = "retry"


class Tier(Word):
    """Names for bands of priority, for reports only: claims go by the exact number."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


def tier_of(priority: int) -> Tier:
    """The band of a priority: high from 200, normal from 100, low below."""
    if priority >= 200:
        return Tier.HIGH
    return Tier.NORMAL if priority >= 100 else Tier.LOW


class Options(Struct, frozen=True, omit_defaults=True):
    """What few tasks are submitted with, and none changes.

    `retention` is how many microseconds the task is kept after its end, if that is shorter than
    the broker keeps them.
    """

    tags: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    retry: RetryPolicy | None = None
    retention: int | None = None


NO_OPTIONS: Final = Options()


class Task(Struct, frozen=True, array_like=True):
    """A task without its payload and result, which are written once and never change.

    Times are microseconds (`core.clock`): `deadline` and `claimed_at` on the steady clock, all
    others on the wall clock. `seq` is the order in which submits became durable. `payload_crc`
    is the CRC-32 of the payload. `progress` (0 to 1) is what the latest attempt said of itself.
    `losses` counts the workers and processes lost at the task since it was submitted or put back,
    `logged` the lines of its log. At `expires_at` a task that waits is cancelled, and one that has
    completed or was cancelled is deleted.
    """

    seq: int
    id: str
    task_type: str
    priority: int
    status: Status
    run_at: int
    timeout: int
    max_retries: int
    payload_crc: int
    created_at: int
    updated_at: int
    last_event: Event = Event.SUBMIT
    retry_count: int = 0
    token: int = 0
    worker_id: str | None = None
    claimed_at: int | None = None
    deadline: int | None = None
    progress: float | None = None
    progress_note: str = ""
    losses: int = 0
    options: Options | None = None
    expires_at: int | None = None
    logged: int = 0

    @property
    def has_retries_left(self) -> bool:
        """Whether one more failure still leaves an execution to come."""
        return self.retry_count < self.max_retries

    @property
    def is_terminal(self) -> bool:
        """Whether the task stays as it is unless an operator says otherwise."""
        return self.status in TERMINAL


class Failure(Struct, frozen=True, array_like=True):
    """Why an attempt did not succeed. `attempt` is the fencing token of the attempt."""

    attempt: int
    at: int
    worker_id: str | None
    kind: str
    message: str
    traceback: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}" if self.kind else self.message


class LogLevel(Word):
    """How grave a line of a task's log is."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogLine(Struct, frozen=True, array_like=True):
    """A line of a task's log. `attempt` is the fencing token of the attempt that wrote it."""

    attempt: int
    at: int
    level: LogLevel
    message: str


class ClaimedTask(Struct, frozen=True):
    """A task in the hands of a worker, with the bytes it is to work on.

    `checkpoint` is what an earlier attempt has kept for this one.
    """

    task: Task
    payload: bytes
    checkpoint: bytes | None = None


class TaskDetail(Struct, frozen=True):
    """All that is kept of one task except its payload: how it stands, its result, its failures."""

    task: Task
    result: bytes | None
    failures: list[Failure]
