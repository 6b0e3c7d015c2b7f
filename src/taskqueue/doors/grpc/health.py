"""The standard health service, grpc.health.v1: whether the broker can do its work.

The servicer of grpcio-health-checking holds a lock while it writes to its watchers: one that does
not read would keep the state from changing for everybody.
"""

import asyncio
from typing import Final

import grpc
from grpc_health.v1 import health_pb2

from taskqueue.broker.access import ANYBODY
from taskqueue.broker.operations import BY_NAME
from taskqueue.doors.grpc.exchange import Context, Exchange, House
from taskqueue.doors.grpc.translation import parse
from taskqueue.wire import messages as m

CHECK_SECONDS: Final = 1.0

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE_UNKNOWN: Final = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthCalls:
    """Answers health checks, without a key and without a limit. All services stand alike."""

    def __init__(self, house: House, services: frozenset[str]) -> None:
        self._house = house
        self._services = services
        self._status = SERVING
        self._changed: asyncio.Future[None] | None = None
        self._is_closed = False

    @property
    def handlers(self) -> "dict[str, grpc.RpcMethodHandler[bytes, bytes]]":
        """The calls of the service."""
        return {
            "Check": grpc.unary_unary_rpc_method_handler(self.check),
            "Watch": grpc.unary_stream_rpc_method_handler(self.watch),
        }

    async def run(self) -> None:
        """Keep up with the broker for ever."""
        while True:
            await self.refresh()
            await asyncio.sleep(CHECK_SECONDS)

    async def refresh(self) -> None:
        """Ask the broker how it is."""
        health = await BY_NAME["health"].start(self._house.broker, m.NoRequest(), ANYBODY)
        if not self._is_closed:
            self._set(SERVING if health.status == "healthy" else NOT_SERVING)

    def close(self) -> None:
        """Say from now on that nothing is served."""
        self._is_closed = True
        self._set(NOT_SERVING)

    async def check(self, data: bytes, context: Context) -> bytes:
        """How a service is now."""
        exchange = Exchange(self._house, context, "health")
        try:
            service = parse(health_pb2.HealthCheckRequest, data).service
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets a status
            await exchange.refuse(error)
        await exchange.greet()
        if service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such service")
        return _answer(self._status)

    async def watch(self, data: bytes, context: Context) -> None:
        """How a service is, now and whenever that changes."""
        exchange = Exchange(self._house, context, "health")
        try:
            service = parse(health_pb2.HealthCheckRequest, data).service
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets a status
            await exchange.refuse(error)
        await exchange.greet()
        told = None
        while not (self._is_closed and told == NOT_SERVING):
            status = self._status if service in self._services else SERVICE_UNKNOWN
            if status != told:
                await context.write(_answer(status))
                told = status
            elif self._is_closed:
                return
            else:
                await asyncio.shield(self._next_change())

    def _next_change(self) -> "asyncio.Future[None]":
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        return self._changed

    def _set(self, status: int) -> None:
        if status == self._status and not self._is_closed:
            return
        self._status = status
        changed, self._changed = self._changed, None
        if changed is not None:
            changed.set_result(None)


def _answer(status: int) -> bytes:
    return bytes(health_pb2.HealthCheckResponse(status=status).SerializeToString())
