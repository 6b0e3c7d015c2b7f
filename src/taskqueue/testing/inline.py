"""Runs an app's tasks in the process of a test, without a broker, at the time the test says."""

import asyncio
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Final

import msgspec

from taskqueue.client.errors import WaitTimeout
from taskqueue.client.sync import LoopThread
from taskqueue.client.task import Task, TaskStatus
from taskqueue.core.clock import SECOND, ManualClock, microseconds, moment
from taskqueue.core.commands import (
    Cancel,
    Change,
    Checkpoint,
    Complete,
    Delete,
    Extend,
    Fail,
    Log,
    Progress,
    Release,
    Retry,
    TakeBack,
    TaskCommand,
)
from taskqueue.core.errors import InvalidRequest, LeaseLost
from taskqueue.core.task import TERMINAL, ClaimedTask, Event, Status, TaskDetail
from taskqueue.core.task import Task as Claimed
from taskqueue.testing.books import Books
from taskqueue.testing.clients import InlineClient, InlineSyncClient
from taskqueue.testing.home import Home
from taskqueue.wire.messages import ChangeRequest, ProgressRequest, task_reply
from taskqueue.wire.submission import start_of
from taskqueue.wire.workers import (
    CheckpointRequest,
    ExtendRequest,
    LogLineReply,
    LogRequest,
    logs_reply,
)
from taskqueue.worker.app import App
from taskqueue.worker.context import NO_STATE, Claim, Context
from taskqueue.worker.execution import Execution, checked
from taskqueue.worker.handler import TaskHandler
from taskqueue.worker.middleware import execute_through
from taskqueue.worker.notes import Note
from taskqueue.worker.outcomes import failure_of

REQUESTS: Final = {
    "progress": ProgressRequest,
    "log": LogRequest,
    "extend": ExtendRequest,
    "checkpoint": CheckpointRequest,
}
"""What each kind of note must be."""

MOST_EXECUTIONS: Final = 10_000
"""After so many in one go a test is told that its handlers submit without an end."""

WORKER: Final = "in-line"
THREADS: Final = 32


