"""HTTP/1.1 with limits: uvicorn's protocol under a deadline, with bounded heads and a clean end.

uvicorn by itself has no deadline for receiving a request and no limit on its headers. Added here:
an absolute time for a request to arrive, limits on the request line and the headers, limits on
connections and slow readers, errors in the documented form, and an end of the connection after
anything that makes its framing doubtful.
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Final

import httptools
import msgspec
import structlog
from msgspec import Meta, Struct
from uvicorn import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from taskqueue.core.clock import Clock
from taskqueue.core.errors import (
    BrokerUnavailable,
    InvalidRequest,
    MethodNotAllowed,
    TaskQueueError,
)
from taskqueue.doors import bounds
from taskqueue.wire.messages import error_reply

SPOKEN: Final = ("1.1", "1.0")
"""Versions of HTTP that are answered."""

LONGEST_URL: Final = 8 * 1024
MOST_HEADERS: Final = 100
LONGEST_HEAD: Final = 32 * 1024
"""Bytes of all header names and values together."""

UPGRADE_HEADERS: Final = (b"connection", b"upgrade", b"http2-settings")

LINGER_SECONDS: Final = 2.0
"""How long a refused client may go on sending, so that it gets to read the answer."""

log = structlog.get_logger(component="http")

Describe = Callable[[str], list[tuple[bytes, bytes]]]
"""The headers that every answer has, for a request from this address."""


class RestSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of the REST door."""

    receive_seconds: Annotated[float, Meta(ge=1, le=3600)] = 30
    """How long a request may take to arrive."""

    answer_seconds: Annotated[float, Meta(ge=1, le=3600)] = 30
    """How long an answer may take, beyond a wait that was asked for."""

    keep_alive_seconds: Annotated[int, Meta(ge=1, le=3600)] = 60
    """How long a connection may lie idle between requests."""

    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """How many clients may be connected at once."""

    trusted_proxies: str = ""
    """Addresses or networks, separated by commas, whose X-Forwarded-For is believed."""

    cors_origins: str = ""
    """Origins, separated by commas, whose web pages may call the API; * for all."""


class DoorState(ServerState):
    """What the connections of one door share."""

    def __init__(self) -> None:
        super().__init__()
        self.behind: set[LimitedHttp] = set()
        """Connections whose clients do not read their answers as fast as they come."""
        self.unread = 0
        """Bytes of answers that all these have left unread."""


class Refused(Exception):
    """A request that is not read to its end; it is answered and the connection closed."""

    def __init__(self, status: int, error: TaskQueueError) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error


