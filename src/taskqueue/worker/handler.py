"""A task's handler: how its arguments and its result travel, and how it is submitted."""

import copy
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, Generic, Literal, ParamSpec, TypedDict, TypeVar, Unpack, cast

import msgspec
from msgspec import Struct

from taskqueue.client.task import Backoff, PriorityName, Task, UniqueWhile
from taskqueue.wire.messages import LARGEST_CLAIM
from taskqueue.worker.clients import Clients
from taskqueue.worker.context import Context
from taskqueue.worker.handle import Handle
from taskqueue.worker.outcomes import Fail, Retry

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

Isolation = Literal["process"]
Exceptions = type[BaseException] | tuple[type[BaseException], ...]

_REFUSED: Final = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_KEYWORD_ONLY: Final = inspect.Parameter.KEYWORD_ONLY


class SubmitOptions(TypedDict, total=False):
    """How one submit differs from the task's own settings: see Task. Times are in seconds."""

    priority: int | PriorityName
    timeout: int
    retries: int
    delay: float
    schedule_at: datetime
    task_id: str
    idempotency_key: str
    tags: Sequence[str]
    metadata: Mapping[str, str]
    expires_at: datetime
    expires_in: float
    unique_key: str
    unique_while: UniqueWhile
    unique_seconds: float
    replace: bool
    backoff: Backoff
    retention: float


class WorkOptions(TypedDict, total=False):
    """How a worker runs a task.

    With `isolation="process"` it runs in a process of its own, which is killed at the time limit;
    it must be declared in a module, not inside a function. It takes `weight` of the worker's slots.
    Without `retry_on` whatever it raises is tried again; with it only these exceptions are, and in
    any case none of `fail_on`.
    """

    isolation: Isolation | None
    weight: int
    retry_on: Exceptions
    fail_on: Exceptions


class TaskOptions(SubmitOptions, WorkOptions, total=False):
    """What a task can be declared with; `name` is the task type, else the function's name."""

    name: str | None


class Manner(Struct, frozen=True):
    """How a worker runs a handler; see WorkOptions."""

    isolation: Isolation | None = None
    weight: int = 1
    retry_on: Exceptions | None = None
    fail_on: Exceptions = ()

    def allows_retry(self, error: BaseException) -> bool:
        """Whether another attempt may help after such an error."""
        if isinstance(error, Retry):
            return True
        if isinstance(error, (Fail, self.fail_on)):
            return False
        return self.retry_on is None or isinstance(error, self.retry_on)


def manner_of(options: WorkOptions) -> Manner:
    """The manner that these options ask for. Raises ValueError, TypeError."""
    unknown = options.keys() - WorkOptions.__annotations__.keys()
    if unknown:
        raise TypeError(f"there is no option {unknown.pop()!r}; see TaskOptions")
    manner = Manner(**options)
    if manner.isolation not in (None, "process"):
        raise ValueError(f"isolation must be 'process' or None, got {manner.isolation!r}")
    if not 1 <= manner.weight <= LARGEST_CLAIM:
        raise ValueError(f"weight must be between 1 and {LARGEST_CLAIM}, got {manner.weight}")
    isinstance(None, (manner.fail_on, manner.retry_on or ()))  # raises for what is no exception
    return manner


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
        manner: Manner,
    ) -> None:
        self.name = name
        self.function = function
        self.manner = manner
        self.is_async = inspect.iscoroutinefunction(function)
        self.codec = Codec(function)
        self._clients = clients
        self._options = options
        self._as_task(b"").request()  # what is wrong is told where it is written

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
        return self._as_task(self.codec.encode_arguments(args, kwargs))

    def _as_task(self, payload: bytes) -> Task:
        options = self._options
        return Task(
            self.name,
            payload,
            priority=options.get("priority", 100),
            timeout=options.get("timeout", 300),
            max_retries=options.get("retries", 3),
            schedule_at=options.get("schedule_at"),
            delay=options.get("delay"),
            task_id=options.get("task_id"),
            idempotency_key=options.get("idempotency_key"),
            tags=tuple(options.get("tags", ())),
            metadata=dict(options.get("metadata", {})),
            expires_at=options.get("expires_at"),
            expires_in=options.get("expires_in"),
            unique_key=options.get("unique_key"),
            unique_while=options.get("unique_while", "running"),
            unique_seconds=options.get("unique_seconds"),
            replace=options.get("replace", False),
            backoff=options.get("backoff"),
            retention=options.get("retention"),
        )


class RawHandler:
    """A function from bytes to bytes, for payloads that are not JSON."""

    def __init__(self, name: str, function: Callable[..., Any], manner: Manner) -> None:
        parameters = list(inspect.signature(function).parameters.values())
        self.name = name
        self.function = function
        self.manner = manner
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
