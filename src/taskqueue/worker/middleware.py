"""What an app puts around each execution and each submit."""

from collections.abc import Awaitable, Sequence
from functools import partial
from typing import Any, Protocol, cast

from taskqueue.client.task import Task
from taskqueue.worker.context import Context


class CallNext(Protocol):
    """Goes on to the handler: comes to the result's bytes, or raises what it raised."""

    def __call__(self) -> Awaitable[bytes]: ...


class SubmitNext(Protocol):
    """Goes on to the broker: comes to the task's id."""

    def __call__(self, task: Task, /) -> Awaitable[str]: ...


class Middleware(Protocol):
    """Around each execution: a coroutine function, or an object with such a `__call__`."""

    async def __call__(self, ctx: Context[Any], call_next: CallNext, /) -> bytes: ...


class SubmitMiddleware(Protocol):
    """Around each submit: it may hand on another task than it was given."""

    async def __call__(self, task: Task, call_next: SubmitNext, /) -> str: ...


async def execute_through(
    middleware: Sequence[Middleware], context: Context[Any], execute: CallNext
) -> bytes:
    """Execute with the first middleware outermost. Raises TypeError if it returns no bytes."""
    for one in reversed(middleware):
        execute = partial(one, context, execute)
    result = cast(object, await execute())
    if not isinstance(result, bytes):
        raise TypeError(
            f"middleware must return the bytes of `await call_next()`, got {type(result).__name__}"
        )
    return result


async def submit_through(
    middleware: Sequence[SubmitMiddleware], task: Task, submit: SubmitNext
) -> str:
    """Submit with the first middleware outermost."""
    for one in reversed(middleware):
        submit = partial(_through, one, submit)
    return await submit(task)


async def _through(middleware: SubmitMiddleware, call_next: SubmitNext, task: Task) -> str:
    return await middleware(task, call_next)
