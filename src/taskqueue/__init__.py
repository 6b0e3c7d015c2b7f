"""taskqueue, a durable task queue: the Python SDK for clients and workers."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskqueue.client.aio import AsyncClient
    from taskqueue.client.errors import TaskFailed, WaitTimeout
    from taskqueue.client.sync import SyncClient
    from taskqueue.client.task import Backoff, Task, TaskPage, TaskStatus
    from taskqueue.core.errors import (
        AuthenticationFailed,
        BrokerUnavailable,
        DataDamaged,
        IdempotencyConflict,
        InternalError,
        InvalidRequest,
        InvalidStatus,
        KeyExists,
        KeyNotFound,
        LeaseLost,
        OutcomeUnknown,
        PayloadTooLarge,
        PermissionDenied,
        QueueDepthExceeded,
        RateLimitExceeded,
        TaskNotFound,
        TaskQueueError,
        WorkerNotFound,
    )
    from taskqueue.core.keys import Permission
    from taskqueue.core.task import Status
    from taskqueue.worker.app import App
    from taskqueue.worker.context import Cancellation, Context
    from taskqueue.worker.entry import run_worker
    from taskqueue.worker.gathering import (
        as_completed,
        as_completed_sync,
        gather,
        gather_sync,
    )
    from taskqueue.worker.handle import Handle
    from taskqueue.worker.middleware import CallNext, Middleware, SubmitMiddleware, SubmitNext
    from taskqueue.worker.outcomes import Fail, ProcessError, Retry, Snooze, WorkerProcessDied
    from taskqueue.worker.runner import Worker
    from taskqueue.worker.settings import WorkerSettings

__all__ = [
    "App",
    "AsyncClient",
    "AuthenticationFailed",
    "Backoff",
    "BrokerUnavailable",
    "CallNext",
    "Cancellation",
    "Context",
    "DataDamaged",
    "Fail",
    "Handle",
    "IdempotencyConflict",
    "InternalError",
    "InvalidRequest",
    "InvalidStatus",
    "KeyExists",
    "KeyNotFound",
    "LeaseLost",
    "Middleware",
    "OutcomeUnknown",
    "PayloadTooLarge",
    "Permission",
    "PermissionDenied",
    "ProcessError",
    "QueueDepthExceeded",
    "RateLimitExceeded",
    "Retry",
    "Snooze",
    "Status",
    "SubmitMiddleware",
    "SubmitNext",
    "SyncClient",
    "Task",
    "TaskFailed",
    "TaskNotFound",
    "TaskPage",
    "TaskQueueError",
    "TaskStatus",
    "WaitTimeout",
    "Worker",
    "WorkerNotFound",
    "WorkerProcessDied",
    "WorkerSettings",
    "as_completed",
    "as_completed_sync",
    "gather",
    "gather_sync",
    "run_worker",
]

_PLACES = {
    "taskqueue.client.aio": ("AsyncClient",),
    "taskqueue.client.errors": ("TaskFailed", "WaitTimeout"),
    "taskqueue.client.sync": ("SyncClient",),
    "taskqueue.client.task": ("Backoff", "Task", "TaskPage", "TaskStatus"),
    "taskqueue.core.keys": ("Permission",),
    "taskqueue.core.task": ("Status",),
    "taskqueue.worker.app": ("App",),
    "taskqueue.worker.context": ("Cancellation", "Context"),
    "taskqueue.worker.entry": ("run_worker",),
    "taskqueue.worker.gathering": (
        "as_completed",
        "as_completed_sync",
        "gather",
        "gather_sync",
    ),
    "taskqueue.worker.handle": ("Handle",),
    "taskqueue.worker.middleware": (
        "CallNext",
        "Middleware",
        "SubmitMiddleware",
        "SubmitNext",
    ),
    "taskqueue.worker.outcomes": ("Fail", "ProcessError", "Retry", "Snooze", "WorkerProcessDied"),
    "taskqueue.worker.runner": ("Worker",),
    "taskqueue.worker.settings": ("WorkerSettings",),
}
_PLACE_OF = {name: place for place, names in _PLACES.items() for name in names}


if not TYPE_CHECKING:  # a type checker would take any name at all for one of ours

    def __getattr__(name: str) -> object:
        # Imported when first asked for: `tq --version` and the broker need none of it.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        module = importlib.import_module(_PLACE_OF.get(name, "taskqueue.core.errors"))
        return getattr(module, name)


def __dir__() -> list[str]:
    return __all__
