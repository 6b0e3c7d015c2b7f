"""The REST door: every operation that has a route, at its route, in the documented form.

Starlette's router finds the path; its request objects, routes and middleware stay out of the way
of a submit, where they would cost as much as the work itself. A path is an ASGI app of its own
(`Endpoint`), an operation at it an action; all answers, errors included, leave through one place.
"""

import asyncio
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec
import structlog
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from taskqueue.broker.broker import Broker
from taskqueue.broker.operation import Operation
from taskqueue.broker.operations import OPERATIONS
from taskqueue.core.errors import (
    AuthenticationFailed,
    DataDamaged,
    InternalError,
    MethodNotAllowed,
    PayloadTooLarge,
    RateLimitExceeded,
    RouteNotFound,
    TaskQueueError,
)
from taskqueue.doors import openapi
from taskqueue.doors.actions import (
    JSON,
    JSON_HEADERS,
    UNHEARD,
    Action,
    Answer,
    BatchCall,
    Call,
    ClientGone,
    FixedPage,
    MetricsPage,
)
from taskqueue.doors.docs_page import PAGE_HEADERS, docs_page
from taskqueue.doors.http import RestSettings
from taskqueue.doors.listener import HttpListener
from taskqueue.doors.rest_input import BodyRoom
from taskqueue.doors.visit import Proxies, Visit
from taskqueue.wire import messages as m

if TYPE_CHECKING:
    from taskqueue.doors.tls import Tls

Headers = list[tuple[bytes, bytes]]

log = structlog.get_logger(component="rest")


class Endpoint:
    """One path: picks the action by method, answers, and turns every error into its form."""

    def __init__(self, broker: Broker, actions: Mapping[str, Action], proxies: Proxies) -> None:
        self._clock = broker.clock
        self._access = broker.access
        self._proxies = proxies
        self._count = broker.metrics.http_requests
        self._actions = dict(actions)
        if "GET" in self._actions:
            self._actions["HEAD"] = self._actions["GET"]  # uvicorn leaves the body out

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        action = self._actions.get(scope["method"])
        visit = Visit(self._access, (scope["client"] or ("?",))[0], scope["headers"], self._proxies)
        try:
            if action is None or action.is_limited:
                visit.count()
            if action is None:
                raise self._no_such_method(scope)
            answer = await action.answer(scope, receive, visit.caller)
        except AuthenticationFailed as error:
            await asyncio.sleep(visit.penalty())
            answer = self._error(error, [(b"www-authenticate", b"Bearer")])
        except TaskQueueError as error:
            answer = self._refusal(error, visit.request_id)
        except ClientGone:
            answer = UNHEARD
        except Exception:
            log.exception("a request met a fault of the broker", request_id=visit.request_id)
            answer = self._fault(visit.request_id)
        self._count[action.name if action else "none", answer.status] += 1
        await self._send(answer, visit, send)

    async def _send(self, answer: Answer, visit: Visit, send: Send) -> None:
        headers = [*answer.headers, *visit.header_lines()]
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

    def _refusal(self, error: TaskQueueError, request_id: str) -> Answer:
        if error.http == 500:
            log.error("a request failed", request_id=request_id, error=error.message)
            return (
                self._error(error, [])
                if isinstance(error, DataDamaged)
                else self._fault(request_id)
            )
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
        return self._error(error, [])

    def _error(self, error: TaskQueueError, headers: Headers) -> Answer:
        body = msgspec.json.encode(m.error_reply(error, self._clock.wall()))
        return Answer(error.http, body, (*JSON_HEADERS, *headers))


class RestDoor:
    """Serves the broker's operations over HTTP, with their metrics and documentation."""

    def __init__(self, broker: Broker, settings: RestSettings) -> None:
        proxies = Proxies(settings.trusted_proxies)

        def describe(address: str) -> Headers:
            visit = Visit(broker.access, address, (), proxies)
            with suppress(RateLimitExceeded):
                visit.count()
            return visit.header_lines()

        self._listener = HttpListener(rest_app(broker, settings), settings, broker.clock, describe)
        broker.metrics.connections["rest"] = lambda: self._listener.connection_count

    @property
    def port(self) -> int:
        """The port listened on."""
        return self._listener.port

    async def start(self, host: str, port: int, tls: "Tls | None" = None) -> None:
        """Listen; port 0 takes a free one. Raises OSError where the address cannot be had."""
        await self._listener.start(host, port, tls)

    async def close(self) -> None:
        """Finish the requests under way, within 3 s, and close every connection."""
        await self._listener.close()


def rest_app(
    broker: Broker, settings: RestSettings, operations: Sequence[Operation] = OPERATIONS
) -> ASGIApp:
    """The ASGI app behind the door. Raises ValueError for settings that make no sense."""
    room = BodyRoom()
    proxies = Proxies(settings.trusted_proxies)
    paths: dict[str, dict[str, Action]] = defaultdict(dict)
    for operation in operations:
        if operation.http is not None:
            kind = BatchCall if operation.request is m.SubmitBatchRequest else Call
            action = kind(operation, broker, settings, room)
            paths[operation.http.path][operation.http.method] = action
    document = openapi.document(operations)
    paths["/metrics"]["GET"] = MetricsPage(broker)
    paths["/openapi.json"]["GET"] = FixedPage(
        "openapi", msgspec.json.encode(document), ((b"content-type", JSON),)
    )
    paths["/docs"]["GET"] = FixedPage("docs", docs_page(document), PAGE_HEADERS)
    # A path without parameters goes before one that would match it too.
    routes = [
        Route(path, Endpoint(broker, paths[path], proxies)) for path in sorted(paths, key=_openness)
    ]
    app = Router(routes, redirect_slashes=False, default=Endpoint(broker, {}, proxies))
    return with_cors(app, settings.cors_origins)


def with_cors(app: ASGIApp, origins: str) -> ASGIApp:
    """The app, open to scripts of web pages from these origins; to none if there are none."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=[origin.strip() for origin in origins.split(",")],
        allow_methods=["GET", "POST", "PATCH", "DELETE"],
        allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "X-Request-Id"],
        expose_headers=[
            "Retry-After",
            "X-RateLimit-Limit",
            "X-RateLimit-Remaining",
            "X-RateLimit-Reset",
            "X-Request-Id",
        ],
    )


def _openness(path: str) -> int:
    return path.count("{")
