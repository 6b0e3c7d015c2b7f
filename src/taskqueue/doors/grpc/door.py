"""The gRPC door: a grpc.aio server with the services of the published API, limits and an end."""

import asyncio
import errno
import logging
import socket
from typing import TYPE_CHECKING, Any, Final

import grpc.aio
import structlog
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from taskqueue.broker.broker import Broker
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.doors.grpc.calls import Call
from taskqueue.doors.grpc.exchange import House, Unread
from taskqueue.doors.grpc.health import HealthCalls
from taskqueue.doors.grpc.offers import LARGEST_MESSAGE, TASK_QUEUE, WORK, Offer
from taskqueue.doors.grpc.server import new_server
from taskqueue.doors.grpc.session import SessionCall
from taskqueue.doors.grpc.settings import GrpcSettings
from taskqueue.doors.grpc.streams import UpdateCall
from taskqueue.doors.visit import Proxies

if TYPE_CHECKING:  # what it brings along takes time to import, and many brokers have no use for it
    from taskqueue.doors.tls import Tls

LARGEST_METADATA: Final = 16 * 1024
MOST_STREAMS: Final = 100
"""Calls at a time on one connection; a client with more opens another one, or waits."""

AGE_GRACE_SECONDS: Final = 600
"""How long calls may go on after their connection has reached its age."""

CLOSE_SECONDS: Final = 2.0
"""How long calls may go on after the door has been told to close."""

TASK_QUEUE_SERVICE: Final = pb.DESCRIPTOR.services_by_name["TaskQueue"].full_name
WORK_SERVICE: Final = pb.DESCRIPTOR.services_by_name["Work"].full_name
HEALTH_SERVICE: Final = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name

Calls = dict[str, "grpc.RpcMethodHandler[bytes, bytes]"]


log = structlog.get_logger(component="grpc")


class GrpcDoor:
    """Serves the broker's operations over gRPC, with the standard health service."""

    def __init__(self, broker: Broker, settings: GrpcSettings) -> None:
        """Raises ValueError for settings that make no sense."""
        self.port = 0
        """The port listened on."""
        house = House(broker, Proxies(settings.trusted_proxies), settings.answer_seconds, Unread())
        self._house = house
        self._settings = settings
        self._sessions = SessionCall(house)
        self._health = HealthCalls(house, frozenset({"", TASK_QUEUE_SERVICE, WORK_SERVICE}))
        self._server: grpc.aio.Server | None = None
        self._checking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int, tls: "Tls | None" = None) -> None:
        """Listen; port 0 takes a free one. Raises OSError where the address cannot be had."""
        logging.getLogger("grpc._cython.cygrpc").addFilter(_is_news)
        server = new_server(options_of(self._settings), self._settings.max_calls)
        for name, calls in self._services().items():
            server.add_registered_method_handlers(name, calls)  # type: ignore[attr-defined]
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, tls.grpc_credentials())
        except RuntimeError as error:
            raise _reason(host, port) from error
        await server.start()
        self._server = server
        self._checking = asyncio.create_task(self._health.run())
        self._watching = asyncio.create_task(self._watch(server, host, tls))

    async def close(self) -> None:
        """Finish the calls under way, within 3 s, and close every connection."""
        server, self._server = self._server, None
        if self._checking is not None:
            self._checking.cancel()
        self._health.close()
        self._sessions.close()
        if server is not None:
            await server.stop(CLOSE_SECONDS)

    async def _watch(self, server: grpc.aio.Server, host: str, tls: "Tls | None") -> None:
        """Should the server end by itself, whatever the fault, put a new one in its place."""
        await server.wait_for_termination()
        if self._server is not server:
            return
        log.error("the gRPC server has ended by itself; it is started again")
        if self._checking is not None:
            self._checking.cancel()
        await self.start(host, self.port, tls)

    def _services(self) -> dict[str, Calls]:
        services = {
            TASK_QUEUE_SERVICE: self._calls(TASK_QUEUE)
            | {
                "StreamTaskUpdates": grpc.unary_stream_rpc_method_handler(
                    UpdateCall(self._house).answer
                )
            },
            WORK_SERVICE: self._calls(WORK)
            | {"Session": grpc.stream_stream_rpc_method_handler(self._sessions.answer)},
            HEALTH_SERVICE: self._health.handlers,
        }
        if self._settings.reflection:
            services |= reflection_of([*services])
        return services

    def _calls(self, offers: tuple[Offer, ...]) -> Calls:
        return {
            offer.name: grpc.unary_unary_rpc_method_handler(Call(offer, self._house).answer)
            for offer in offers
        }


def reflection_of(services: list[str]) -> dict[str, Calls]:
    """The services that say which services and messages there are.

    The package knows the version v1alpha; its messages are those of v1, which newer tools ask for.
    """
    names = [f"grpc.reflection.{version}.ServerReflection" for version in ("v1", "v1alpha")]
    servicer = reflection.aio.ReflectionServicer([*services, *names])  # type: ignore[attr-defined]
    calls = {
        "ServerReflectionInfo": grpc.stream_stream_rpc_method_handler(
            servicer.ServerReflectionInfo,
            reflection_pb2.ServerReflectionRequest.FromString,
            reflection_pb2.ServerReflectionResponse.SerializeToString,
        )
    }
    return dict.fromkeys(names, calls)


def options_of(settings: GrpcSettings) -> list[tuple[str, Any]]:
    """The limits, as gRPC's core is told them."""
    return [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", LARGEST_MESSAGE),
        ("grpc.max_send_message_length", LARGEST_MESSAGE),
        ("grpc.max_concurrent_streams", MOST_STREAMS),
        # It counts streams that have been answered already, and refuses those of good clients. One
        # that opens more than its share is told to calm down either way.
        ("grpc.http.overload_protection", 0),
        # The softer limit by itself would refuse at random what lies between the two.
        ("grpc.max_metadata_size", LARGEST_METADATA),
        ("grpc.absolute_max_metadata_size", LARGEST_METADATA),
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.server_handshake_timeout_ms", 20_000),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 2),
        ("grpc.max_connection_idle_ms", settings.idle_seconds * 1_000),
        ("grpc.max_connection_age_ms", settings.connection_age_seconds * 1_000),
        ("grpc.max_connection_age_grace_ms", AGE_GRACE_SECONDS * 1_000),
    ]


def _is_news(record: logging.LogRecord) -> bool:
    # That an answer could not be delivered, as its client had gone, and that a client sends names
    # of headers that are not text: gRPC logs both as errors.
    return not str(record.msg).startswith(("ExecuteBatchError raised in core", "Invalid encoding"))


def _reason(host: str, port: int) -> OSError:
    # gRPC does not say why: an attempt of our own finds out.
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[
            0
        ]
        with socket.socket(family, kind, number) as probe:
            probe.bind(address)
    except OSError as error:
        return error
    return OSError(errno.EADDRINUSE, "the address cannot be listened on")
