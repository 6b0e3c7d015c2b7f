"""What the REST door does at a path: carry out an operation, or show a page.

An action reads a request, has it carried out, and puts what comes of it into words; refusals leave
it as errors, for `rest` to answer.
"""

import asyncio
from functools import cache
from typing import Any, Final, NamedTuple, Protocol

import msgspec
from msgspec import Struct
from msgspec.structs import asdict
from starlette.types import Receive, Scope

from taskqueue.broker.access import Caller
from taskqueue.broker.broker import Broker
from taskqueue.broker.operation import Operation
from taskqueue.core.errors import (
    IdempotencyConflict,
    InvalidRequest,
    TaskQueueError,
)
from taskqueue.core.keys import Permission
from taskqueue.doors import metrics
from taskqueue.doors.http import RestSettings
from taskqueue.doors.rest_input import (
    BatchReader,
    BodyReader,
    BodyRoom,
    QueryReader,
    check_media,
    path_fields_of,
    read_query,
)
from taskqueue.doors.visit import deprecation_notices
from taskqueue.wire import figures
from taskqueue.wire import messages as m

JSON: Final = b"application/json"
NOT_SNIFFED: Final = (b"x-content-type-options", b"nosniff")
NOT_STORED: Final = (b"cache-control", b"no-store")
JSON_HEADERS: Final = ((b"content-type", JSON), NOT_SNIFFED, NOT_STORED)


class Answer(NamedTuple):
    """What goes back: a status, a body, and the headers beside its length."""

    status: int
    body: bytes
    headers: tuple[tuple[bytes, bytes], ...] = JSON_HEADERS


class ClientGone(Exception):
    """The client closed its connection before the answer was ready."""


UNHEARD: Final = Answer(499, b"")
"""Counted, though nobody is there to read it."""


class Action(Protocol):
    """What is done for one method at one path."""

    @property
    def name(self) -> str:
        """What its requests are counted under."""
        ...

    @property
    def is_limited(self) -> bool:
        """Whether they count against the rate limit."""
        ...

    async def answer(self, scope: Scope, receive: Receive, caller: Caller, /) -> Answer:
        """Do it. Raises TaskQueueError; ClientGone where nobody waits for the answer any more."""
        ...


class Call:
    """One operation of the broker."""

    def __init__(
        self, operation: Operation, broker: Broker, settings: RestSettings, room: BodyRoom
    ) -> None:
        assert operation.http is not None  # noqa: S101  only those with a route are offered
        self.name = operation.name
        self.is_limited = operation.is_counted
        self._operation = operation
        self._broker = broker
        self._room = room
        self._status = operation.http.status
        self._answer_seconds = settings.answer_seconds
        self._encode = msgspec.json.Encoder().encode
        self._notices = tuple(
            (name.encode(), text.encode())
            for name, text in deprecation_notices(operation.deprecated)
        )
        path_fields = path_fields_of(operation.http.path)
        self._query = QueryReader(operation.request, path_fields)
        self._body: BodyReader | None = None
        if (
            operation.http.method in ("POST", "PATCH")
            and operation.http.has_body
            and self._query.names
        ):
            self._body = BodyReader(body_struct(operation.request, path_fields))

    async def answer(self, scope: Scope, receive: Receive, caller: Caller, /) -> Answer:
        """Read the request, carry it out, put its reply into words."""
        self._operation.require(self._broker, caller)  # before its body takes up any room
        request = await self._read(scope, receive)
        outcome = await self._carry_out(request, receive, caller)
        reply = self._operation.reply(outcome)
        if reply is None:
            return Answer(self._status, b"", (NOT_SNIFFED, NOT_STORED, *self._notices))
        degraded = isinstance(reply, figures.HealthReply) and reply.status == "degraded"
        status = 503 if degraded else self._status
        return Answer(status, self._encode(reply), (*JSON_HEADERS, *self._notices))

    async def _read(self, scope: Scope, receive: Receive) -> Any:
        if self._body is None:
            return self._query.read(scope["query_string"], scope["path_params"])
        refuse_query(scope)
        check_media(scope)
        request = self._body.read(await self._room.read(receive))
        if isinstance(request, m.SubmitRequest):
            take_idempotency_key(request, scope)
        elif scope["path_params"]:
            request = self._operation.request(**scope["path_params"], **asdict(request))
        return request

    async def _carry_out(self, request: Any, receive: Receive, caller: Caller) -> Any:
        work = asyncio.ensure_future(self._operation.start(self._broker, request, caller))
        wait_ms = request.wait_ms if self._query.has_wait else 0
        try:
            if wait_ms:
                return await self._wait(work, receive, caller, wait_ms / 1000)
            await asyncio.wait([work], timeout=self._answer_seconds)
            if work.done():
                return work.result()
            raise self._operation.too_late(self._answer_seconds)
        finally:
            if not work.done():
                self._leave(work)

    async def _wait(
        self, work: "asyncio.Future[Any]", receive: Receive, caller: Caller, seconds: float
    ) -> Any:
        """What work comes to that may take long, unless the client goes or is shut out."""
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            with self._broker.access.shut_out(caller) as ended:
                await asyncio.wait(
                    [work, gone, ended],
                    timeout=self._answer_seconds + seconds,
                    return_when=asyncio.FIRST_COMPLETED,
                )
            if ended.done():
                self._operation.require(self._broker, caller)
            if work.done():
                return work.result()
            if gone.done():
                raise ClientGone
            raise self._operation.too_late(self._answer_seconds)
        finally:
            gone.cancel()

    def _leave(self, work: "asyncio.Future[Any]") -> None:
        # A write goes on: a commit is never cancelled, only the wait for it.
        if self._operation.is_read:
            work.cancel()
        work.add_done_callback(unheeded)