class LimitedHttp(HttpToolsProtocol):
    """One HTTP connection."""

    def __init__(
        self,
        config: Config,
        state: DoorState,
        settings: RestSettings,
        clock: Clock,
        on_lost: Callable[[], None],
        describe: Describe,
    ) -> None:
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self.parser = _new_parser(self)
        self.is_lingering = False
        self.unread = 0
        """Bytes of answers that the client is behind with."""
        self._state = state
        self._settings = settings
        self._clock = clock
        self._on_lost = on_lost
        self._describe = describe
        self._socket: asyncio.Transport
        self._latest: RequestResponseCycle | None = None
        self._is_receiving = False
        self._is_in_body = False
        self._is_refused = False
        self._undigested = 0
        self._head_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    @property
    def has_unread_input(self) -> bool:
        """Whether the client may still be sending something that nobody will read."""
        return self._is_receiving or self._is_refused

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._socket = transport
        self.transport = LingeringTransport(transport, self)
        self.flow = PipelineFlow(transport, self.pipeline)
        self._arm_deadline()
        if len(self.connections) > self._settings.max_connections:
            self._refuse(
                Refused(
                    503,
                    BrokerUnavailable(
                        "The broker has as many connections as it may; try again shortly",
                        retry_after=1,
                    ),
                )
            )

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._deadline is not None:
            self._deadline.cancel()
        self._stop_watching()
        self._unset_keepalive_if_required()
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        if self._is_refused or self.is_lingering:
            return
        self._unset_keepalive_if_required()
        self._undigested += len(data)
        try:
            self._feed(data)
            self._check_undigested()
        except Refused as refusal:
            self._refuse(refusal)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, Refused) else _broken(cause or error))
        else:
            if self._deadline is None and (self._is_receiving or self._is_idle):
                self._arm_deadline()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_receiving = True
        self._is_in_body = False
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > LONGEST_URL:
            raise _url_too_long()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > LONGEST_HEAD or len(self.headers) >= MOST_HEADERS:
            raise _head_too_large()
        if not self._is_in_body:  # trailers would pass for headers otherwise
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        version = self.parser.get_http_version()
        if version not in SPOKEN:
            raise Refused(400, InvalidRequest(f"HTTP/{version} is not spoken here; send HTTP/1.1"))
        hosts = sum(name == b"host" for name, _value in self.headers)
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise Refused(400, InvalidRequest("the request must have one Host header"))
        self._undigested = 0
        if self.parser.should_upgrade():
            return  # the parser skips the body then; see _feed
        super().on_headers_complete()
        self._latest = self.cycle
        self._is_in_body = True

    def on_body(self, body: bytes) -> None:
        self._undigested = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_in_body:
            return
        self._is_receiving = False
        self._undigested = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        super().on_message_complete()

    def on_response_complete(self) -> None:
        is_last = not self.pipeline
        super().on_response_complete()
        if self._is_refused and is_last:
            self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()
        if self._state.unread > bounds.LARGEST_BACKLOG_OF_ALL:
            self.loop.call_soon(self._drop_largest)  # we may be in the midst of a write

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_watching()

    def drop(self, reason: str) -> None:
        """End it at once."""
        log.warning("a client is dropped", client=(self.client or ("?",))[0], reason=reason)
        self._stop_watching()
        self._socket.abort()

    @property
    def _is_idle(self) -> bool:
        return self._latest is None or self._latest.response_complete

    def _feed(self, data: bytes) -> None:
        while data:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = self._head_without_upgrade() + data[upgrade.args[0] :]
            else:
                return

    def _head_without_upgrade(self) -> bytes:
        """The request's head once more, for a new parser: the offer is not taken up.

        Some clients offer HTTP/2 in the clear with every first request, also with a POST.
        """
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise Refused(405, MethodNotAllowed("CONNECT is not offered here"))
        self.parser = _new_parser(self)
        closes = any(n == b"connection" and b"close" in v.lower() for n, v in self.headers)
        kept = [header for header in self.headers if header[0] not in UPGRADE_HEADERS]
        if closes:
            kept.append((b"connection", b"close"))
        lines = b"".join(b"%s: %s\r\n" % header for header in kept)
        return b"%s %s HTTP/1.1\r\n%s\r\n" % (method, self.url, lines)

    def _check_undigested(self) -> None:
        # The parser hands out whole header lines only; one without an end would grow for ever.
        if self._is_receiving and self._undigested > LONGEST_URL + LONGEST_HEAD:
            raise _head_too_large()

    def _arm_deadline(self) -> None:
        self._deadline = self.loop.call_later(self._settings.receive_seconds, self._time_is_up)

    def _time_is_up(self) -> None:
        self._deadline = None
        if self.flow.read_paused:
            self._arm_deadline()  # the request waits for us, not we for it
        elif self._is_receiving:
            seconds = self._settings.receive_seconds
            self._refuse(
                Refused(
                    408, InvalidRequest(f"the request did not arrive within {seconds:g} seconds")
                )
            )
        elif self._is_idle:
            self.transport.close()

    def _watch_reader(self) -> None:
        self._note_unread(self._socket.get_write_buffer_size())
        self._stalled = self.loop.call_later(self._settings.receive_seconds, self._check_reader)

    def _check_reader(self) -> None:
        unread = self._socket.get_write_buffer_size()
        if unread > self.unread - bounds.LEAST_READ:
            self.drop(f"it leaves {unread} bytes of answers unread")
        else:
            self._watch_reader()

    def _stop_watching(self) -> None:
        self._note_unread(0)
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _note_unread(self, unread: int) -> None:
        self._state.unread += unread - self.unread
        self.unread = unread
        if unread:
            self._state.behind.add(self)
        else:
            self._state.behind.discard(self)

    def _drop_largest(self) -> None:
        unread = self._state.unread
        if unread > bounds.LARGEST_BACKLOG_OF_ALL:
            largest = max(self._state.behind, key=lambda one: one.unread)
            largest.drop(f"all clients leave {unread} bytes of answers unread, it the most")

    def _refuse(self, refusal: Refused) -> None:
        """Answer, read no further, close: after any doubt nothing more on it can be trusted."""
        self._is_refused = True
        is_spoilt = self._is_receiving and self._is_in_body
        if is_spoilt and self.pipeline:
            self.pipeline.popleft()  # answers to whole requests before it are still owed
        elif not is_spoilt and not self._is_idle:
            pass  # the same; on_response_complete closes
        else:
            if not is_spoilt or not self.cycle.response_started:
                self.transport.write(self._answer_to(refusal))
            if is_spoilt:
                self.cycle.disconnected = True
                self.cycle.message_event.set()
            self.transport.close()

    def _answer_to(self, refusal: Refused) -> bytes:
        body = msgspec.json.encode(error_reply(refusal.error, self._clock.wall()))
        lines = [
            *self.server_state.default_headers,
            *self._describe((self.client or ("?",))[0]),
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"x-content-type-options", b"nosniff"),
            (b"connection", b"close"),
        ]
        if refusal.error.retry_after is not None:
            lines.append((b"retry-after", b"%d" % max(1, round(refusal.error.retry_after))))
        head = b"".join(b"%s: %s\r\n" % line for line in lines)
        return STATUS_LINE[refusal.status] + head + b"\r\n" + body


