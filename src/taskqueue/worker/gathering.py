"""The results of many tasks: all of them, or each as it comes."""

from collections.abc import AsyncGenerator, Generator, Iterable
from contextlib import aclosing, closing
from typing import Any, Literal, TypeVar, overload

from taskqueue.client.errors import WaitTimeout
from taskqueue.core.errors import TaskQueueError
from taskqueue.worker.ends import End, ends, ends_sync
from taskqueue.worker.handle import Handle

Result = TypeVar("Result")
A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
E = TypeVar("E")


async def as_completed(
    handles: Iterable[Handle[Result]],
    *,
    timeout: float = 60.0,
) -> AsyncGenerator[Handle[Result], None]:
    """The handles in the order in which their tasks end, each as soon as it has ended.

    `await handle.result()` then has the result at hand, or raises TaskFailed. Raises WaitTimeout
    when `timeout` seconds are over before all have ended.
    """
    every = list(handles)
    async with aclosing(ends(every, timeout)) as found:
        async for number, end in found:
            _require_end(end)
            yield every[number]


def as_completed_sync(
    handles: Iterable[Handle[Result]], *, timeout: float = 60.0
) -> Generator[Handle[Result], None, None]:
    """As `as_completed`, for code without asyncio."""
    every = list(handles)
    with closing(ends_sync(every, timeout)) as found:
        for number, end in found:
            _require_end(end)
            yield every[number]


@overload
async def gather(a: Handle[A], /, *, timeout: float = 60.0) -> tuple[A]: ...
@overload
async def gather(
    a: Handle[A],
    b: Handle[B],
    /,
    *,
    timeout: float = 60.0,
) -> tuple[A, B]: ...
@overload
async def gather(
    a: Handle[A],
    b: Handle[B],
    c: Handle[C],
    /,
    *,
    timeout: float = 60.0,
) -> tuple[A, B, C]: ...
@overload
async def gather(
    a: Handle[A],
    b: Handle[B],
    c: Handle[C],
    d: Handle[D],
    /,
    *,
    timeout: float = 60.0,
) -> tuple[A, B, C, D]: ...
@overload
async def gather(
    a: Handle[A],
    b: Handle[B],
    c: Handle[C],
    d: Handle[D],
    e: Handle[E],
    /,
    *,
    timeout: float = 60.0,
) -> tuple[A, B, C, D, E]: ...
@overload
async def gather(
    *handles: Handle[Result],
    timeout: float = 60.0,
) -> tuple[Result, ...]: ...
@overload
async def gather(
    handles: Iterable[Handle[Result]],
    /,
    *,
    timeout: float = 60.0,
) -> list[Result]: ...
@overload
async def gather(
    *handles: Handle[Result],
    timeout: float = 60.0,
    return_exceptions: Literal[True],
) -> tuple[Result | TaskQueueError, ...]: ...
@overload
async def gather(
    handles: Iterable[Handle[Result]],
    /,
    *,
    timeout: float = 60.0,
    return_exceptions: Literal[True],
) -> list[Result | TaskQueueError]: ...


async def gather(
    *handles: Any,
    timeout: float = 60.0,
    return_exceptions: bool = False,
) -> Any:
    """The results of tasks, in the order of the handles: a tuple, or a list for an iterable.

    Waits up to `timeout` seconds for all of them. The first one that ends without a result raises
    its TaskFailed, at once; the others go on. With `return_exceptions` each error is in its place:
    TaskFailed, TaskNotFound, WaitTimeout. Raises WaitTimeout, TaskNotFound.
    """
    every = _flat(handles)
    results = [None] * len(every)
    async with aclosing(ends(every, timeout)) as found:
        async for number, end in found:
            results[number] = _result(every[number], end, return_exceptions)
    return _shaped(handles, results)


@overload
def gather_sync(a: Handle[A], /, *, timeout: float = 60.0) -> tuple[A]: ...
@overload
def gather_sync(a: Handle[A], b: Handle[B], /, *, timeout: float = 60.0) -> tuple[A, B]: ...
@overload
def gather_sync(
    a: Handle[A], b: Handle[B], c: Handle[C], /, *, timeout: float = 60.0
) -> tuple[A, B, C]: ...
@overload
def gather_sync(
    a: Handle[A], b: Handle[B], c: Handle[C], d: Handle[D], /, *, timeout: float = 60.0
) -> tuple[A, B, C, D]: ...
@overload
def gather_sync(
    a: Handle[A],
    b: Handle[B],
    c: Handle[C],
    d: Handle[D],
    e: Handle[E],
    /,
    *,
    timeout: float = 60.0,
) -> tuple[A, B, C, D, E]: ...
@overload
def gather_sync(*handles: Handle[Result], timeout: float = 60.0) -> tuple[Result, ...]: ...
@overload
def gather_sync(handles: Iterable[Handle[Result]], /, *, timeout: float = 60.0) -> list[Result]: ...
@overload
def gather_sync(
    *handles: Handle[Result], timeout: float = 60.0, return_exceptions: Literal[True]
) -> tuple[Result | TaskQueueError, ...]: ...
@overload
def gather_sync(
    handles: Iterable[Handle[Result]],
    /,
    *,
    timeout: float = 60.0,
    return_exceptions: Literal[True],
) -> list[Result | TaskQueueError]: ...


def gather_sync(*handles: Any, timeout: float = 60.0, return_exceptions: bool = False) -> Any:
    """As `gather`, for code without asyncio."""
    every = _flat(handles)
    results = [None] * len(every)
    with closing(ends_sync(every, timeout)) as found:
        for number, end in found:
            results[number] = _result(every[number], end, return_exceptions)
    return _shaped(handles, results)


def _flat(given: tuple[Any, ...]) -> list[Handle[Any]]:
    if len(given) == 1 and not isinstance(given[0], Handle):
        return list(given[0])
    return list(given)


def _shaped(given: tuple[Any, ...], results: list[Any]) -> Any:
    is_one_iterable = len(given) == 1 and not isinstance(given[0], Handle)
    return results if is_one_iterable else tuple(results)


def _result(handle: Handle[Any], end: End, errors_too: bool) -> Any:
    try:
        if isinstance(end, TaskQueueError):
            raise end
        return handle.result_in(end)
    except TaskQueueError as error:
        if errors_too:
            return error
        raise


def _require_end(end: End) -> None:
    """Go on unless the time is over; another error is told to whoever asks for the result."""
    if isinstance(end, WaitTimeout):
        raise end