class BatchCall(Call):
    """A batch of submits: an entry that cannot be read does not spoil the others."""

    def __init__(
        self, operation: Operation, broker: Broker, settings: RestSettings, room: BodyRoom
    ) -> None:
        super().__init__(operation, broker, settings, room)
        self._reader = BatchReader()

    async def answer(self, scope: Scope, receive: Receive, caller: Caller, /) -> Answer:
        """Submit what can be read, and give each entry its outcome in its place."""
        self._operation.require(self._broker, caller)
        refuse_query(scope)
        check_media(scope)
        refuse_idempotency_key(scope)
        entries = self._reader.read(await self._room.read(receive))
        good = [entry for entry in entries if not isinstance(entry, TaskQueueError)]
        outcomes: list[m.SubmitReply | m.ErrorReply] = []
        if good:
            reply = await self._carry_out(m.SubmitBatchRequest(tasks=good), receive, caller)
            outcomes = reply.results
        submitted = iter(outcomes)
        wall = self._broker.clock.wall()
        results = [
            m.error_reply(entry, wall) if isinstance(entry, TaskQueueError) else next(submitted)
            for entry in entries
        ]
        return Answer(self._status, self._encode(m.SubmitBatchReply(results=results)))


class MetricsPage:
    """The numbers of the broker for Prometheus."""

    name = "metrics"
    is_limited = True

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def answer(self, scope: Scope, _receive: Receive, caller: Caller, /) -> Answer:
        """Gather them as they are now."""
        if not self._broker.access.settings.open_metrics:
            self._broker.access.require(caller, Permission.READ_TASKS)
        refuse_query(scope)
        text = await metrics.exposition(self._broker)
        return Answer(200, text, ((b"content-type", metrics.CONTENT_TYPE), NOT_SNIFFED, NOT_STORED))


class FixedPage:
    """A page that is the same for everybody."""

    is_limited = True

    def __init__(self, name: str, body: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        self.name = name
        self._answer = Answer(200, body, (*headers, NOT_SNIFFED))

    async def answer(self, scope: Scope, _receive: Receive, _caller: Caller, /) -> Answer:
        """The page."""
        refuse_query(scope)
        return self._answer


@cache
def body_struct(request: type[Struct], path_fields: frozenset[str]) -> type[Struct]:
    """What the body of a request has to be: the fields that its path does not give."""
    if not path_fields:
        return request
    fields = [
        (field.name, field.type, field.default)
        for field in msgspec.structs.fields(request)
        if field.name not in path_fields
    ]
    return msgspec.defstruct(
        request.__name__.replace("Request", "Body"),
        fields,
        forbid_unknown_fields=True,
        kw_only=True,
    )


def take_idempotency_key(request: m.SubmitRequest, scope: Scope) -> None:
    """Put the header Idempotency-Key where the body could have it.

    Raises InvalidRequest, IdempotencyConflict.
    """
    keys = idempotency_keys(scope)
    if not keys:
        return
    try:
        key = msgspec.convert(keys[0].decode(), m.Name)
    except (msgspec.ValidationError, UnicodeDecodeError):
        key = None
    if key is None or len(keys) > 1:
        raise InvalidRequest(
            "Idempotency-Key must be given once, as 1 to 255 printable characters without spaces",
            field="Idempotency-Key",
        )
    if request.idempotency_key not in (None, key):
        raise IdempotencyConflict(
            "Idempotency-Key and idempotency_key are two different keys; give one of them",
            field="Idempotency-Key",
        )
    request.idempotency_key = key


def refuse_idempotency_key(scope: Scope) -> None:
    """Raise InvalidRequest for an Idempotency-Key with a request that has no use for one."""
    if idempotency_keys(scope):
        raise InvalidRequest(
            "Idempotency-Key is for one task; give each task of a batch an idempotency_key",
            field="Idempotency-Key",
        )


def idempotency_keys(scope: Scope) -> list[bytes]:
    """The values of the header Idempotency-Key."""
    return [value for name, value in scope["headers"] if name == b"idempotency-key"]


def refuse_query(scope: Scope) -> None:
    """Raise InvalidRequest if there is a query where none is known."""
    if scope["query_string"]:
        names = ", ".join(read_query(scope["query_string"]))
        raise InvalidRequest(f"this request takes no query parameters, got {names[:200]}")


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


def unheeded(work: "asyncio.Future[Any]") -> None:
    """Take note of an outcome that nobody waits for any more."""
    if not work.cancelled():
        work.exception()
