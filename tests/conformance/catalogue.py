"""What the API reference demands, line by line, and which tests prove it.

Every entry must be claimed by a test with `@proves`; `test_catalogue` sees to it.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final, TypeVar

Test = TypeVar("Test", bound=Callable[..., Any])

DEMANDS: Final = {
    "base.url": "everything is reached at http://HOST:8080",
    "base.ports": "REST is at port 8080, gRPC at 9090, the clients' protocol at 6379",
    "auth.optional": "a Bearer token may be sent everywhere, and need not while no key exists",
    "auth.required": "where keys are required every example works with one and is 401 without",
    "content.type": "all endpoints take and give application/json",
    "submit.request": "POST /api/v1/tasks takes the six documented fields",
    "submit.task_type": "task_type is required",
    "submit.payload": "payload is required, base64, at most 10 MB",
    "submit.priority": "priority is 0 to 255 and 100 by default",
    "submit.schedule_at": "schedule_at is an ISO 8601 time that delays the execution",
    "submit.timeout_seconds": "timeout_seconds is 300 by default",
    "submit.max_retries": "max_retries is 3 by default",
    "submit.response": "201 with task_id, status pending, created_at",
    "submit.400": "400 for an invalid payload or missing fields",
    "submit.429": "429 when the rate limit is exceeded",
    "submit.503": "503 when the queue depth is exceeded or the broker unavailable",
    "submit.example": "the curl line of submit works as printed",
    "get.response": "GET /api/v1/tasks/{task_id} answers 200 with the eleven documented fields",
    "get.answer": "a task in progress is answered as the printed example is",
    "get.404": "404 for a task that does not exist",
    "get.401": "401 for an invalid API key",
    "get.example": "the curl line of get works as printed",
    "status.pending": "a task that waits is pending",
    "status.in_progress": "a task that is executed is in_progress, with its worker's id",
    "status.completed": "a task that succeeded is completed, with its result",
    "status.failed": "a task whose execution failed is failed, and eligible for retry",
    "status.dead_letter": "a task out of retries is dead_letter, with its error",
    "status.cancelled": "a task that was cancelled is cancelled (an addition to the five)",
    "list.status": "status filters by each of the five statuses",
    "list.task_type": "task_type filters by type",
    "list.limit": "limit is 100 by default and at most 1000",
    "list.offset": "offset is 0 by default and skips tasks",
    "list.response": "200 with tasks of six fields, total, limit, offset",
    "list.answer": "a page is answered as the printed example is",
    "list.example": "the curl line of list works as printed",
    "cancel.204": "DELETE /api/v1/tasks/{task_id} answers 204 without content",
    "cancel.404": "404 for a task that does not exist",
    "cancel.409": "409 for a task that is in progress or completed",
    "cancel.403": "403 without the permission",
    "cancel.example": "the curl line of cancel works as printed",
    "stats.response": "GET /api/v1/stats answers 200 with the seven documented fields, true ones",
    "stats.tiers": "queue_depth_by_priority has high, normal and low",
    "stats.example": "the curl line of stats works as printed",
    "health.response": "GET /api/v1/health answers 200 with the five documented fields",
    "health.healthy": "an operational broker is healthy",
    "health.degraded": "a broker that cannot commit is degraded",
    "metrics.format": "GET /metrics is Prometheus text",
    "metrics.tasks_total": "tq_tasks_total is a counter by status and task_type",
    "metrics.pending": "tq_tasks_pending is a gauge",
    "metrics.duration": "tq_task_processing_duration_seconds is a histogram by task_type",
    "grpc.service": "taskqueue.TaskQueue has the six documented calls",
    "grpc.auth": "a Bearer token is taken as metadata, and needed where keys are required",
    "grpc.wire": "stubs made from the documented messages get along with the server",
    "grpc.numbers": "the documented fields have their numbers and types",
    "grpc.submit": "SubmitTask answers task_id, status, created_at",
    "grpc.payload": "a payload of 10 MB is taken over gRPC too, and none larger",
    "grpc.schedule_at": "schedule_at is a Timestamp that delays the execution",
    "grpc.presence": "fields that are not set have the documented defaults, an explicit 0 is 0",
    "grpc.invalid": "values out of range are INVALID_ARGUMENT",
    "grpc.status": "GetTaskStatus answers result, error, retry_count and worker_id",
    "grpc.cancel": "CancelTask cancels, and refuses as over REST",
    "grpc.list": "ListTasks lists as over REST",
    "grpc.stream": "StreamTaskUpdates sends the present state, each change, ends with the task",
    "grpc.stats": "GetStats answers as over REST",
    "grpc.permission": "a key without the permission is PERMISSION_DENIED",
    "grpc.error.TASK_NOT_FOUND": "the code over gRPC, with NOT_FOUND",
    "grpc.error.INVALID_STATUS": "the code over gRPC, with FAILED_PRECONDITION",
    "grpc.error.QUEUE_DEPTH_EXCEEDED": "the code over gRPC, with RESOURCE_EXHAUSTED",
    "grpc.error.RATE_LIMIT_EXCEEDED": "the code over gRPC, with RESOURCE_EXHAUSTED",
    "grpc.error.AUTHENTICATION_FAILED": "the code over gRPC, with UNAUTHENTICATED",
    "grpc.error.BROKER_UNAVAILABLE": "the code over gRPC, with UNAVAILABLE",
    "grpc.error.INTERNAL_ERROR": "the code over gRPC, with INTERNAL",
    "grpc.example.submit": "the grpcurl line of submit works as printed",
    "grpc.example.stream": "the grpcurl line of the stream works as printed",
    "client.sync": "the sync client's example works, in Python",
    "client.async": "the async client's example works, in Python",
    "error.format": "every error has error, code and timestamp",
    "error.TASK_NOT_FOUND": "the code for a task that does not exist",
    "error.INVALID_STATUS": "the code for an action that the task's state forbids",
    "error.QUEUE_DEPTH_EXCEEDED": "the code for a full queue",
    "error.RATE_LIMIT_EXCEEDED": "the code for too many requests",
    "error.AUTHENTICATION_FAILED": "the code for an invalid API key",
    "error.BROKER_UNAVAILABLE": "the code for a broker that cannot answer",
    "error.INTERNAL_ERROR": "the code for an unexpected error",
    "limit.rate": "100 requests per second per API key",
    "limit.grpc": "the limit and its headers hold over gRPC too",
    "limit.headers": "X-RateLimit-Limit, -Remaining and -Reset are sent and true",
    "limit.retry_after": "429 comes with a Retry-After that is true",
    "version.path": "the API's version is v1, in every path",
    "version.deprecation": "an endpoint that is deprecated says so in headers",
}
"""Each demand by its name, in words of our own."""

claims: defaultdict[str, set[str]] = defaultdict(set)
"""The tests that prove each demand."""


def proves(*names: str) -> Callable[[Test], Test]:
    """The test below proves these demands; their sentences become its docstring."""
    unknown = set(names) - DEMANDS.keys()
    assert not unknown, unknown

    def claimed(test: Test) -> Test:
        for name in names:
            claims[name].add(f"{test.__module__}.{test.__name__}")
        sentences = [f"{name}: {DEMANDS[name]}" for name in names]
        test.__doc__ = "\n".join([*sentences, test.__doc__ or ""]).strip()
        return test

    return claimed
