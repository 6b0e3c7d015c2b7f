"""What a client submits, and how it sees what became of it."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, Literal, cast

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

PRIORITIES: Final[dict[str, int]] = {"low": 50, "normal": 100, "high": 200, "critical": 255}
"""Names for priorities that people use."""

PriorityName = Literal["low", "normal", "high", "critical"]
UniqueWhile = Literal["pending", "running", "period"]


def priority_in(value: object) -> object:
    """The number that a name stands for; any other value as it is."""
    return PRIORITIES.get(value, value) if isinstance(value, str) else value


class Backoff(Struct, frozen=True, kw_only=True):
    """How long a task that failed waits for its next attempt, in seconds.

    `first` before the first retry, each later one `factor` (1 to 10) times the last, at most
    `longest`; each varies by the part `jitter` (0 to 1) of itself.
    """

    first: float = 5.0
    factor: float = 2.0
    longest: float = 3600.0
    jitter: float = 0.1


class Task(Struct, frozen=True):
    """A task to submit: its type, its payload, and how it is to be treated.

    `priority` 0-255, 255 first, or a name out of PRIORITIES; `timeout` seconds one attempt may
    take; `max_retries` executions after the first that failed, and their `backoff`; `schedule_at`
    (without an offset: UTC) or `delay` in seconds for later; `expires_at` or `expires_in` seconds
    to cancel it if no attempt has begun by then; `task_id` a UUID of your own, made for you
    otherwise; `idempotency_key` any name of your own, under which the broker takes one such task in
    a day; `tags` and `metadata` to find it by, which the worker sees too; `retention` seconds to
    keep it after its end.

    Of tasks of one type and `unique_key` there is one: `unique_while` it is pending, it is running
    or pending, or for the period of `unique_seconds`; a submit of another is answered with its id.
    With `replace` the one that waits is cancelled instead, and this one takes its place.
    """

    task_type: str
    payload: bytes
    priority: int | PriorityName = 100
    timeout: int = 300
    max_retries: int = 3
    schedule_at: datetime | None = None
    delay: float | None = None
    task_id: str | None = None
    idempotency_key: str | None = None
    tags: tuple[str, ...] = ()
    metadata: dict[str, str] = {}
    expires_at: datetime | None = None
    expires_in: float | None = None
    unique_key: str | None = None
    unique_while: UniqueWhile = "running"
    unique_seconds: float | None = None
    replace: bool = False
    backoff: Backoff | None = None
    retention: float | None = None

    def with_priority(self, priority: int | PriorityName) -> "Task":
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

    def with_tags(self, *tags: str) -> "Task":
        """This task with these tags beside those that it has."""
        return structs.replace(self, tags=(*self.tags, *tags))

    def with_metadata(self, **metadata: str) -> "Task":
        """This task with this metadata beside what it has."""
        return structs.replace(self, metadata={**self.metadata, **metadata})

    def with_unique_key(
        self,
        key: str,
        *,
        unique_while: UniqueWhile = "running",
        seconds: float | None = None,
        replace: bool = False,
    ) -> "Task":
        """This task as the only one of its type and key; see the class."""
        return structs.replace(
            self,
            unique_key=key,
            unique_while=unique_while,
            unique_seconds=seconds,
            replace=replace,
        )

    def with_backoff(self, backoff: Backoff) -> "Task":
        """This task with other delays before its retries."""
        return structs.replace(self, backoff=backoff)

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
        return words if self._is_plain() else words + _rare_words(asked)

    def request(self) -> SubmitRequest:
        """What it asks of a broker. Raises InvalidRequest, PayloadTooLarge."""
        asked = self._checked()
        asked.payload = self.payload
        return asked

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
                    "priority": priority_in(self.priority),
                    "timeout_seconds": self.timeout,
                    "max_retries": self.max_retries,
                    "schedule_at": self.schedule_at,
                    "delay_seconds": self.delay,
                    "task_id": self.task_id,
                    "idempotency_key": self.idempotency_key,
                    **({} if self._is_plain() else self._rare()),
                },
                SubmitRequest,
            )
        except msgspec.ValidationError as error:
            problem, _, field = str(error).replace("`key` in ", "").partition(" - at `$.")
            field = field.rstrip("`").partition("[")[0]
            field = _WRITTEN.get(field, field)
            if "matching regex" in problem:
                problem = "not of the form that it must have"
            value = repr(attrgetter(field)(self))[:60]
            raise InvalidRequest(f"{field}: {problem}, got {value}", field=field) from None
        if asked.task_id is not None and canonical_task_id(asked.task_id) is None:
            raise InvalidRequest(
                f"task_id must be a UUID, got {asked.task_id[:60]!r}", field="task_id"
            )
        return asked

    def _is_plain(self) -> bool:
        """Whether it has nothing that few tasks have."""
        rare: tuple[object, ...] = (
            self.expires_at,
            self.expires_in,
            self.unique_key,
            self.unique_seconds,
            self.backoff,
            self.retention,
        )
        some = self.tags or self.metadata or self.replace or self.unique_while != "running"
        return rare == _NONE and not some

    def _rare(self) -> dict[str, object]:
        """The fields that few tasks have, as far as this one has them."""
        asked = {
            "tags": self.tags,
            "metadata": self.metadata,
            "expires_at": self.expires_at,
            "expires_in_seconds": self.expires_in,
            "unique_key": self.unique_key,
            "unique_seconds": self.unique_seconds,
            "replace": self.replace,
            "retention_seconds": self.retention,
        }
        if self.unique_key is not None or self.unique_while != "running":
            asked["unique_while"] = self.unique_while
        if self.backoff is not None:
            asked["retry_delay_seconds"] = self.backoff.first
            asked["retry_factor"] = self.backoff.factor
            asked["retry_longest_seconds"] = self.backoff.longest
            asked["retry_jitter"] = self.backoff.jitter
        return {name: value for name, value in asked.items() if value not in _NOTHING}


_WRITTEN: Final = {
    "timeout_seconds": "timeout",
    "delay_seconds": "delay",
    "expires_in_seconds": "expires_in",
    "retention_seconds": "retention",
    "retry_delay_seconds": "backoff.first",
    "retry_factor": "backoff.factor",
    "retry_longest_seconds": "backoff.longest",
    "retry_jitter": "backoff.jitter",
}
"""Where a task has what a request calls otherwise."""

_RARE: Final = (
    (b"TAG", "tags"),
    (b"META", "metadata"),
    (b"EXPIREAT", "expires_at"),
    (b"EXPIRES", "expires_in_seconds"),
    (b"UNIQUE", "unique_key"),
    (b"WHILE", "unique_while"),
    (b"PERIOD", "unique_seconds"),
    (b"REPLACE", "replace"),
    (b"BACKOFF", "retry_delay_seconds"),
    (b"FACTOR", "retry_factor"),
    (b"LONGEST", "retry_longest_seconds"),
    (b"JITTER", "retry_jitter"),
    (b"KEEP", "retention_seconds"),
)
"""Options of TQ.SUBMIT that are sent where they are not as usual, and their fields."""

_NONE: Final = (None,) * 6
_NOTHING: Final[tuple[object, ...]] = (None, (), {})
_USUAL: Final[dict[str, object]] = {
    **dict.fromkeys((name for _, name in _RARE), None),
    "tags": [],
    "metadata": {},
    "unique_while": "running",
    "replace": False,
}


def _rare_words(asked: SubmitRequest) -> list[bytes]:
    words: list[bytes] = []
    for keyword, name in _RARE:
        value = getattr(asked, name)
        if value != _USUAL[name]:
            words += _words(keyword, value)
    return words


def labels(tags: Iterable[str], metadata: Mapping[str, str]) -> list[bytes]:
    """The words that name tags and metadata."""
    return [*_words(b"TAG", list(tags)), *_words(b"META", dict(metadata))]


def _words(keyword: bytes, value: object) -> list[bytes]:
    match value:
        case list():
            values = [str(one) for one in cast(list[object], value)]
        case dict():
            pairs = cast(dict[str, str], value).items()
            values = [f"{name}={text}" for name, text in pairs]
        case bool():
            values = ["yes" if value else "no"]
        case float():
            values = [f"{value:.6f}"]
        case datetime():
            values = [value.isoformat()]
        case _:
            values = [str(value)]
    return [word for one in values for word in (keyword, one.encode())]


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
