"""An app: the tasks of a program, declared where they are written."""

import inspect
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, TypeVar, cast, overload

from taskqueue.client.aio import AsyncClient
from taskqueue.worker.clients import Clients
from taskqueue.worker.context import Context
from taskqueue.worker.handler import SubmitOptions, TaskHandler

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
RawFunction = (
    Callable[[bytes], bytes]
    | Callable[[bytes], Coroutine[Any, Any, bytes]]
    | Callable[[Context, bytes], bytes]
    | Callable[[Context, bytes], Coroutine[Any, Any, bytes]]
)
AnyRaw = TypeVar("AnyRaw", bound=RawFunction)


class RawHandler:
    """A function from bytes to bytes, for payloads that are not JSON."""

    def __init__(self, name: str, function: Callable[..., Any]) -> None:
        parameters = list(inspect.signature(function).parameters.values())
        self.name = name
        self.function = function
        self.is_async = inspect.iscoroutinefunction(function)
        self.takes_context = len(parameters) == 2


class TaskDecorator:
    """Makes a task of a function: `@app.task`, or `@app.task(retries=5, timeout=30)`."""

    def __init__(self, app: "App", name: str | None, options: SubmitOptions) -> None:
        self._app = app
        self._name = name
        self._options = options

    @overload
    def __call__(
        self, function: Callable[Concatenate[Context, Arguments], Coroutine[Any, Any, Result]], /
    ) -> TaskHandler[Arguments, Result]: ...

    @overload
    def __call__(
        self, function: Callable[Arguments, Coroutine[Any, Any, Result]], /
    ) -> TaskHandler[Arguments, Result]: ...

    @overload
    def __call__(
        self, function: Callable[Concatenate[Context, Arguments], Result], /
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
    ) -> "TaskDecorator": ...

    def __call__(
        self,
        function: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        priority: int = 100,
        timeout: int = 300,
        retries: int = 3,
    ) -> Any:
        """Register `function` as a task.

        `name` is the task type, else the function's name; the others hold for each submit that
        does not say otherwise: `timeout` in seconds, `retries` after the first failed execution.
        """
        if function is None:
            options = SubmitOptions(priority=priority, timeout=timeout, retries=retries)
            return TaskDecorator(self._app, name, options)
        handler: TaskHandler[Any, Any] = TaskHandler(
            self._app.clients, self._name or function.__name__, function, self._options
        )
        self._app.register(handler)
        return handler


class App:
    """A set of tasks, and the broker they go to.

    `url` is `host:port` or `tq://key@host:port`; without it TQ_URL is used, or else this machine.
    """

    def __init__(self, url: str | None = None, *, api_key: str | None = None) -> None:
        self.clients = Clients(url, api_key)
        self.handlers: dict[str, TaskHandler[Any, Any] | RawHandler] = {}
        self.task = TaskDecorator(self, None, {})

    @property
    def client(self) -> AsyncClient:
        """The client the app submits with."""
        return self.clients.aio()

    def raw(self, name: str) -> Callable[[AnyRaw], AnyRaw]:
        """Register a function from bytes to bytes; it may take a Context before the payload."""

        def decorate(function: AnyRaw) -> AnyRaw:
            self.register(RawHandler(name, cast(Callable[..., Any], function)))
            return function

        return decorate

    def register(self, handler: TaskHandler[Any, Any] | RawHandler) -> None:
        """Add a handler. Raises ValueError if its name is taken."""
        if handler.name in self.handlers:
            raise ValueError(f"two handlers are called {handler.name!r}; rename one of them")
        self.handlers[handler.name] = handler

    async def close(self) -> None:
        """Hang up."""
        await self.clients.close()
