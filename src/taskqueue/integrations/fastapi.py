"""taskqueue in a FastAPI application: opened and closed with it, errors answered as they are."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

from taskqueue.client.aio import AsyncClient
from taskqueue.core.errors import TaskQueueError
from taskqueue.worker.app import App
from taskqueue.worker.runner import Worker
from taskqueue.worker.settings import WorkerSettings

ApiLifespan = Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any] | None]]


def lifespan(
    app: App,
    *,
    worker: WorkerSettings | None = None,
    around: ApiLifespan | None = None,
) -> Callable[[FastAPI], AbstractAsyncContextManager[Mapping[str, Any]]]:
    """A lifespan for `FastAPI(lifespan=…)` that hangs up `app` at the end.

    With `worker` settings a worker of the app runs beside the requests, for small programs.
    `around` is a lifespan of yours; it is entered first and left last, and its state is kept.
    """

    @asynccontextmanager
    async def opened(api: FastAPI) -> AsyncGenerator[Mapping[str, Any], None]:
        async with AsyncExitStack() as stack:
            state = None if around is None else await stack.enter_async_context(around(api))
            stack.push_async_callback(app.close)
            if worker is not None:
                await stack.enter_async_context(_working(Worker(app, settings=worker)))
            yield {**(state or {}), "taskqueue": app}

    return opened


def app_of(request: Request) -> App:
    """The app of the lifespan. Raises RuntimeError if there is none."""
    app: object = getattr(request.state, "taskqueue", None)
    if not isinstance(app, App):
        raise RuntimeError("make the application with FastAPI(lifespan=lifespan(app))")
    return app


def client_of(request: Request) -> AsyncClient:
    """The client of the lifespan's app. Raises RuntimeError if there is none."""
    return app_of(request).client


TaskApp = Annotated[App, Depends(app_of)]
"""A parameter of this type is the lifespan's app."""

TaskClient = Annotated[AsyncClient, Depends(client_of)]
"""A parameter of this type is the client of the lifespan's app."""


def answer_errors(api: FastAPI) -> None:
    """Have each TaskQueueError that a handler lets through answered with its code and status.

    A queue that is full or away is 503, a task that does not exist 404; with Retry-After where the
    broker says when to come again.
    """
    api.add_exception_handler(TaskQueueError, _answer)


async def _answer(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, TaskQueueError)  # noqa: S101  it is registered for no other
    headers = None
    if error.retry_after is not None:
        headers = {"Retry-After": str(math.ceil(error.retry_after))}
    return JSONResponse({"error": error.message, "code": error.code}, error.http, headers)


@asynccontextmanager
async def _working(worker: Worker) -> AsyncGenerator[None, None]:
    running = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await running  # raises what has ended it before its time