class InlineQueue:
    """While its block lasts, what is submitted to `app` runs here, and time stands still.

    `with InlineQueue(app) as queue` or `async with`. Handlers, middleware, lifespan, arguments,
    retries and delays are the real ones. The handlers of an `async with` run on the test's event
    loop, those of a `with` on one in a thread. Nothing runs before `run_due`, `advance` or a wait
    for a result; only `advance` moves the clock, which starts at `start` (else in 2023).
    """

    def __init__(self, app: App, *, start: datetime | None = None) -> None:
        self.clock = ManualClock() if start is None else ManualClock(microseconds(start))
        self._app = app
        self._books = Books(self.clock)
        self._lock = threading.RLock()
        self._errors: dict[str, BaseException] = {}
        self._state: object = NO_STATE
        self._stack = AsyncExitStack()
        self._thread = LoopThread()
        self._home = Home()
        self._changed = asyncio.Event()
        self.client = InlineClient(self)
        self.sync_client = InlineSyncClient(self.client, self._home)

    def __enter__(self) -> "InlineQueue":
        self._thread.run(self._open())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._thread.run(self._stack.aclose())
        finally:
            self._thread.stop()

    async def __aenter__(self) -> "InlineQueue":
        await self._open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    @property
    def now(self) -> datetime:
        """The time."""
        return moment(self.clock.wall())

    @property
    def tasks(self) -> list[TaskStatus]:
        """Every task, in the order of the submits."""
        return self.listed(None, None)

    @property
    def dead_letters(self) -> list[TaskStatus]:
        """The tasks that are out of retries."""
        return self.listed(Status.DEAD_LETTER, None)

    def tasks_of(self, task: TaskHandler[Any, Any] | str) -> list[TaskStatus]:
        """The tasks of one type, in the order of the submits."""
        return self.listed(None, _type_of(task))

    def calls(self, task: TaskHandler[Any, Any]) -> list[dict[str, Any]]:
        """The arguments of each submit of a task by name, as the handler gets them."""
        return [_arguments(task, self.payload(status.task_id)) for status in self.tasks_of(task)]

    def payload(self, task_id: str) -> bytes:
        """What a task was submitted with. Raises TaskNotFound."""
        with self._lock:
            return self._books.payload(task_id)

    def status(self, task_id: str) -> TaskStatus:
        """How a task stands. Raises TaskNotFound."""
        with self._lock:
            return _status(self._books.detail(task_id))

    def error(self, task_id: str) -> BaseException | None:
        """What the handler of a task has raised last."""
        return self._errors.get(task_id)

    def listed(self, status: Status | None, task_type: str | None) -> list[TaskStatus]:
        """The tasks with this status and of this type, where they are given."""
        with self._lock:
            return [
                _status(self._books.detail(task.id))
                for task in sorted(self._books.tasks.values(), key=lambda task: task.seq)
                if status in (None, task.status) and task_type in (None, task.task_type)
            ]

    def submit(self, task: Task) -> str:
        """Take a task in; what the clients do. Raises InvalidRequest, IdempotencyConflict."""
        with self._lock:
            return self._books.submit(task).id

    def cancel(self, task_id: str, *, running: bool = False) -> None:
        """Cancel a task. Raises TaskNotFound, InvalidStatus."""
        self._settle(Cancel(self.status(task_id).task_id, running=running))

    def retry(self, task_id: str) -> None:
        """Put a dead or cancelled task back. Raises TaskNotFound, InvalidStatus."""
        self._settle(Retry(self.status(task_id).task_id))

    def change(self, request: ChangeRequest) -> None:
        """Give a task that waits another priority or time. Raises TaskNotFound, InvalidStatus."""
        run_at = start_of(request, self.clock.wall())
        self._settle(Change(self.status(request.task_id).task_id, request.priority, run_at))

    def purge(self, task_id: str) -> None:
        """Delete a task that has ended. Raises TaskNotFound, InvalidStatus."""
        self._settle(Delete(self.status(task_id).task_id))

    def logs(self, task_id: str) -> list[LogLineReply]:
        """The lines that the attempts at a task have logged. Raises TaskNotFound."""
        with self._lock:
            return logs_reply(self._books.logs(task_id)).lines

    async def run_due(self) -> int:
        """Run what is due now, and what that submits; how many executions it took."""
        return await self._home.await_(self._run_due())

    def run_due_sync(self) -> int:
        """As `run_due`, for tests without asyncio."""
        return self._home.run(self._run_due())

    async def advance(self, seconds: float) -> int:
        """Let time pass, running each task at the moment it is due; how many executions.

        In a handler: call `clock.advance(seconds)`, as if its work took so long.
        """
        return await self._home.await_(self._advance(seconds))

    def advance_sync(self, seconds: float) -> int:
        """As `advance`, for tests without asyncio."""
        return self._home.run(self._advance(seconds))

    async def wait_for_end(self, task_id: str, timeout: float) -> TaskStatus:  # noqa: ASYNC109
        """Run what is due; how the task stands at its end. Raises WaitTimeout, TaskNotFound.

        `timeout` is real seconds, for a task that runs already in another coroutine.
        """
        return await self._home.await_(self._wait_for_end(task_id, timeout))

    async def _open(self) -> None:
        self._home.settle()
        instead: dict[str, Any] = {"aio": lambda: self.client, "sync": lambda: self.sync_client}
        replaced = vars(self._app.clients)
        if "aio" in replaced:
            raise RuntimeError("the tasks of this app run in line already, in another InlineQueue")
        async with AsyncExitStack() as stack:
            replaced.update(instead)
            stack.callback(_remove, replaced, instead)
            self._threads = stack.enter_context(ThreadPoolExecutor(THREADS, "tq-handler"))
            if self._app.lifespan is not None:
                self._state = await stack.enter_async_context(self._app.lifespan(self._app))
            self._stack = stack.pop_all()

    async def _run_due(self) -> int:
        for number in range(MOST_EXECUTIONS):
            with self._lock:
                claimed = self._books.claim(self._app.handlers.keys(), WORKER)
            if claimed is None:
                return number
            await self._execute(claimed)
        raise RuntimeError(
            f"tasks are still due after {MOST_EXECUTIONS:,} executions; "
            "do the handlers submit without an end?"
        )

    async def _advance(self, seconds: float) -> int:
        if seconds < 0:
            raise ValueError(f"time does not go back, got {seconds} seconds")
        ends_at = self.clock.wall() + round(seconds * SECOND)
        number = await self._run_due()
        while (due := self._next_due()) is not None and due <= ends_at:
            self.clock.advance(max(0, due - self.clock.wall()) / SECOND)
            number += await self._run_due()
        self.clock.advance(max(0, ends_at - self.clock.wall()) / SECOND)
        return number

    def _next_due(self) -> int | None:
        with self._lock:
            return self._books.next_due(self._app.handlers.keys())

    async def _wait_for_end(self, task_id: str, seconds: float) -> TaskStatus:
        ends_at = asyncio.get_running_loop().time() + seconds
        while True:
            changed = self._changed
            await self._run_due()
            status = self.status(task_id)
            if status.status in TERMINAL:
                return status
            if status.status is not Status.IN_PROGRESS:
                raise WaitTimeout(f"task {task_id} is {status.status}; {self._hint(status)}")
            try:
                async with asyncio.timeout_at(ends_at):
                    await changed.wait()
            except TimeoutError:
                raise WaitTimeout(f"task {task_id} is still running") from None

    def _hint(self, status: TaskStatus) -> str:
        if status.task_type not in self._app.handlers:
            return f"the app has no handler called {status.task_type!r}"
        seconds = (status.schedule_at - self.now).total_seconds()
        return f"it is due in {seconds:g} s, which `advance` lets pass"

    async def _execute(self, claimed: ClaimedTask) -> None:
        task = claimed.task
        claim = Claim(
            task.id,
            task.token,
            task.task_type,
            claimed.payload,
            task.retry_count + 1,
            task.timeout // SECOND,
            {} if task.options is None else task.options.metadata,
            claimed.checkpoint,
        )
        ending: TaskCommand
        try:
            ending = await self._attempt(claim)
        except BaseException:  # the test itself is being ended
            self._settle(Release(task.id, task.token))
            raise
        if self.clock.steady() >= self._deadline_of(task):
            message = f"the attempt took longer than its {claim.timeout} s"
            ending = TakeBack(task.id, task.token, Event.TIME_OUT, message)
        with suppress(LeaseLost):  # it was cancelled while it ran
            self._settle(ending)

    async def _attempt(self, claim: Claim) -> Complete | Fail | Release:
        context: Context[Any] = Context(claim, asyncio.get_running_loop(), self._tell, self._state)
        handler = self._app.handlers[claim.task_type]
        execute = partial(Execution(self._threads).run, handler, context)
        try:
            result = checked(await execute_through(self._app.execute_middleware, context, execute))
        except BaseException as error:  # whatever a handler raises is its failure
            if isinstance(error, KeyboardInterrupt) or _is_cancelled(error):
                raise
            await context.lines_told()
            return self._failed(claim, error)
        await context.lines_told()
        return Complete(claim.task_id, claim.token, result)

    def _failed(self, claim: Claim, error: BaseException) -> Fail | Release:
        manner = self._app.handlers[claim.task_type].manner
        failure = failure_of(error, manner.allows_retry)
        delay = None if failure.delay is None else round(failure.delay * SECOND)
        if failure.is_snooze:
            return Release(claim.task_id, claim.token, delay=delay or 0)
        self._errors[claim.task_id] = error
        return Fail(
            claim.task_id,
            claim.token,
            failure.kind,
            failure.message,
            failure.traceback,
            failure.retryable,
            delay,
        )

    def _deadline_of(self, task: Claimed) -> int:
        with self._lock:
            now = self._books.tasks.get(task.id, task)
        return (now.deadline if now.token == task.token else None) or task.deadline or 0

    async def _tell(self, claim: Claim, note: Note) -> None:
        asked = {"task_id": claim.task_id, "token": claim.token, **note.fields}
        try:
            request: Any = msgspec.convert(asked, REQUESTS[note.kind])
        except msgspec.ValidationError as error:
            raise InvalidRequest(str(error)) from None
        about = claim.task_id, claim.token
        match note.kind:
            case "progress":
                self._settle(Progress(*about, request.fraction, request.note))
            case "log":
                self._settle(Log(*about, request.level, request.message))
            case "extend":
                self._settle(Extend(*about, request.seconds * SECOND))
            case _:
                self._settle(Checkpoint(*about, request.data))

    def _settle(self, command: TaskCommand) -> None:
        with self._lock:
            self._books.settle(command)
            changed, self._changed = self._changed, asyncio.Event()
        self._home.call(changed)


def _status(detail: TaskDetail) -> TaskStatus:
    return msgspec.convert(task_reply(detail), TaskStatus, from_attributes=True)


def _type_of(task: TaskHandler[Any, Any] | str) -> str:
    return task if isinstance(task, str) else task.name


def _arguments(task: TaskHandler[Any, Any], payload: bytes) -> dict[str, Any]:
    positional, keyword = task.codec.decode_arguments(payload)
    names = list(inspect.signature(task.function).parameters)[task.codec.takes_context :]
    return dict(zip(names, positional, strict=False)) | keyword


def _remove(names: dict[str, Any], added: dict[str, Any]) -> None:
    for name in added:
        del names[name]


def _is_cancelled(error: BaseException) -> bool:
    """Whether it is not the handler's doing: somebody cancels the test."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > 0
