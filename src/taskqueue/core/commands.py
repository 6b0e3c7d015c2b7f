"""What can be asked of the engine, each a small record. Engines take them in batches.

`scope`, where a command has one, is the beginning that a task's type must have for whoever asks:
to them, other tasks do not exist.
"""

from typing import Final

from msgspec import Struct

from taskqueue.core.audit import Actor
from taskqueue.core.keys import Key
from taskqueue.core.repeats import Repeat, Unique
from taskqueue.core.task import ClaimedTask, Event, Failure, LogLevel, Task

MOST_LOSSES: Final = 5
"""Workers, or processes of theirs, that a task may cost, unless the broker is told otherwise."""


class Submit(Struct, frozen=True):
    """Put a task in the queue. A repeat with the same id or key, and content, changes nothing.

    Where `unique` says that there may be one such task, the one that is there stands for it.
    """

    task: Task
    payload: bytes
    repeat: Repeat | None = None
    unique: Unique | None = None


class Claim(Struct, frozen=True):
    """Hand a worker up to `limit` ready tasks of the types it names.

    A repeat of the worker's latest claim gets the same tasks, as far as they are still its.
    """

    worker_id: str
    task_types: tuple[str, ...]
    limit: int
    repeat: Repeat | None = None


class Complete(Struct, frozen=True):
    """The attempt with this token succeeded; `result` is kept."""

    task_id: str
    token: int
    result: bytes
    scope: str = ""


class Fail(Struct, frozen=True):
    """The attempt with this token failed.

    `delay` in microseconds overrides the usual delay before the next attempt; `spread` (-1 to 1)
    places the usual one within its jitter. `process_died` says that the handler took its process
    along: a task that has cost `most_losses` processes or workers is tried no more.
    """

    task_id: str
    token: int
    kind: str
    message: str
    traceback: str = ""
    retryable: bool = True
    delay: int | None = None
    spread: float = 0.0
    scope: str = ""
    process_died: bool = False
    most_losses: int = MOST_LOSSES


class Progress(Struct, frozen=True):
    """The attempt with this token says how far it is: `fraction` from 0 to 1, and a note."""

    task_id: str
    token: int
    fraction: float
    note: str
    scope: str = ""


class Log(Struct, frozen=True):
    """The attempt with this token puts a line in the task's log."""

    task_id: str
    token: int
    level: LogLevel
    message: str
    scope: str = ""


class Checkpoint(Struct, frozen=True):
    """The attempt with this token keeps `data` for the next one, instead of what was kept."""

    task_id: str
    token: int
    data: bytes
    scope: str = ""


class Extend(Struct, frozen=True):
    """The attempt with this token may take `time` microseconds more, from now."""

    task_id: str
    token: int
    time: int
    scope: str = ""


class Release(Struct, frozen=True):
    """The worker gives the task back unfinished; it costs no retry.

    With a `delay` in microseconds it may be claimed again after that, else at once.
    """

    task_id: str
    token: int
    scope: str = ""
    delay: int = 0


class TakeBack(Struct, frozen=True):
    """The broker ends an attempt: its worker is gone (LOSE) or its deadline passed (TIME_OUT).

    A task that has cost `most_losses` of them is tried no more. `is_chore` says that it is
    housekeeping, which only the leader may do.
    """

    task_id: str
    token: int
    why: Event
    message: str
    spread: float = 0.0
    scope: str = ""
    is_chore: bool = False
    most_losses: int = MOST_LOSSES


class Cancel(Struct, frozen=True):
    """Take a task out of the queue for good; one that is running only if `running` says so."""

    task_id: str
    scope: str = ""
    running: bool = False


class Change(Struct, frozen=True):
    """Give a task that waits another priority, or another moment from which it may be claimed."""

    task_id: str
    priority: int | None = None
    run_at: int | None = None
    scope: str = ""


class Expire(Struct, frozen=True):
    """Take a task out of the queue if it still waits past its expiry."""

    task_id: str
    scope: str = ""


class Delete(Struct, frozen=True):
    """Delete a task that has ended, with all that belongs to it."""

    task_id: str
    scope: str = ""


class Retry(Struct, frozen=True):
    """An operator puts a dead or cancelled task back; its retries start again."""

    task_id: str
    scope: str = ""


class Promote(Struct, frozen=True):
    """Make up to `limit` tasks claimable whose `run_at` has come."""

    limit: int


class Purge(Struct, frozen=True):
    """Delete up to `limit` tasks that completed or were cancelled before `before`.

    As many go with them whose own retention is over, as many answers kept for repeats whose time
    is, and as many entries of the audit log from before `audit_before`; the outcome is the largest
    of the numbers.
    """

    before: int
    limit: int
    audit_before: int = 0


class CreateKey(Struct, frozen=True):
    """Add an API key. `is_spare` says that somebody else can manage keys in any case."""

    key: Key
    is_spare: bool = False


class RotateKey(Struct, frozen=True):
    """Give a key a new secret; the old one is valid for `overlap` microseconds more."""

    key_id: str
    digest: str
    hint: str
    overlap: int


class RevokeKey(Struct, frozen=True):
    """End a key for good. `is_spare` says that somebody else can manage keys in any case."""

    key_id: str
    is_spare: bool = False


class NoteKeyUse(Struct, frozen=True):
    """A key was used at this moment, as far as the broker has not noted it before."""

    key_id: str
    at: int


class Audited(Struct, frozen=True):
    """A command to be put in the audit log with whoever asked for it, and what came of it."""

    command: "TaskCommand | KeyCommand"
    operation: str
    actor: Actor


AttemptNote = Progress | Log | Checkpoint | Extend
"""What an attempt says while it goes on; the task's status stays."""

OperatorCommand = Cancel | Retry | Change | Delete
"""What somebody beside the worker wants done with a task."""

TaskCommand = Complete | Fail | Release | AttemptNote | TakeBack | Expire | OperatorCommand
"""Commands about one task that exists; their outcome is the task after it."""

KeyCommand = CreateKey | RotateKey | RevokeKey | NoteKeyUse
"""Commands about one API key; their outcome is the key after it."""

BareCommand = TaskCommand | KeyCommand | Submit | Claim | Promote | Purge

Command = BareCommand | Audited

Outcome = Task | Key | list[ClaimedTask] | int
"""What a command came to: the task or key after it, the tasks claimed, how many were touched."""

__all__ = [
    "MOST_LOSSES",
    "AttemptNote",
    "Audited",
    "BareCommand",
    "Cancel",
    "Change",
    "Checkpoint",
    "Claim",
    "Command",
    "Complete",
    "CreateKey",
    "Delete",
    "Expire",
    "Extend",
    "Fail",
    "Failure",
    "KeyCommand",
    "Log",
    "NoteKeyUse",
    "OperatorCommand",
    "Outcome",
    "Progress",
    "Promote",
    "Purge",
    "Release",
    "Retry",
    "RevokeKey",
    "RotateKey",
    "Submit",
    "TakeBack",
    "TaskCommand",
]
