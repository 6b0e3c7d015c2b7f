"""Lets connections in once they are encrypted: the TLS handshake before a door's own protocol.

`asyncio`'s own way of serving TLS holds one context for ever and says nothing of a handshake that
fails. Here each handshake takes the context of the moment, and what went wrong is logged, once for
each address.
"""

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Final, cast

import structlog

HANDSHAKE_SECONDS: Final = 10.0
"""How long a client may take until its connection is encrypted."""

SHUTDOWN_SECONDS: Final = 30.0
"""How long a client may take to read its last answers once the connection is to be closed."""

MOST_HANDSHAKES: Final = 1_000
"""Handshakes under way at once; one more cuts off the oldest."""

MOST_OFFENDERS: Final = 1_024
"""Addresses whose failures are logged."""

Explain = Callable[[ssl.SSLError], None]

_IN_WORDS: Final = {
    "HTTP_REQUEST": "it speaks plain HTTP on a port for TLS",
    "WRONG_VERSION_NUMBER": "it does not speak TLS, which this port is for",
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "it showed no client certificate, and one is needed",
    "UNSUPPORTED_PROTOCOL": "it speaks only versions of TLS older than 1.2",
}

_WORTH_TELLING: Final = frozenset(
    {
        "PEER_DID_NOT_RETURN_A_CERTIFICATE",
        "CERTIFICATE_VERIFY_FAILED",
        "UNSUPPORTED_PROTOCOL",
        "NO_SHARED_CIPHER",
    }
)
"""Failures of clients that do speak TLS: they are told, and get a moment to read it."""

log = structlog.get_logger(component="tls")


class GateSsl(ssl.SSLObject):
    """One connection's TLS, with manners that asyncio and uvloop lack.

    Beginning: at the first error of a handshake they close the connection and forget the alert that
    OpenSSL has prepared, so the client would see nothing but a reset. They do send what is prepared
    when a handshake needs more input: so that is what they are told at first.

    End: they wait for the client to confirm it, which an idle one never does; so they are told that
    it has.
    """

    explain: Explain | None = None
    _failure: ssl.SSLError | None = None

    def do_handshake(self) -> None:
        """As far as the bytes allow that have come. Raises ssl.SSLError."""
        if self._failure is not None:
            raise self._failure
        try:
            super().do_handshake()
        except ssl.SSLWantReadError:
            raise
        except ssl.SSLError as error:
            if error.reason not in _WORTH_TELLING:
                raise
            self._failure = error
            if self.explain is not None:
                self.explain(error)
            raise ssl.SSLWantReadError from None

    def unwrap(self) -> None:
        """Tell the client that this is the end. Raises ssl.SSLError."""
        with contextlib.suppress(ssl.SSLWantReadError):
            super().unwrap()


class GateContext(ssl.SSLContext):
    """A context for `Gate`."""

    sslobject_class = GateSsl
    _arrival: "_Arrival | None" = None

    def expect(self, arrival: "_Arrival") -> None:
        """Say who the next handshake is with, just before it begins."""
        self._arrival = arrival

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """What the event loop begins a handshake with."""
        begun = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session)
        if isinstance(begun, GateSsl) and self._arrival is not None:
            incoming.write(self._arrival.take_early())
            begun.explain = self._arrival.explain
        self._arrival = None
        return begun


class Gate:
    """Makes protocols for `create_server` that shake hands and then give way to the door's own.

    `protocol` makes the door's own; `context` is asked for at each handshake.
    """

    def __init__(
        self, protocol: Callable[[], asyncio.Protocol], context: Callable[[], GateContext]
    ) -> None:
        self._protocol = protocol
        self._context = context
        self._under_way: dict[asyncio.Task[None], None] = {}
        self._offenders: set[str] = set()

    def __call__(self) -> asyncio.Protocol:
        """A protocol for one connection."""
        return _Arrival(self._begin, self._note)

    def close(self) -> None:
        """Cut off the handshakes that are under way."""
        for handshake in self._under_way:
            handshake.cancel()

    def _begin(self, arrival: "_Arrival") -> None:
        if len(self._under_way) >= MOST_HANDSHAKES:
            oldest = next(iter(self._under_way))
            del self._under_way[oldest]  # at once: many may come before it takes notice
            oldest.cancel()
        handshake = asyncio.get_running_loop().create_task(self._shake_hands(arrival))
        self._under_way[handshake] = None
        handshake.add_done_callback(lambda done: self._under_way.pop(done, None))

    async def _shake_hands(self, arrival: "_Arrival") -> None:
        if arrival.transport.is_closing():
            return
        loop, context = asyncio.get_running_loop(), self._context()
        # asyncio begins within start_tls, uvloop in the loop's next turn: nothing gets in between.
        context.expect(arrival)
        loop.call_soon(context.expect, arrival)
        try:
            encrypted = await loop.start_tls(
                arrival.transport,
                arrival,
                context,
                server_side=True,
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
                ssl_shutdown_timeout=SHUTDOWN_SECONDS,
            )
        except OSError as error:
            arrival.explain(error)
        except asyncio.CancelledError:
            arrival.transport.abort()
            raise
        else:
            # uvloop's transports do not inherit from asyncio's.
            arrival.give_way(cast(asyncio.Transport, encrypted), self._protocol)

    def _note(self, peer: str, error: OSError) -> None:
        if isinstance(error, ConnectionResetError):
            return  # it has left: a health check, or somebody who was told why just now
        if peer not in self._offenders and len(self._offenders) < MOST_OFFENDERS:
            self._offenders.add(peer)
            log.warning("a TLS handshake failed", client=peer, error=_in_words(error))


class _Arrival(asyncio.Protocol):
    """Keeps what comes before the handshake, and between its end and the door's taking over."""

    def __init__(
        self, begin: Callable[["_Arrival"], None], note: Callable[[str, OSError], None]
    ) -> None:
        self.transport: asyncio.Transport
        self._begin = begin
        self._note = note
        self._early = bytearray()
        self._is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # What comes now is for the handshake. uvloop does not heed this so early.
        self.transport.pause_reading()
        self._begin(self)

    def data_received(self, data: bytes) -> None:
        self._early += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio names it
        self._is_lost = True

    def take_early(self) -> bytes:
        """What has come before anybody could make use of it."""
        early = bytes(self._early)
        self._early.clear()
        return early

    def explain(self, error: OSError) -> None:
        """Log why the handshake has failed."""
        peer = (self.transport.get_extra_info("peername") or ("?",))[0]
        self._note(str(peer), error)

    def give_way(
        self, transport: asyncio.Transport, protocol: Callable[[], asyncio.Protocol]
    ) -> None:
        """Hand the connection over, as if the door's protocol had been there all the time."""
        if self._is_lost:
            return
        taking_over = protocol()
        transport.set_protocol(taking_over)
        taking_over.connection_made(transport)
        if self._early:
            taking_over.data_received(self.take_early())


def _in_words(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its client certificate is refused by tls.client_ca: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return _IN_WORDS.get(error.reason) or error.reason.lower().replace("_", " ")
    if isinstance(error, ConnectionAbortedError):
        return f"it was not done within {HANDSHAKE_SECONDS:g} seconds"
    return str(error)
