"""Every error a caller can meet, with its stable code and its status on each protocol.

TaskQueueError
├── InvalidRequest          the input is wrong; nothing was changed
├── PayloadTooLarge
├── UnsupportedMedia
├── RouteNotFound
├── MethodNotAllowed
├── AuthenticationFailed    no key, or not a valid one, where one is needed
├── PermissionDenied        the key is valid, but not for this
├── RateLimitExceeded
├── TaskNotFound
├── WorkerNotFound
├── KeyNotFound
├── KeyExists               another valid API key has this name
├── InvalidStatus           the task exists, but its status forbids the request
├── IdempotencyConflict     the id or key was used before for a different task
├── LeaseLost               the claim is over; what its worker says no longer counts
├── QueueDepthExceeded
├── BrokerUnavailable       nothing was changed; try again later
│   ├── OutcomeUnknown      the change may or may not have happened; repeat with the same id
│   └── StorageRefused      the storage must not be opened as it is; an operator has to decide
└── InternalError
    └── DataDamaged         stored bytes do not match their checksum
"""

from typing import ClassVar


class TaskQueueError(Exception):
    """An error of the queue. `code` is stable; the message is for people.

    `field` names the input at fault where there is one; `retry_after` is in seconds.
    """

    code: ClassVar[str] = "INTERNAL_ERROR"
    http: ClassVar[int] = 500
    grpc: ClassVar[str] = "INTERNAL"

    def __init__(
        self, message: str, *, field: str | None = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after


class InvalidRequest(TaskQueueError):
    """The input is wrong. The message names the field, what is wrong with it and the fix."""

    code, http, grpc = "INVALID_REQUEST", 400, "INVALID_ARGUMENT"


class PayloadTooLarge(TaskQueueError):
    """A payload, result or request body is over its limit."""

    code, http, grpc = "PAYLOAD_TOO_LARGE", 413, "INVALID_ARGUMENT"


class UnsupportedMedia(TaskQueueError):
    """The body's content type or encoding is not one the broker reads."""

    code, http, grpc = "UNSUPPORTED_MEDIA_TYPE", 415, "INVALID_ARGUMENT"


class RouteNotFound(TaskQueueError):
    """No such path or command."""

    code, http, grpc = "NOT_FOUND", 404, "UNIMPLEMENTED"


class MethodNotAllowed(TaskQueueError):
    """The path exists, but not with this HTTP method."""

    code, http, grpc = "METHOD_NOT_ALLOWED", 405, "UNIMPLEMENTED"


class AuthenticationFailed(TaskQueueError):
    """A valid API key is needed, and none was sent."""

    code, http, grpc = "AUTHENTICATION_FAILED", 401, "UNAUTHENTICATED"


class PermissionDenied(TaskQueueError):
    """The API key is valid, but does not permit this."""

    code, http, grpc = "PERMISSION_DENIED", 403, "PERMISSION_DENIED"


class RateLimitExceeded(TaskQueueError):
    """More requests came from one key or address than it may send."""

    code, http, grpc = "RATE_LIMIT_EXCEEDED", 429, "RESOURCE_EXHAUSTED"


class TaskNotFound(TaskQueueError):
    """No task has this id."""

    code, http, grpc = "TASK_NOT_FOUND", 404, "NOT_FOUND"


class WorkerNotFound(TaskQueueError):
    """No worker with this id is alive."""

    code, http, grpc = "WORKER_NOT_FOUND", 404, "NOT_FOUND"


class KeyNotFound(TaskQueueError):
    """No API key has this id."""

    code, http, grpc = "KEY_NOT_FOUND", 404, "NOT_FOUND"


class KeyExists(TaskQueueError):
    """Another valid API key has this name."""

    code, http, grpc = "KEY_EXISTS", 409, "ALREADY_EXISTS"


class InvalidStatus(TaskQueueError):
    """The task's present status forbids what was asked."""

    code, http, grpc = "INVALID_STATUS", 409, "FAILED_PRECONDITION"


class IdempotencyConflict(TaskQueueError):
    """The task id or idempotency key was used before for a task with other content."""

    code, http, grpc = "IDEMPOTENCY_CONFLICT", 409, "ALREADY_EXISTS"


class LeaseLost(TaskQueueError):
    """The claim that the token stands for is over; nothing was changed."""

    code, http, grpc = "LEASE_LOST", 409, "ABORTED"


class QueueDepthExceeded(TaskQueueError):
    """The queue holds as many pending tasks as it may."""

    code, http, grpc = "QUEUE_DEPTH_EXCEEDED", 503, "RESOURCE_EXHAUSTED"


class BrokerUnavailable(TaskQueueError):
    """The broker or its storage cannot take the request now; nothing was changed."""

    code, http, grpc = "BROKER_UNAVAILABLE", 503, "UNAVAILABLE"


class OutcomeUnknown(BrokerUnavailable):
    """The change may or may not be durable. Repeating it with the same id is safe.

    Its message says MARK, which is how the answer of a broker is told from BrokerUnavailable.
    """

    MARK = "outcome unknown"


class StorageRefused(BrokerUnavailable):
    """The storage must not be opened as it is. The message says why and what to do."""


class InternalError(TaskQueueError):
    """A fault of the broker itself."""


class DataDamaged(InternalError):
    """Stored bytes do not match the checksum written with them; they are not handed out."""


def known_errors(root: type[TaskQueueError] = TaskQueueError) -> list[type[TaskQueueError]]:
    """Every error class from `root` down, parents first."""
    return [root, *(found for child in root.__subclasses__() for found in known_errors(child))]


ERRORS_BY_CODE = {error.code: error for error in reversed(known_errors())}
"""The class that stands for each code: the most general one that has it."""
