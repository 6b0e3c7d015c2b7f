"""A call of a Django task: how it travels, and how what became of it is told to Django."""

import re
from datetime import datetime
from typing import Any, Final, cast

import msgspec
from django.conf import settings
from django.utils import timezone
from django.utils.module_loading import import_string
from msgspec import Struct

from taskqueue.client.task import TaskStatus
from taskqueue.core.task import Status
from taskqueue.integrations.django.framework import (
    AnyResult,
    AnyTask,
    Task,
    TaskError,
    TaskResult,
    TaskResultStatus,
)
from taskqueue.wire.messages import LONGEST_METADATA, FailureReply

TASK: Final = "django.task"
QUEUE: Final = "django.queue"
RUN_AFTER: Final = "django.run_after"
CALL: Final = "django.call"
"""What a task's metadata has: the path of its function, its queue, its moment, its arguments."""

STATUSES: Final = {
    Status.PENDING: TaskResultStatus.READY,
    Status.FAILED: TaskResultStatus.READY,  # waits for its next attempt
    Status.IN_PROGRESS: TaskResultStatus.RUNNING,
    Status.COMPLETED: TaskResultStatus.SUCCESSFUL,
    Status.DEAD_LETTER: TaskResultStatus.FAILED,
    Status.CANCELLED: TaskResultStatus.FAILED,
}


class AttemptFailed(Exception):
    """An attempt that ended without an exception of its handler, as with its worker."""


class Call(Struct):
    """The arguments of a call."""

    args: list[Any] = []
    kwargs: dict[str, Any] = {}


class Message(Struct):
    """The payload: a call of the task at a path."""

    task: str
    queue: str
    priority: int
    enqueued_at: datetime
    call: Call


class Returned(Struct):
    """What a worker keeps of an execution that came to its end."""

    value: Any
    started_at: datetime


def broker_priority(priority: int) -> int:
    """Django's -100 to 100 as one of 0 to 255."""
    return round((priority + 100) * 255 / 200)


def django_priority(priority: int) -> int:
    """The way back."""
    return round(priority * 200 / 255) - 100


def metadata_of(result: AnyResult) -> dict[str, str]:
    """What goes with a task so that `get_result` can tell of it."""
    task = result.task
    metadata = {TASK: task.module_path, QUEUE: task.queue_name}
    if task.run_after is not None:
        metadata[RUN_AFTER] = aware(task.run_after).isoformat()
    call = msgspec.json.encode(Call(result.args, result.kwargs)).decode()
    if len(call) <= LONGEST_METADATA:
        metadata[CALL] = call
    return metadata


def task_at(path: str) -> AnyTask:
    """The task that is declared at a path. Raises ImportError, TypeError if it is none."""
    found: object = import_string(path)
    if not isinstance(found, Task):
        raise TypeError(f"{path} is not a task of Django's Tasks framework")
    return cast(AnyTask, found)


def result_in(status: TaskStatus, alias: str) -> AnyResult:
    """What Django is told of a task. Raises ImportError if its function is no more."""
    metadata = status.metadata
    moment = metadata.get(RUN_AFTER)
    call = msgspec.json.decode(metadata.get(CALL, "{}"), type=Call)
    task = task_at(metadata[TASK]).using(
        priority=django_priority(status.priority),
        queue_name=metadata[QUEUE],
        run_after=None if moment is None else local(datetime.fromisoformat(moment)),
        backend=alias,
    )
    returned = None
    if status.status is Status.COMPLETED:
        returned = msgspec.json.decode(status.result or b"", type=Returned)
    began = _began(status, returned)
    result: AnyResult = TaskResult(
        task=task,
        id=status.task_id,
        status=STATUSES[status.status],
        enqueued_at=local(status.created_at),
        started_at=began,
        finished_at=local(status.updated_at) if status.status in _OVER else None,
        last_attempted_at=began or (local(status.failures[-1].at) if status.failures else None),
        args=call.args,
        kwargs=call.kwargs,
        backend=alias,
        errors=[_error(failure) for failure in status.failures],
        worker_ids=_workers(status),
    )
    if returned is not None:
        set_field(result, "_return_value", returned.value)
    return result


def set_field(result: AnyResult, name: str, value: object) -> None:
    """Change a result: it is frozen for its users, not for a backend."""
    object.__setattr__(result, name, value)


def local(moment: datetime) -> datetime:
    """A moment as the project has them: aware, or naive in its time zone."""
    return moment if settings.USE_TZ else timezone.make_naive(moment)


def aware(moment: datetime) -> datetime:
    """A moment of the project's with its offset."""
    return moment if timezone.is_aware(moment) else timezone.make_aware(moment)


_OVER: Final = frozenset({Status.COMPLETED, Status.DEAD_LETTER, Status.CANCELLED})


def _began(status: TaskStatus, returned: Returned | None) -> datetime | None:
    if returned is not None:
        return local(returned.started_at)
    return local(status.updated_at) if status.status is Status.IN_PROGRESS else None


def _workers(status: TaskStatus) -> list[str]:
    """The worker of each attempt."""
    workers = [failure.worker_id or "" for failure in status.failures]
    if status.status in (Status.IN_PROGRESS, Status.COMPLETED):
        workers.append(status.worker_id or "")
    return workers


def _error(failure: FailureReply) -> TaskError:
    kind, _, _ = failure.error.partition(":")
    # The last line that names it is that of the error itself, after its causes.
    named = re.findall(rf"^((?:\w+\.)*{re.escape(kind)})(?::|$)", failure.traceback, re.MULTILINE)
    path = named[-1] if named else f"{AttemptFailed.__module__}.{AttemptFailed.__qualname__}"
    if "." not in path:
        path = f"builtins.{path}"
    return TaskError(exception_class_path=path, traceback=failure.traceback or failure.error)
