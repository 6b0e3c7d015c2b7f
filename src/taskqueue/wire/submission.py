"""What a request to submit asks of the queue: a task with its times, and how it may be repeated."""

import zlib
from datetime import datetime
from typing import Any

from taskqueue.core.clock import SECOND, microseconds
from taskqueue.core.commands import Submit
from taskqueue.core.errors import InvalidRequest
from taskqueue.core.ids import canonical_task_id, new_task_id
from taskqueue.core.repeats import Repeat, Unique, While
from taskqueue.core.retry import USUAL, RetryPolicy
from taskqueue.core.task import Options, Status, Task
from taskqueue.wire import messages as m


def submission(request: m.SubmitRequest, now: int, key_kept: int) -> Submit:
    """The command that a request stands for at the moment `now`.

    Its idempotency key is remembered for `key_kept` microseconds. Raises InvalidRequest.
    """
    task_id = new_task_id() if request.task_id is None else _chosen_id(request.task_id)
    run_at = start_of(request, now)
    task = Task(
        0,
        task_id,
        request.task_type,
        request.priority,
        Status.PENDING,
        now if run_at is None else run_at,
        request.timeout_seconds * SECOND,
        request.max_retries,
        zlib.crc32(request.payload),
        now,
        now,
        options=_options(request),
        expires_at=_expiry(request, now, run_at),
    )
    repeat = None
    if request.idempotency_key is not None:
        chosen = None if request.task_id is None else task_id
        repeat = Repeat(request.idempotency_key, now + key_kept, chosen)
    return Submit(task, request.payload, repeat, _unique(request))


def start_of(request: m.SubmitRequest | m.ChangeRequest, now: int) -> int | None:
    """The moment from which a task may be claimed, if the request names one, but never the past.

    Raises InvalidRequest.
    """
    return _moment("schedule_at", request.schedule_at, "delay_seconds", request.delay_seconds, now)


def _moment(
    name: str, at: datetime | None, other: str, seconds: float | None, now: int
) -> int | None:
    if seconds is None and at is None:
        return None
    if seconds is not None:
        if at is not None:
            raise InvalidRequest(f"{other} cannot go with {name}; give one of them", field=other)
        return now + round(seconds * SECOND)
    assert at is not None  # noqa: S101  for the type checker
    try:
        return max(now, microseconds(at))
    except OverflowError:
        raise InvalidRequest(
            f"{name} must lie between the years 1 and 9999 in UTC", field=name
        ) from None


def _expiry(request: m.SubmitRequest, now: int, run_at: int | None) -> int | None:
    if request.expires_at is None and request.expires_in_seconds is None:
        return None
    expiry = _moment(
        "expires_at", request.expires_at, "expires_in_seconds", request.expires_in_seconds, now
    )
    if expiry is not None and expiry <= (run_at or now):
        field = "expires_at" if request.expires_at is not None else "expires_in_seconds"
        raise InvalidRequest(
            f"{field} must be later than the moment from which the task may start", field=field
        )
    return expiry


def _options(request: m.SubmitRequest) -> Options | None:
    has_policy = (
        request.retry_delay_seconds is not None
        or request.retry_factor is not None
        or request.retry_longest_seconds is not None
        or request.retry_jitter is not None
    )
    if not (has_policy or request.tags or request.metadata) and request.retention_seconds is None:
        return None
    return Options(
        tags=tuple(dict.fromkeys(request.tags)),
        metadata=request.metadata,
        retry=_policy(request) if has_policy else None,
        retention=_or(request.retention_seconds, None),
    )


def _policy(request: m.SubmitRequest) -> RetryPolicy:
    longest = _or(request.retry_longest_seconds, USUAL.longest)
    first = _or(request.retry_delay_seconds, min(USUAL.first, longest))
    if first > longest:
        raise InvalidRequest(
            "retry_delay_seconds must be at most retry_longest_seconds, which is "
            f"{longest / SECOND:g}",
            field="retry_delay_seconds",
        )
    return RetryPolicy(
        first=first,
        factor=USUAL.factor if request.retry_factor is None else request.retry_factor,
        longest=longest,
        jitter=USUAL.jitter if request.retry_jitter is None else request.retry_jitter,
    )


def _or(seconds: float | None, usual: Any) -> Any:
    return usual if seconds is None else round(seconds * SECOND)


def _unique(request: m.SubmitRequest) -> Unique | None:
    if request.unique_key is None:
        for field, is_given in (
            ("replace", request.replace),
            ("unique_seconds", request.unique_seconds is not None),
            ("unique_while", request.unique_while is not While.RUNNING),
        ):
            if is_given:
                raise InvalidRequest(f"{field} needs a unique_key", field=field)
        return None
    is_for_period = request.unique_while is While.PERIOD
    if is_for_period is (request.unique_seconds is None):
        raise InvalidRequest(
            "unique_seconds and unique_while=period go together; give both or neither",
            field="unique_seconds",
        )
    return Unique(
        # No type has a space in it: keys of two types never meet.
        f"{request.task_type} {request.unique_key}",
        request.unique_while,
        _or(request.unique_seconds, 0),
        request.replace,
    )


def _chosen_id(task_id: str) -> str:
    canonical = canonical_task_id(task_id)
    if canonical is None:
        raise InvalidRequest(
            "task_id must be a UUID such as 0192f0c1-2f8e-7cc2-98b4-1f2d3c4b5a69", field="task_id"
        )
    return canonical
