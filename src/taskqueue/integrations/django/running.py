"""Runs calls of Django tasks in a worker's threads."""

from datetime import datetime
from traceback import format_exception
from typing import Any

import msgspec
from django.db import close_old_connections
from django.utils import timezone

from taskqueue.integrations.django.calls import Message, Returned, aware, local, set_field, task_at
from taskqueue.integrations.django.framework import (
    AnyResult,
    BaseTaskBackend,
    TaskContext,
    TaskError,
    TaskResult,
    TaskResultStatus,
    normalize_json,
    task_finished,
    task_started,
)
from taskqueue.worker.context import Context
from taskqueue.worker.outcomes import Fail, Snooze


class Runner:
    """Runs the calls that a worker gets for a backend. The worker says who it is when it starts."""

    def __init__(self, sender: type[BaseTaskBackend], alias: str) -> None:
        self.worker_id = ""
        self._sender = sender
        self._alias = alias

    def run(self, ctx: Context[Any], payload: bytes) -> bytes:
        """The result's bytes of the call in `payload`. Raises what the task raises, Fail."""
        close_old_connections()
        try:
            return self._run(ctx, msgspec.json.decode(payload, type=Message))
        finally:
            close_old_connections()

    def _run(self, ctx: Context[Any], message: Message) -> bytes:
        began = timezone.now()
        result = self._result(ctx, message, began)
        task_started.send(sender=self._sender, task_result=result)
        args = [TaskContext(task_result=result)] if result.task.takes_context else []
        try:
            value = normalize_json(
                result.task.call(*args, *message.call.args, **message.call.kwargs)
            )
        except Snooze:
            raise
        except BaseException as error:
            path = f"{type(error).__module__}.{type(error).__qualname__}"
            told = TaskError(exception_class_path=path, traceback="".join(format_exception(error)))
            result.errors.append(told)
            self._finish(result, TaskResultStatus.FAILED)
            raise
        set_field(result, "_return_value", value)
        self._finish(result, TaskResultStatus.SUCCESSFUL)
        return msgspec.json.encode(Returned(value, aware(began)))

    def _result(self, ctx: Context[Any], message: Message, began: datetime) -> AnyResult:
        try:
            task = task_at(message.task)
        except (ImportError, TypeError) as error:
            raise Fail(f"this worker has no such task: {error}") from error
        return TaskResult(
            task=task.using(
                priority=message.priority, queue_name=message.queue, backend=self._alias
            ),
            id=ctx.task_id,
            status=TaskResultStatus.RUNNING,
            enqueued_at=local(message.enqueued_at),
            started_at=began,
            finished_at=None,
            last_attempted_at=began,
            args=message.call.args,
            kwargs=message.call.kwargs,
            backend=self._alias,
            errors=[],
            worker_ids=[self.worker_id] * ctx.attempt,
        )

    def _finish(self, result: AnyResult, status: TaskResultStatus) -> None:
        set_field(result, "finished_at", timezone.now())
        set_field(result, "status", status)
        task_finished.send(sender=self._sender, task_result=result)
