"""What can go wrong at a client besides the broker's own errors."""

from taskqueue.client.task import TaskStatus
from taskqueue.core.errors import ERRORS_BY_CODE, BrokerUnavailable, OutcomeUnknown, TaskQueueError
from taskqueue.core.task import Status


class TaskFailed(TaskQueueError):
    """The task ended without a result: out of retries, or cancelled.

    `status` is how it ended, `traceback` that of its last attempt where it had one, `kind` the
    class of the error there, as in `RuntimeError`, or empty.
    """

    code, http, grpc = "TASK_FAILED", 409, "ABORTED"

    def __init__(self, message: str, *, task_id: str, status: Status, traceback: str = "") -> None:
        super().__init__(message)
        self.task_id = task_id
        self.status = status
        self.traceback = traceback

    @property
    def kind(self) -> str:
        kind, colon, _ = self.message.partition(":")
        return kind if colon and kind.isidentifier() else ""

    def __reduce__(self) -> tuple[object, ...]:
        # Its keywords do not come through pickle by themselves, as between processes.
        return _failed_again, (self.message, self.task_id, self.status, self.traceback)

    def __str__(self) -> str:
        text = f"task {self.task_id} ended as {self.status}: {self.message}"
        return f"{text}\n\n{self.traceback}" if self.traceback else text


class WaitTimeout(TaskQueueError, TimeoutError):
    """The time to wait is over; the task goes on, and can be waited for again."""

    code, http, grpc = "WAIT_TIMEOUT", 504, "DEADLINE_EXCEEDED"


def result_of(status: TaskStatus) -> bytes:
    """The result of a task that has ended. Raises TaskFailed if it has none."""
    if status.status is Status.COMPLETED:
        return status.result or b""
    traceback = status.failures[-1].traceback if status.failures else ""
    raise TaskFailed(
        status.error or "it was cancelled",
        task_id=status.task_id,
        status=status.status,
        traceback=traceback,
    )


def _failed_again(message: str, task_id: str, status: Status, traceback: str) -> TaskFailed:
    return TaskFailed(message, task_id=task_id, status=status, traceback=traceback)


def remote_error(line: str) -> TaskQueueError:
    """The error that a broker's answer stands for: a code, then a message."""
    code, _, message = line.partition(" ")
    if message.startswith("max number of clients"):  # how Redis, too, says that it is full
        return BrokerUnavailable(message)
    known = ERRORS_BY_CODE.get(code)
    if known is None:
        return TaskQueueError(line)
    if known is BrokerUnavailable and OutcomeUnknown.MARK in message:
        return OutcomeUnknown(message)
    return known(message)
