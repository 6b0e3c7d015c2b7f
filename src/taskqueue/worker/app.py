"""An app: the tasks of a program, declared where they are written."""

from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any, Concatenate, ParamSpec, TypeVar, cast, overload

from taskqueue.client.aio import AsyncClient
from taskqueue.worker.clients import Clients
from taskqueue.worker.context import Context
from taskqueue.worker.handler import Handler, Isolation, RawHandler, SubmitOptions, TaskHandler
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
Lifespan = Callable[["App"], AbstractAsyncContextManager[Any]]


class TaskDecorator:
    """Makes a task of a function: `@app.task`, or `@app.task(retries=5, timeout=30)`."""

    def __init__(
        self,
        app: "App",
        name: str | None,
        options: SubmitOptions,
        isolation: Isolation | None = None,
    ) -> None:
        self._app = app
        self._name = name
        self._options = options
        self._isolation: Isolation | None = isolation

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
    def __call__(
        self,
        *,
        name: str | None = None,
        priority: int = 100,
        timeout: int = 300,
        retries: int = 3,
        isolation: Isolation | None = None,
    ) -> "TaskDecorator": ...

    def __call__(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        priority: int = 100,
        timeout: int = 300,
        retries: int = 3,
        isolation: Isolation | None = None,
    ) -> Any:
        """Register `function` as a task.

        `name` is the task type, else the function's name; the others hold for each submit that
        does not say otherwise: `timeout` in seconds, `retries` after the first failed execution.
        With `isolation="process"` it runs in a process of its own, which is killed at the time
        limit; it must be declared in a module, not inside a function.
        """
        if function is None:
            options = SubmitOptions(priority=priority, timeout=timeout, retries=retries)
            return TaskDecorator(self._app, name, options, _known(isolation))
        handler: TaskHandler[Any, Any] = TaskHandler(
            self._app.clients,
            self._name or function.__name__,
            function,
            self._options,
            self._isolation,
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
        self.task = TaskDecorator(self, None, {})
        self.lifespan = lifespan
        self.execute_middleware: list[Middleware] = []
        self.path = ""
        """`module:name`, where it has been imported from, if that is known."""

    @property
    def client(self) -> AsyncClient:
        """The client the app submits with."""
        return self.clients.aio()

    def raw(self, name: str, *, isolation: Isolation | None = None) -> Callable[[AnyRaw], AnyRaw]:
        """Register a function from bytes to bytes; it may take a Context before the payload.

        `isolation` is that of `task`.
        """
        where = _known(isolation)

        def decorate(function: AnyRaw) -> AnyRaw:
            self.register(RawHandler(name, cast(Callable[..., Any], function), where))
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


def _known(isolation: Isolation | None) -> Isolation | None:
    if isolation not in (None, "process"):
        raise ValueError(f"isolation must be 'process' or None, got {isolation!r}")
    return isolation
