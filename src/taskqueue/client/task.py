"""What a client submits, and how it sees what became of it."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, cast

import msgspec
from msgspec import Struct, structs

from taskqueue.core.errors import InvalidRequest, PayloadTooLarge
from taskqueue.core.ids import canonical_task_id
from taskqueue.wire.messages import (
    LARGEST_PAYLOAD,
    ListReply,
    SubmitRequest,
    TaskReply,
)


class Task(Struct, frozen=True):
    """A task to submit: its type, its payload, and how it is to be treated.

    `priority` 0-255, 255 first; `timeout` seconds one attempt may take; `max_retries` executions
    after the first that failed; `schedule_at` (without an offset: UTC) or `delay` in seconds for
    later; `task_id` a UUID of your own, made for you otherwise; `idempotency_key` any name of your
    own, under which the broker takes one such task in a day.
    """

    task_type: str
    payload: bytes
    priority: int = 100
    timeout: int = 300
    max_retries: int = 3
    schedule_at: datetime | None = None
    delay: float | None = None
    task_id: str | None = None
    idempotency_key: str | None = None

    def with_priority(self, priority: int) -> "Task":
        """This task with another priority."""
        return structs.replace(self, priority=priority)

    def with_timeout(self, seconds: int) -> "Task":
        """This task with another time limit for an attempt."""
        return structs.replace(self, timeout=seconds)

    def with_max_retries(self, number: int) -> "Task":
        """This task with another number of retries."""
        return structs.replace(self, max_retries=number)

    def with_schedule_at(self, moment: datetime) -> "Task":
        """This task, not to start before `moment`."""
        return structs.replace(self, schedule_at=moment, delay=None)

    def with_delay(self, seconds: float) -> "Task":
        """This task, not to start for so many seconds."""
        return structs.replace(self, delay=seconds, schedule_at=None)

    def with_task_id(self, task_id: str) -> "Task":
        """This task under an id of your own: submitting it twice makes one task."""
        return structs.replace(self, task_id=task_id)

    def with_idempotency_key(self, key: str) -> "Task":
        """This task under a key of your own: submitting it twice in a day makes one task."""
        return structs.replace(self, idempotency_key=key)

    def command(self, task_id: str | None) -> list[bytes]:
        """The words that submit it. Raises InvalidRequest, PayloadTooLarge."""
        asked = self._checked()
        words = [b"TQ.SUBMIT", asked.task_type.encode(), self.payload]
        if task_id is not None:
            words += [b"ID", task_id.encode()]
        if asked.idempotency_key is not None:
            words += [b"KEY", asked.idempotency_key.encode()]
        if asked.priority != 100:
            words += [b"PRIORITY", b"%d" % asked.priority]
        if asked.timeout_seconds != 300:
            words += [b"TIMEOUT", b"%d" % asked.timeout_seconds]
        if asked.max_retries != 3:
            words += [b"RETRIES", b"%d" % asked.max_retries]
        if asked.schedule_at is not None:
            words += [b"AT", asked.schedule_at.isoformat().encode()]
        if asked.delay_seconds is not None:
            words += [b"DELAY", f"{asked.delay_seconds:.6f}".encode()]
        return words

    def _checked(self) -> SubmitRequest:
        payload = cast(object, self.payload)
        if not isinstance(payload, bytes):
            raise InvalidRequest(
                f"payload must be bytes, got {type(payload).__name__}", field="payload"
            )
        if len(self.payload) > LARGEST_PAYLOAD:
            raise PayloadTooLarge(
                f"payload must be at most {LARGEST_PAYLOAD} bytes, got {len(self.payload)}",
                field="payload",
            )
        if self.delay is not None and self.schedule_at is not None:
            raise InvalidRequest(
                "delay cannot go with schedule_at; give one of them", field="delay"
            )
        try:
            asked = msgspec.convert(
                {
                    "task_type": self.task_type,
                    "payload": b"",
                    "priority": self.priority,
                    "timeout_seconds": self.timeout,
                    "max_retries": self.max_retries,
                    "schedule_at": self.schedule_at,
                    "delay_seconds": self.delay,
                    "task_id": self.task_id,
                    "idempotency_key": self.idempotency_key,
                },
                SubmitRequest,
            )
        except msgspec.ValidationError as error:
            problem, _, field = str(error).partition(" - at `$.")
            field = field.rstrip("`").removesuffix("_seconds")
            value = repr(getattr(self, field, None))[:60]
            raise InvalidRequest(f"{field}: {problem}, got {value}", field=field) from None
        if asked.task_id is not None and canonical_task_id(asked.task_id) is None:
            raise InvalidRequest(
                f"task_id must be a UUID, got {asked.task_id[:60]!r}", field="task_id"
            )
        return asked


class TaskStatus(TaskReply):
    """How a task stands, and its result or its failures."""


class TaskPage(ListReply):
    """One page of a list; `next_cursor` asks for the next one."""


def as_fields(answer: Any) -> Any:
    """An answer with its texts decoded; a field called `result` stays bytes."""
    if isinstance(answer, dict):
        pairs = cast(dict[bytes, Any], answer)
        return {
            key.decode(): value if key == b"result" else as_fields(value)
            for key, value in pairs.items()
        }
    if isinstance(answer, list):
        return [as_fields(part) for part in cast(Sequence[Any], answer)]
    return answer.decode() if isinstance(answer, bytes) else answer
