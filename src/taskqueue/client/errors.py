"""What can go wrong at a client besides the broker's own errors."""

from taskqueue.core.errors import ERRORS_BY_CODE, BrokerUnavailable, TaskQueueError
from taskqueue.core.task import Status


class TaskFailed(TaskQueueError):
    """The task ended without a result: out of retries, or cancelled.

    `status` is how it ended, `traceback` that of its last attempt where it had one.
    """

    code, http, grpc = "TASK_FAILED", 409, "ABORTED"

    def __init__(self, message: str, *, task_id: str, status: Status, traceback: str = "") -> None:
        super().__init__(message)
        self.task_id = task_id
        self.status = status
        self.traceback = traceback

    def __str__(self) -> str:
        text = f"task {self.task_id} ended as {self.status}: {self.message}"
        return f"{text}\n\n{self.traceback}" if self.traceback else text


class WaitTimeout(TaskQueueError, TimeoutError):
    """The time to wait is over; the task goes on, and can be waited for again."""

    code, http, grpc = "WAIT_TIMEOUT", 504, "DEADLINE_EXCEEDED"


def remote_error(line: str) -> TaskQueueError:
    """The error that a broker's answer stands for: a code, then a message."""
    code, _, message = line.partition(" ")
    if message.startswith("max number of clients"):  # how Redis, too, says that it is full
        return BrokerUnavailable(message)
    known = ERRORS_BY_CODE.get(code)
    if known is None:
        return TaskQueueError(line)
    return known(message)
