"""The REST door: every operation that has a route, at its route, in the documented form.

Starlette's router finds the path; its request objects, routes and middleware stay out of the way
of a submit, where they would cost as much as the work itself. A path is an ASGI app of its own
(`Endpoint`), an operation at it an `Action`; all answers, errors included, leave through one place.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import structlog
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from taskqueue.broker.broker import Broker
from taskqueue.broker.operations import OPERATIONS, Operation
from taskqueue.core.errors import (
    BrokerUnavailable,
    DataDamaged,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    OutcomeUnknown,
    PayloadTooLarge,
    RouteNotFound,
    TaskQueueError,
)
from taskqueue.core.ids import new_task_id
from taskqueue.doors import metrics, openapi
from taskqueue.doors.docs_page import PAGE_HEADERS, docs_page
from taskqueue.doors.http import RestSettings
from taskqueue.doors.listener import HttpListener
from taskqueue.doors.rest_input import (
    BatchReader,
    BodyReader,
    BodyRoom,
    QueryReader,
    check_media,
    path_fields_of,
    read_query,
)
from taskqueue.wire import messages as m

Headers = list[tuple[bytes, bytes]]

JSON: Final = b"application/json"
NOT_SNIFFED: Final = (b"x-content-type-options", b"nosniff")
NOT_STORED: Final = (b"cache-control", b"no-store")
JSON_HEADERS: Final = ((b"content-type", JSON), NOT_SNIFFED, NOT_STORED)

log = structlog.get_logger(component="rest")


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

    async def answer(self, scope: Scope, receive: Receive, /) -> Answer:
        """Do it. Raises TaskQueueError; ClientGone where nobody waits for the answer any more."""
        ...


class Call:
    """One operation of the broker."""

    def __init__(
        self, operation: Operation, broker: Broker, settings: RestSettings, room: BodyRoom
    ) -> None:
        assert operation.http is not None  # noqa: S101  only those with a route are offered
        self.name = operation.name
        self._operation = operation
        self._broker = broker
        self._room = room
        self._status = operation.http.status
        self._is_read = operation.http.method == "GET"
        self._answer_seconds = settings.answer_seconds
        self._encode = msgspec.json.Encoder().encode
        path_fields = path_fields_of(operation.http.path)
        has_body = operation.http.method == "POST" and path_fields < set(
            operation.request.__struct_fields__
        )
        self._body = BodyReader(operation.request) if has_body else None
        self._query = QueryReader(operation.request, path_fields)

    async def answer(self, scope: Scope, receive: Receive, /) -> Answer:
        """Read the request, carry it out, put its reply into words."""
        request = await self._read(scope, receive)
        outcome = await self._carry_out(request, receive)
        reply = self._operation.reply(outcome)
        if reply is None:
            return Answer(self._status, b"", (NOT_SNIFFED, NOT_STORED))
        degraded = isinstance(reply, m.HealthReply) and reply.status == "degraded"
        return Answer(503 if degraded else self._status, self._encode(reply))

    async def _read(self, scope: Scope, receive: Receive) -> Any:
        if self._body is None:
            return self._query.read(scope["query_string"], scope["path_params"])
        refuse_query(scope)
        check_media(scope)
        return self._body.read(await self._room.read(receive))

    async def _carry_out(self, request: Any, receive: Receive) -> Any:
        seconds = self._answer_seconds
        work = asyncio.ensure_future(self._operation.run(self._broker, request))
        waiting_for: set[asyncio.Future[Any]] = {work}
        gone: asyncio.Task[None] | None = None
        if self._query.has_wait and request.wait_ms:
            seconds += request.wait_ms / 1000
            gone = asyncio.ensure_future(until_gone(receive))
            waiting_for.add(gone)
        try:
            await asyncio.wait(waiting_for, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                return work.result()
            if gone is not None and gone.done():
                raise ClientGone
            raise self._too_late()
        finally:
            if gone is not None:
                gone.cancel()
            if not work.done():
                self._leave(work)

    def _leave(self, work: "asyncio.Future[Any]") -> None:
        # A write goes on: a commit is never cancelled, only the wait for it.
        if self._is_read:
            work.cancel()
        work.add_done_callback(unheeded)

    def _too_late(self) -> BrokerUnavailable:
        if self._is_read:
            return BrokerUnavailable(
                f"there was no answer within {self._answer_seconds:g} seconds; try again",
                retry_after=1,
            )
        return OutcomeUnknown(
            f"the change was not confirmed within {self._answer_seconds:g} seconds; its outcome is "
            "unknown: repeat the request with the same task_id",
            retry_after=1,
        )


class BatchCall(Call):
    """A batch of submits: an entry that cannot be read does not spoil the others."""

    def __init__(
        self, operation: Operation, broker: Broker, settings: RestSettings, room: BodyRoom
    ) -> None:
        super().__init__(operation, broker, settings, room)
        self._reader = BatchReader()

    async def answer(self, scope: Scope, receive: Receive, /) -> Answer:
        """Submit what can be read, and give each entry its outcome in its place."""
        refuse_query(scope)
        check_media(scope)
        entries = self._reader.read(await self._room.read(receive))
        good = [entry for entry in entries if not isinstance(entry, TaskQueueError)]
        outcomes: list[m.SubmitReply | m.ErrorReply] = []
        if good:
            reply = await self._carry_out(m.SubmitBatchRequest(tasks=good), receive)
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

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    async def answer(self, scope: Scope, _receive: Receive, /) -> Answer:
        """Gather them as they are now."""
        refuse_query(scope)
        text = await metrics.exposition(self._broker)
        return Answer(200, text, ((b"content-type", metrics.CONTENT_TYPE), NOT_SNIFFED, NOT_STORED))


class FixedPage:
    """A page that is the same for everybody."""

    def __init__(self, name: str, body: bytes, headers: tuple[tuple[bytes, bytes], ...]) -> None:
        self.name = name
        self._answer = Answer(200, body, (*headers, NOT_SNIFFED))

    async def answer(self, scope: Scope, _receive: Receive, /) -> Answer:
        """The page."""
        refuse_query(scope)
        return self._answer


class Endpoint:
    """One path: picks the action by method, answers, and turns every error into its form."""

    def __init__(self, broker: Broker, actions: Mapping[str, Action]) -> None:
        self._clock = broker.clock
        self._count = broker.metrics.http_requests
        self._actions = dict(actions)
        if "GET" in self._actions:
            self._actions["HEAD"] = self._actions["GET"]  # uvicorn leaves the body out

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        action = self._actions.get(scope["method"])
        try:
            if action is None:
                raise self._no_such_method(scope)
            answer = await action.answer(scope, receive)
        except TaskQueueError as error:
            answer = self._refusal(error)
        except ClientGone:
            answer = UNHEARD
        except Exception:
            request_id = new_task_id()
            log.exception("a request met a fault of the broker", request_id=request_id)
            answer = self._fault(request_id)
        self._count[action.name if action else "none", answer.status] += 1
        await self._send(answer, send)

    async def _send(self, answer: Answer, send: Send) -> None:
        headers = [*answer.headers]
        if answer.status != 204:
            headers.append((b"content-length", b"%d" % len(answer.body)))
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": answer.body})

    def _no_such_method(self, _scope: Scope) -> TaskQueueError:
        if not self._actions:
            return RouteNotFound("there is nothing at this path; /docs lists what there is")
        return MethodNotAllowed(f"this path takes {self._allowed}")

    @property
    def _allowed(self) -> str:
        return ", ".join(sorted(self._actions))

    def _refusal(self, error: TaskQueueError) -> Answer:
        if error.http == 500:
            request_id = new_task_id()
            log.error("a request failed", request_id=request_id, error=error.message)
            if not isinstance(error, DataDamaged):
                return self._fault(request_id)
            return self._error(error, [(b"x-request-id", request_id.encode())])
        headers: Headers = []
        if isinstance(error, MethodNotAllowed):
            headers.append((b"allow", self._allowed.encode()))
        if isinstance(error, PayloadTooLarge):
            headers.append((b"connection", b"close"))  # the rest of it is not read
        if error.retry_after is not None:
            headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
        return self._error(error, headers)

    def _fault(self, request_id: str) -> Answer:
        error = InternalError(
            f"the broker failed; its log says more under the request id {request_id}"
        )
        return self._error(error, [(b"x-request-id", request_id.encode())])

    def _error(self, error: TaskQueueError, headers: Headers) -> Answer:
        body = msgspec.json.encode(m.error_reply(error, self._clock.wall()))
        return Answer(error.http, body, (*JSON_HEADERS, *headers))


class RestDoor:
    """Serves the broker's operations over HTTP, with their metrics and documentation."""

    def __init__(self, broker: Broker, settings: RestSettings) -> None:
        self._listener = HttpListener(rest_app(broker, settings), settings, broker.clock)
        broker.metrics.connections["rest"] = lambda: self._listener.connection_count

    @property
    def port(self) -> int:
        """The port listened on."""
        return self._listener.port

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 takes a free one. Raises OSError where the address cannot be had."""
        await self._listener.start(host, port)

    async def close(self) -> None:
        """Finish the requests under way, within 3 s, and close every connection."""
        await self._listener.close()


def rest_app(broker: Broker, settings: RestSettings) -> Router:
    """The ASGI app behind the door."""
    room = BodyRoom()
    paths: dict[str, dict[str, Action]] = defaultdict(dict)
    for operation in OPERATIONS:
        if operation.http is not None:
            kind = BatchCall if operation.request is m.SubmitBatchRequest else Call
            action = kind(operation, broker, settings, room)
            paths[operation.http.path][operation.http.method] = action
    document = openapi.document()
    paths["/metrics"]["GET"] = MetricsPage(broker)
    paths["/openapi.json"]["GET"] = FixedPage(
        "openapi", msgspec.json.encode(document), ((b"content-type", JSON),)
    )
    paths["/docs"]["GET"] = FixedPage("docs", docs_page(document), PAGE_HEADERS)
    # A path without parameters goes before one that would match it too.
    routes = [Route(path, Endpoint(broker, paths[path])) for path in sorted(paths, key=_openness)]
    return Router(routes, redirect_slashes=False, default=Endpoint(broker, {}))


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


def _openness(path: str) -> int:
    return path.count("{")
