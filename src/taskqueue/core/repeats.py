"""What requests were answered, kept for a while so that their repeats are answered alike.

A submit is known by its idempotency key, a claim by the id its worker gave it. Of each worker
only the latest claim is kept.
"""

from enum import StrEnum
from typing import Final, TypeVar

import msgspec
from msgspec import Struct, structs

from taskqueue.core.clock import SECOND
from taskqueue.core.errors import DataDamaged, IdempotencyConflict
from taskqueue.core.task import CLAIMABLE, Status, Task

CONTENT: Final = ("task_type", "payload_crc", "priority", "timeout", "max_retries")
"""What makes two submissions the same: the fields that a repeat must not change."""

Content = tuple[str, int, int, int, int]

LOOK_AGAIN: Final = 600 * SECOND
"""How often it is looked whether a task still holds its unique key."""


class While(StrEnum):
    """How long a task keeps others of its unique key out of the queue."""

    PENDING = "pending"
    """Until it starts."""
    RUNNING = "running"
    """Until it has ended."""
    PERIOD = "period"
    """For so long after its submit."""


class Repeat(Struct, frozen=True):
    """How a request can be known again: by a key, until some moment in microseconds.

    `task_id` is the id that a submit names besides, if it does.
    """

    key: str
    until: int
    task_id: str | None = None


class Unique(Struct, frozen=True):
    """Which tasks there may be one of. `period` is in microseconds, for While.PERIOD.

    With `replaces` a task that waits is cancelled for the new one, and one that runs is let run.
    """

    key: str
    span: While = While.RUNNING
    period: int = 0
    replaces: bool = False

    def is_taken(self, holder: "Submitted", task: Task | None, wall: int) -> bool:
        """Whether the latest task of the key stands in the way of another one."""
        if self.span is While.PERIOD:
            return wall < holder.created_at + self.period
        if task is None:
            return False
        if task.status is Status.IN_PROGRESS:
            return self.span is While.RUNNING
        return task.status in CLAIMABLE


class Kept(Struct, frozen=True, array_like=True):
    """An answer that is kept. `scope` and `name` say whose, `key` for which request of theirs."""

    scope: str
    name: str
    key: str
    answer: str
    until: int


class Submitted(Struct, frozen=True, array_like=True):
    """The answer to a submit: the task's id and time, and what it was made of."""

    task_id: str
    created_at: int
    content: Content


Claimed = list[tuple[str, int]]
"""The answer to a claim: the ids of its tasks and their tokens."""

SUBMIT: Final = "submit"
CLAIM: Final = "claim"
UNIQUE: Final = "unique"

Answer = TypeVar("Answer")

_SUBMITTED: Final = msgspec.json.Decoder(Submitted)
_CLAIMED: Final = msgspec.json.Decoder(Claimed)


def content_of(task: Task) -> Content:
    """What a task was submitted as."""
    return (task.task_type, task.payload_crc, task.priority, task.timeout, task.max_retries)


def require_same(known: Content, asked: Content, name: str, what: str) -> None:
    """Raise IdempotencyConflict unless both are the same; `what` tells how they are connected."""
    for field, before, now in zip(CONTENT, known, asked, strict=True):
        if before != now:
            shown = "payload" if field == "payload_crc" else field
            raise IdempotencyConflict(
                f"{what} was used before for a task with another {shown}; "
                "choose a new one for a new task",
                field=name,
            )


def keep_submit(task: Task, repeat: Repeat) -> Kept:
    """The answer to a submit, for whoever comes with its key again."""
    answer = Submitted(task.id, task.created_at, content_of(task))
    return Kept(SUBMIT, repeat.key, repeat.key, _text(answer), repeat.until)


def keep_claim(worker_id: str, tasks: list[Task], repeat: Repeat) -> Kept:
    """The answer to a claim, for its worker."""
    answer: Claimed = [(task.id, task.token) for task in tasks]
    return Kept(CLAIM, worker_id, repeat.key, _text(answer), repeat.until)


def keep_unique(task: Task, unique: Unique, wall: int) -> Kept:
    """Which task holds a unique key from now on."""
    answer = Submitted(task.id, task.created_at, content_of(task))
    until = wall + (unique.period if unique.span is While.PERIOD else LOOK_AGAIN)
    return Kept(UNIQUE, unique.key, unique.key, _text(answer), until)


def holder_of(kept: Kept) -> Submitted:
    """The latest task of a unique key."""
    return _read(_SUBMITTED, kept)


def first_answer(kept: Kept, task: Task, repeat: Repeat) -> Task:
    """What the first submit with a key was answered. Raises IdempotencyConflict."""
    first = _read(_SUBMITTED, kept)
    what = f"idempotency_key {repeat.key}"
    require_same(first.content, content_of(task), "idempotency_key", what)
    if repeat.task_id not in (None, first.task_id):
        raise IdempotencyConflict(
            f"{what} was used before for task {first.task_id}; choose a new one for a new task",
            field="idempotency_key",
        )
    return structs.replace(task, id=first.task_id, created_at=first.created_at)


def claimed(kept: Kept) -> Claimed:
    """The answer to a claim that was kept."""
    return _read(_CLAIMED, kept)


def _text(answer: Submitted | Claimed) -> str:
    return msgspec.json.encode(answer).decode()


def _read(decoder: "msgspec.json.Decoder[Answer]", kept: Kept) -> Answer:
    try:
        return decoder.decode(kept.answer)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DataDamaged(f"a kept answer makes no sense: {error}") from error
