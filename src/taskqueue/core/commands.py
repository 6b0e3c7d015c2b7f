"""What can be asked of the engine, each a small record. Engines take them in batches."""

from msgspec import Struct

from taskqueue.core.task import ClaimedTask, Event, Failure, Task


class Submit(Struct, frozen=True):
    """Put a task in the queue. A repeat with the same id and content changes nothing."""

    task: Task
    payload: bytes


class Claim(Struct, frozen=True):
    """Hand a worker up to `limit` ready tasks of the types it names."""

    worker_id: str
    task_types: tuple[str, ...]
    limit: int


class Complete(Struct, frozen=True):
    """The attempt with this token succeeded; `result` is kept."""

    task_id: str
    token: int
    result: bytes


class Fail(Struct, frozen=True):
    """The attempt with this token failed.

    `delay` in microseconds overrides the usual delay before the next attempt; `spread` (-1 to 1)
    places the usual one within its jitter.
    """

    task_id: str
    token: int
    kind: str
    message: str
    traceback: str = ""
    retryable: bool = True
    delay: int | None = None
    spread: float = 0.0


class Progress(Struct, frozen=True):
    """The attempt with this token says how far it is: `fraction` from 0 to 1, and a note."""

    task_id: str
    token: int
    fraction: float
    note: str


class Release(Struct, frozen=True):
    """The worker gives the task back unfinished; it costs no retry."""

    task_id: str
    token: int


class TakeBack(Struct, frozen=True):
    """The broker ends an attempt: its worker is gone (LOSE) or its deadline passed (TIME_OUT)."""

    task_id: str
    token: int
    why: Event
    message: str
    spread: float = 0.0


class Cancel(Struct, frozen=True):
    """Take a task that is not running out of the queue for good."""

    task_id: str


class Retry(Struct, frozen=True):
    """An operator puts a dead or cancelled task back; its retries start again."""

    task_id: str


class Promote(Struct, frozen=True):
    """Make up to `limit` tasks claimable whose `run_at` has come."""

    limit: int


class Purge(Struct, frozen=True):
    """Delete up to `limit` tasks that completed or were cancelled before `before`."""

    before: int
    limit: int


TaskCommand = Complete | Fail | Progress | Release | TakeBack | Cancel | Retry
"""Commands about one task that exists; their outcome is the task after it."""

Command = TaskCommand | Submit | Claim | Promote | Purge

Outcome = Task | list[ClaimedTask] | int
"""What a command came to: the task after it, the tasks claimed, or how many were touched."""

__all__ = [
    "Cancel",
    "Claim",
    "Command",
    "Complete",
    "Fail",
    "Failure",
    "Outcome",
    "Progress",
    "Promote",
    "Purge",
    "Release",
    "Retry",
    "Submit",
    "TakeBack",
    "TaskCommand",
]
