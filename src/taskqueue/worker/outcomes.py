"""How an attempt fails: what a handler raises to say what is to follow, and what is told of it."""

import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final

from msgspec import Struct

from taskqueue.wire.messages import LONGEST_DELAY

LONGEST_TEXT: Final = 100_000
"""Characters of a text that are sent; the broker keeps 64 Ki of them."""

_OUR_FOLDER: Final = str(Path(__file__).parent)


class Retry(Exception):
    """Raised by a handler: this attempt failed, try again after `delay` seconds.

    It costs one of the task's retries. Without `delay` the usual one holds.
    """

    delay: float | None = None

    def __init__(self, message: str = "", *, delay: float | None = None) -> None:
        super().__init__(message)
        self.delay = None if delay is None else _checked(delay, "delay")


class Snooze(Exception):
    """Raised by a handler: not now, but in so many `seconds`. It costs no retry."""

    seconds: float = 0.0

    def __init__(self, seconds: float) -> None:
        super().__init__(f"for {seconds:g} s")
        self.seconds = _checked(seconds, "seconds")


class Fail(Exception):
    """Raised by a handler: the task has failed for good, whatever retries it has left."""


class Failure(Struct, frozen=True):
    """An attempt without a result, as it is told: `kind` is the class of what was raised.

    With `is_snooze` it has not failed: the task is given back for later. `process_died` says that
    there is no process any more that could have told more.
    """

    kind: str
    message: str
    traceback: str = ""
    delay: float | None = None
    retryable: bool = True
    is_snooze: bool = False
    process_died: bool = False

    def command(self, task_id: str, token: int) -> list[bytes]:
        """The words that tell the broker."""
        if self.is_snooze:
            delay = f"{self.delay or 0:.6f}".encode()
            return [b"TQ.RELEASE", task_id.encode(), b"%d" % token, b"DELAY", delay]
        words = [b"TQ.FAIL", task_id.encode(), b"%d" % token, self.message.encode()]
        words += [b"KIND", self.kind.encode()]
        if self.traceback:
            words += [b"TRACEBACK", self.traceback.encode()]
        if self.delay is not None:
            words += [b"DELAY", f"{self.delay:.6f}".encode()]
        if not self.retryable:
            words += [b"RETRYABLE", b"no"]
        if self.process_died:
            words += [b"DIED", b"yes"]
        return words


class ProcessError(Exception):
    """What a handler raised in a process of its own, as middleware sees it in the worker.

    `failure` has its kind, its message and its traceback as text.
    """

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.kind}: {failure.message}")
        self.failure = failure


class WorkerProcessDied(ProcessError):
    """The process in which a handler ran has ended before the handler did."""

    def __init__(self, message: str) -> None:
        super().__init__(Failure("WorkerProcessDied", message, process_died=True))


def failure_of(
    error: BaseException, allows_retry: Callable[[BaseException], bool] | None = None
) -> Failure:
    """What is told of an error that a handler has raised; `allows_retry` judges it."""
    if isinstance(error, ProcessError):
        return error.failure
    if isinstance(error, Snooze):
        return Failure("Snooze", "put off", delay=_delay_of(error), is_snooze=True)
    try:
        message = str(error)
    except BaseException:  # noqa: BLE001  an error that cannot even be shown is still an error
        message = "its message could not be made"
    # Not by setting the error's traceback: a class of the user's may refuse to be changed.
    part = _handlers_part(error.__traceback__)
    told = traceback.TracebackException(type(error), error, part)
    return Failure(
        clipped(type(error).__name__),
        clipped(message),
        # With its causes: what went wrong is often said there.
        clipped("".join(told.format())),
        _delay_of(error),
        not isinstance(error, Fail) if allows_retry is None else allows_retry(error),
    )


def _checked(seconds: float, name: str) -> float:
    if not 0 <= seconds <= LONGEST_DELAY:
        raise ValueError(f"{name} must be 0 to {LONGEST_DELAY}, got {seconds}")
    return seconds


def _delay_of(error: BaseException) -> float | None:
    # Of a class of the user's it may be anything.
    delay: object = None
    if isinstance(error, Retry):
        delay = error.delay
    elif isinstance(error, Snooze):
        delay = error.seconds
    if isinstance(delay, int | float) and 0 <= delay <= LONGEST_DELAY:
        return float(delay)
    return None


def _handlers_part(frames: TracebackType | None) -> TracebackType | None:
    """A traceback without the worker's own frames at its top."""
    while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OUR_FOLDER):
        frames = frames.tb_next
    return frames


def clipped(text: str) -> str:
    """As much of a text as is sent, without what UTF-8 cannot say."""
    return text[:LONGEST_TEXT].encode(errors="replace").decode()
