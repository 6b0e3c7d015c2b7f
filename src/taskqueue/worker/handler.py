"""A task's handler: how its arguments and its result travel, and how it is submitted."""

import copy
import inspect
import typing
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, Generic, Literal, ParamSpec, TypedDict, TypeVar, Unpack, cast

import msgspec

from taskqueue.client.task import Task
from taskqueue.worker.clients import Clients
from taskqueue.worker.context import Context
from taskqueue.worker.handle import Handle

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

Isolation = Literal["process"]

_REFUSED: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_KEYWORD_ONLY: Final = inspect.Parameter.KEYWORD_ONLY


class SubmitOptions(TypedDict, total=False):
    """How one submit differs from the task's own settings. `delay` and `timeout` in seconds."""

    priority: int
    timeout: int
    retries: int
    delay: float
    schedule_at: datetime
    task_id: str


class Codec:
    """Turns the arguments of a function into JSON and back, by the function's annotations.

    They travel as an object, by name, which any language can write.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        hints = typing.get_type_hints(function, include_extras=True)
        parameters = list(inspect.signature(function).parameters.values())
        first = hints.get(parameters[0].name) if parameters else None
        self.takes_context = first is Context or typing.get_origin(first) is Context
        if self.takes_context:
            del parameters[0]
        for parameter in parameters:
            if parameter.kind in _REFUSED:
                raise TypeError(
                    f"{function.__qualname__}: *{parameter.name} cannot be a task's parameter; "
                    "name each argument"
                )
        self._signature = inspect.Signature(parameters)
        self._positional = [p.name for p in parameters if p.kind is not _KEYWORD_ONLY]
        self._keyword = [p.name for p in parameters if p.kind is _KEYWORD_ONLY]
        fields = [
            (p.name, hints.get(p.name, Any))
            if p.default is p.empty
            else (p.name, hints.get(p.name, Any), msgspec.field(default_factory=_always(p.default)))
            for p in parameters
        ]
        self._arguments = msgspec.json.Decoder(
            msgspec.defstruct(function.__name__, fields, kw_only=True, forbid_unknown_fields=True)
        )
        self._result: msgspec.json.Decoder[Any] = msgspec.json.Decoder(hints.get("return", Any))

    def encode_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """The payload for a call.

        Raises TypeError as the call would, and TypeError or ValueError for what JSON cannot say.
        """
        return _encoded(self._signature.bind(*args, **kwargs).arguments)

    def decode_arguments(self, payload: bytes) -> tuple[list[Any], dict[str, Any]]:
        """The call that a payload stands for. Raises msgspec.ValidationError."""
        values = self._arguments.decode(payload or b"{}")
        positional = [getattr(values, name) for name in self._positional]
        return positional, {name: getattr(values, name) for name in self._keyword}

    def encode_result(self, result: Any) -> bytes:
        """The bytes to keep. Raises TypeError, ValueError for what JSON cannot say."""
        return _encoded(result)

    def decode_result(self, result: bytes) -> Any:
        """What the handler returned; a worker in another language may have said nothing."""
        return self._result.decode(result or b"null")


class TaskHandler(Generic[Arguments, Result]):
    """A function that workers run, and the way to have them run it.

    `name` is the task type. `function` is what was decorated: call it directly in unit tests.
    """

    def __init__(
        self,
        clients: Clients,
        name: str,
        function: Callable[..., Any],
        options: SubmitOptions,
        isolation: Isolation | None = None,
    ) -> None:
        self.name = name
        self.function = function
        self.isolation = isolation
        self.is_async = inspect.iscoroutinefunction(function)
        self.codec = Codec(function)
        self._clients = clients
        self._options = options

    def options(self, **options: Unpack[SubmitOptions]) -> "TaskHandler[Arguments, Result]":
        """This task with other settings for what is submitted through what this returns."""
        unknown = options.keys() - SubmitOptions.__annotations__.keys()
        if unknown:
            raise TypeError(f"there is no option {unknown.pop()!r}; see SubmitOptions")
        other = copy.copy(self)
        other._options = {**self._options, **options}
        return other

    async def submit(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Handle[Result]:
        """Submit a call of the function; returns once it is durable."""
        task_id = await self._clients.submit(self._task(args, kwargs))
        return Handle(self._clients, task_id, self.codec.decode_result)

    def submit_sync(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Handle[Result]:
        """As `submit`, for code without asyncio."""
        task_id = self._clients.submit_sync(self._task(args, kwargs))
        return Handle(self._clients, task_id, self.codec.decode_result)

    def _task(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Task:
        options = self._options
        return Task(
            self.name,
            self.codec.encode_arguments(args, kwargs),
            priority=options.get("priority", 100),
            timeout=options.get("timeout", 300),
            max_retries=options.get("retries", 3),
            schedule_at=options.get("schedule_at"),
            delay=options.get("delay"),
            task_id=options.get("task_id"),
        )


class RawHandler:
    """A function from bytes to bytes, for payloads that are not JSON."""

    def __init__(
        self, name: str, function: Callable[..., Any], isolation: Isolation | None = None
    ) -> None:
        parameters = list(inspect.signature(function).parameters.values())
        self.name = name
        self.function = function
        self.isolation = isolation
        self.is_async = inspect.iscoroutinefunction(function)
        self.takes_context = len(parameters) == 2


Handler = TaskHandler[Any, Any] | RawHandler


def _always(value: Any) -> Callable[[], Any]:
    return lambda: value


def _encoded(value: Any) -> bytes:
    encoded = msgspec.json.encode(value)
    if b"null" in encoded:
        # msgspec writes NaN and infinity as null, which would come back as something else.
        _refuse_non_numbers(msgspec.to_builtins(value))
    return encoded


def _refuse_non_numbers(value: Any) -> None:
    match value:
        case float() if value != value or value in (float("inf"), float("-inf")):
            raise ValueError(f"JSON cannot say {value}; leave it out or send it as text")
        case dict():
            for part in cast(dict[str, Any], value).values():
                _refuse_non_numbers(part)
        case list() | tuple():
            for part in cast(Sequence[Any], value):
                _refuse_non_numbers(part)
        case _:
            pass