class PipelineFlow(FlowControl):
    """Reads no further while whole requests wait for their turn: a flood stays in the sockets."""

    def __init__(self, transport: asyncio.Transport, pipeline: Any) -> None:
        super().__init__(transport)
        self._pipeline = pipeline

    def resume_reading(self) -> None:
        if not self._pipeline:
            super().resume_reading()


class LingeringTransport(asyncio.Transport):
    """A transport that reads on for a moment when it is closed in the middle of a request.

    Closing a socket with unread bytes resets the connection, and the reset may overtake the answer.
    """

    def __init__(self, socket: asyncio.Transport, protocol: LimitedHttp) -> None:
        super().__init__()
        self._socket = socket
        self._protocol = protocol

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not self._socket.is_closing():  # uvloop takes it amiss
            self._socket.write(data)

    def is_closing(self) -> bool:
        return self._protocol.is_lingering or self._socket.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if not self._protocol.has_unread_input:
            self._socket.close()
            return
        self._protocol.is_lingering = True
        if self._socket.can_write_eof():  # TLS ends both ways at once
            self._socket.write_eof()
        self._protocol.pipeline.clear()
        self._protocol.flow.resume_reading()
        self._protocol.loop.call_later(LINGER_SECONDS, self._socket.close)

    def abort(self) -> None:
        self._socket.abort()


def _new_parser(protocol: LimitedHttp) -> httptools.HttpRequestParser:
    # Strict throughout: uvicorn's own lets data follow a request that announced the end.
    return httptools.HttpRequestParser(protocol)


def _broken(error: BaseException) -> Refused:
    return Refused(400, InvalidRequest(f"the request is not valid HTTP/1.1: {error}"[:300]))


def _url_too_long() -> Refused:
    return Refused(414, InvalidRequest(f"the URL must be at most {LONGEST_URL} bytes"))


def _head_too_large() -> Refused:
    return Refused(
        431,
        InvalidRequest(
            f"the headers must be at most {MOST_HEADERS}, and {LONGEST_HEAD} bytes in all"
        ),
    )
