"""taskqueue, a durable task queue: the Python SDK for clients and workers."""

from taskqueue.client.aio import AsyncClient
from taskqueue.client.errors import TaskFailed, WaitTimeout
from taskqueue.client.sync import SyncClient
from taskqueue.client.task import Task, TaskPage, TaskStatus
from taskqueue.core.errors import (
    BrokerUnavailable,
    DataDamaged,
    IdempotencyConflict,
    InternalError,
    InvalidRequest,
    InvalidStatus,
    LeaseLost,
    OutcomeUnknown,
    PayloadTooLarge,
    QueueDepthExceeded,
    TaskNotFound,
    TaskQueueError,
)
from taskqueue.core.task import Status
from taskqueue.worker.app import App
from taskqueue.worker.context import Context
from taskqueue.worker.handle import Handle

__all__ = [
    "App",
    "AsyncClient",
    "BrokerUnavailable",
    "Context",
    "DataDamaged",
    "Handle",
    "IdempotencyConflict",
    "InternalError",
    "InvalidRequest",
    "InvalidStatus",
    "LeaseLost",
    "OutcomeUnknown",
    "PayloadTooLarge",
    "QueueDepthExceeded",
    "Status",
    "SyncClient",
    "Task",
    "TaskFailed",
    "TaskNotFound",
    "TaskPage",
    "TaskQueueError",
    "TaskStatus",
    "WaitTimeout",
]
