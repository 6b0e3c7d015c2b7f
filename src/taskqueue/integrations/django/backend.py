"""The backend: Django tasks become tasks of a broker."""

import threading
from collections.abc import Callable, Iterable
from datetime import datetime
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar, cast

import msgspec
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.utils import timezone
from django.utils.module_loading import import_string

from taskqueue.client.task import Task
from taskqueue.core.errors import InvalidRequest, TaskNotFound
from taskqueue.core.ids import new_task_id
from taskqueue.integrations.django.calls import (
    TASK,
    Call,
    Message,
    aware,
    broker_priority,
    metadata_of,
    result_in,
    set_field,
)
from taskqueue.integrations.django.framework import (
    AnyResult,
    BaseTaskBackend,
    TaskResult,
    TaskResultDoesNotExist,
    TaskResultStatus,
    task_enqueued,
)
from taskqueue.integrations.django.framework import Task as DjangoTask
from taskqueue.integrations.django.running import Runner
from taskqueue.worker.app import App

Arguments = ParamSpec("Arguments")
Value = TypeVar("Value")

OPTIONS: Final[dict[str, Any]] = {
    "URL": None,
    "API_KEY": None,
    "ENQUEUE_ON_COMMIT": True,
    "DATABASE": None,
    "RETRIES": 3,
    "TIMEOUT": 300,
    "PREFIX": "django.",
    "SETUP": None,
}
"""The options there are, with what holds without them."""

_apps: dict[tuple[Any, ...], App] = {}
_lock = threading.Lock()


class TaskQueueBackend(BaseTaskBackend):
    """Enqueues on a broker; `manage.py taskqueue_worker` runs what is enqueued.

    Raises ImproperlyConfigured for options that there are not, and queues that cannot be.
    """

    supports_defer = True
    supports_async_task = True
    supports_get_result = True
    supports_priority = True

    def __init__(self, alias: str, params: dict[str, Any]) -> None:
        super().__init__(alias, params)
        unknown = self.options.keys() - OPTIONS.keys()
        if unknown:
            raise ImproperlyConfigured(
                f"TASKS[{alias!r}]: there is no option {min(unknown)}; there are "
                f"{', '.join(OPTIONS)}"
            )
        self._option = {**OPTIONS, **self.options}
        self.app = _app(self._option["URL"], self._option["API_KEY"], self._option["SETUP"])
        try:
            for queue in self.queues or ["default"]:
                self._as_task(queue).request()
        except InvalidRequest as error:
            raise ImproperlyConfigured(f"TASKS[{alias!r}]: {error}") from None

    def enqueue(
        self, task: "DjangoTask[Arguments, Value]", args: list[Any], kwargs: dict[str, Any]
    ) -> "TaskResult[Arguments, Value]":
        """Submit a call: at once, or when the transaction that it is made in is committed.

        Raises InvalidRequest, PayloadTooLarge, and where it submits at once QueueDepthExceeded,
        BrokerUnavailable.
        """
        self.validate_task(task)
        result: TaskResult[Arguments, Value] = TaskResult(
            task=task,
            id=new_task_id(),
            status=TaskResultStatus.READY,
            enqueued_at=None,
            started_at=None,
            finished_at=None,
            last_attempted_at=None,
            args=list(args),
            kwargs=kwargs,
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        message = self._message(result)
        message.request()  # what is wrong is told here, not after the commit
        if self._option["ENQUEUE_ON_COMMIT"]:
            submit = partial(self._submit, result, message)
            transaction.on_commit(submit, using=self._option["DATABASE"])
        else:
            self._submit(result, message)
        return result

    def get_result(self, result_id: str) -> AnyResult:
        """How a task stands. Raises TaskResultDoesNotExist, BrokerUnavailable."""
        try:
            status = self.app.clients.sync().get_status(result_id)
        except (TaskNotFound, InvalidRequest):
            raise TaskResultDoesNotExist(result_id) from None
        if TASK not in status.metadata:  # it is none of Django's
            raise TaskResultDoesNotExist(result_id)
        return result_in(status, self.alias)

    def prepare_worker(self, queues: Iterable[str] = ()) -> Runner:
        """Let a worker of `app` run the tasks of these queues, or of all that are configured.

        Raises ImproperlyConfigured if there are none.
        """
        chosen = sorted(set(queues) or self.queues)
        if not chosen:
            raise ImproperlyConfigured(f"TASKS[{self.alias!r}] has no QUEUES; name them")
        runner = Runner(type(self), self.alias)
        for queue in chosen:
            self.app.raw(self._as_task(queue).task_type)(runner.run)
        return runner

    def _submit(self, result: AnyResult, message: Task) -> None:
        self.app.clients.submit_sync(message)
        set_field(result, "enqueued_at", timezone.now())
        task_enqueued.send(type(self), task_result=result)

    def _message(self, result: AnyResult) -> Task:
        task = result.task
        message = Message(
            task.module_path,
            task.queue_name,
            task.priority,
            aware(timezone.now()),
            Call(result.args, result.kwargs),
        )
        submitted = self._as_task(task.queue_name, msgspec.json.encode(message))
        return msgspec.structs.replace(
            submitted,
            priority=broker_priority(task.priority),
            schedule_at=_aware(task.run_after),
            task_id=result.id,
            metadata=metadata_of(result),
        )

    def _as_task(self, queue: str, payload: bytes = b"") -> Task:
        return Task(
            self._option["PREFIX"] + queue,
            payload,
            timeout=self._option["TIMEOUT"],
            max_retries=self._option["RETRIES"],
        )


def _aware(moment: datetime | None) -> datetime | None:
    return None if moment is None else aware(moment)


def _app(url: str | None, api_key: str | None, setup: str | None) -> App:
    """The app for these options: Django makes a backend for each thread, which share one."""
    with _lock:
        app = _apps.get((url, api_key, setup))
        if app is None:
            app = App(url, api_key=api_key)
            if setup is not None:
                cast(Callable[[App], object], import_string(setup))(app)
            _apps[url, api_key, setup] = app
        return app
