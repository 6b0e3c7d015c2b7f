"""An app: the tasks of a program, declared where they are written."""

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Concatenate, Final, ParamSpec, TypeVar, Unpack, cast, overload

from taskqueue.client.aio import AsyncClient
from taskqueue.worker.clients import Clients
from taskqueue.worker.context import Context
from taskqueue.worker.handler import (
    Handler,
    RawHandler,
    SubmitOptions,
    TaskHandler,
    TaskOptions,
    WorkOptions,
    manner_of,
)
from taskqueue.worker.middleware import Middleware, SubmitMiddleware

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
RawFunction = (
    Callable[[bytes], bytes]
    | Callable[[bytes], Coroutine[Any, Any, bytes]]
    | Callable[[Context[Any], bytes], bytes]
    | Callable[[Context[Any], bytes], Coroutine[Any, Any, bytes]]
)
AnyRaw = TypeVar("AnyRaw", bound=RawFunction)
AnyMiddleware = TypeVar("AnyMiddleware", bound=Middleware)
AnySubmitMiddleware = TypeVar("AnySubmitMiddleware", bound=SubmitMiddleware)
_SUBMIT_OPTIONS: Final = frozenset(SubmitOptions.__annotations__)
Lifespan = Callable[["App"], AbstractAsyncContextManager[Any]]


class TaskDecorator:
    """Makes a task of a function: `@app.task`, or `@app.task(retries=5, timeout=30)`."""

    def __init__(
        self,
        app: "App",
        settings: TaskOptions,
    ) -> None:
        options: dict[str, Any] = dict(settings)
        self._app = app
        self._name: str | None = options.pop("name", None)
        submit = {one: options.pop(one) for one in _SUBMIT_OPTIONS & options.keys()}
        self._options = cast(SubmitOptions, submit)
        self._manner = manner_of(cast(WorkOptions, options))

    @overload
    def __call__(
        self,
        function: Callable[Concatenate[Context[Any], Arguments], Coroutine[Any, Any, Result]],
        /,
    ) -> TaskHandler[Arguments, Result]: ...

    @overload
    def __call__(
        self, function: Callable[Arguments, Coroutine[Any, Any, Result]], /
    ) -> TaskHandler[Arguments, Result]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[Context[Any], Arguments], Result], /
    ) -> TaskHandler[Arguments, Result]: ...

    @overload
    def __call__(
        self, function: Callable[Arguments, Result], /
    ) -> TaskHandler[Arguments, Result]: ...

    @overload
    def __call__(self, **settings: Unpack[TaskOptions]) -> "TaskDecorator": ...

    def __call__(
        self, function: Callable[..., Any] | None = None, **settings: Unpack[TaskOptions]
    ) -> Any:
        """Register `function` as a task.

        The settings hold for each submit that does not say otherwise: see TaskOptions. Raises
        TypeError for one that there is not, ValueError for a value that it cannot have.
        """
        if function is None:
            return TaskDecorator(self._app, settings)
        handler: TaskHandler[Any, Any] = TaskHandler(
            self._app.clients,
            self._name or function.__name__,
            function,
            self._options,
            self._manner,
        )
        self._app.register(handler)
        return handler


class App:
    """A set of tasks, and the broker they go to.

    `url` is `host:port` or `tq://key@host:port`; without it TQ_URL is used, or else this machine.
    `lifespan(app)` is an async context manager: a worker enters it before it claims and leaves it
    after its last handler, and what it yields is the `state` of every Context.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        lifespan: Lifespan | None = None,
    ) -> None:
        self.clients = Clients(url, api_key)
        self.handlers: dict[str, Handler] = {}
        self.task = TaskDecorator(self, {})
        self.lifespan = lifespan
        self.execute_middleware: list[Middleware] = []
        self.path = ""
        """`module:name`, where it has been imported from, if that is known."""

    @property
    def client(self) -> AsyncClient:
        """The client the app submits with."""
        return self.clients.aio()

    def raw(self, name: str, **options: Unpack[WorkOptions]) -> Callable[[AnyRaw], AnyRaw]:
        """Register a function from bytes to bytes; it may take a Context before the payload.

        Raises TypeError, ValueError as `task` does.
        """
        manner = manner_of(options)

        def decorate(function: AnyRaw) -> AnyRaw:
            self.register(RawHandler(name, cast(Callable[..., Any], function), manner))
            return function

        return decorate

    def middleware(self, middleware: AnyMiddleware) -> AnyMiddleware:
        """Put something around every execution in a worker; what comes first is outermost.

        It is called on the worker's loop with the Context and `call_next`, which comes to the
        result's bytes or raises what the handler raised.
        """
        self.execute_middleware.append(middleware)
        return middleware

    def submit_middleware(self, middleware: AnySubmitMiddleware) -> AnySubmitMiddleware:
        """Put something around every submit of a task of this app; what comes first is outermost.

        It is called with the Task and `call_next(task)`, which comes to the task's id.
        """
        self.clients.middleware.append(middleware)
        return middleware

    def register(self, handler: Handler) -> None:
        """Add a handler. Raises ValueError if its name is taken."""
        if handler.name in self.handlers:
            raise ValueError(f"two handlers are called {handler.name!r}; rename one of them")
        self.handlers[handler.name] = handler

    async def close(self) -> None:
        """Hang up."""
        await self.clients.close()
