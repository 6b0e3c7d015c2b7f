"""Builds a broker process from its settings, runs it until it is told to stop, takes it down.

Nothing else in the product knows how the parts are put together; each gets what it needs through
its constructor.
"""

import asyncio
import contextlib
import resource
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

import structlog

from taskqueue.broker.broker import Broker
from taskqueue.broker.metrics import Metrics
from taskqueue.core.clock import SystemClock
from taskqueue.doors.grpc.door import GrpcDoor
from taskqueue.doors.resp import RespDoor
from taskqueue.doors.rest import RestDoor
from taskqueue.settings.address import Address, parse_address
from taskqueue.settings.errors import SettingsError
from taskqueue.settings.tree import Settings, TlsSettings
from taskqueue.storage.cluster import Presence
from taskqueue.storage.engines import open_storage

SECONDS_OF_DAY: Final = 86_400

if TYPE_CHECKING:
    from taskqueue.doors.tls import Tls

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger(component="server")


class Endpoints(NamedTuple):
    """Where the broker listens."""

    http: Address
    native: Address
    grpc: Address


class Door(Protocol):
    """One protocol's server."""

    @property
    def port(self) -> int:
        """Where it listens."""
        ...

    async def start(self, host: str, port: int, tls: "Tls | None") -> None:
        """Listen. Raises OSError where the address cannot be had."""
        ...


class PortTaken(OSError):
    """An address cannot be listened on; the message names it and says what to do."""


async def serve(settings: Settings, on_ready: Callable[[Endpoints], None]) -> None:
    """Run a broker until SIGTERM or SIGINT.

    Calls `on_ready` once it takes requests. SIGHUP has it read its certificate again. Raises
    PortTaken where an address cannot be had, SettingsError where the certificate cannot be used,
    and TaskQueueError where the storage cannot be opened.
    """
    _allow_many_files()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    tls = _tls(settings.tls)
    loop.add_signal_handler(signal.SIGHUP, lambda: tls and tls.reload())
    async with running(settings, tls) as endpoints:
        on_ready(endpoints)
        await stop.wait()
        log.info("stopping")


@asynccontextmanager
async def running(settings: Settings, tls: "Tls | None" = None) -> AsyncIterator[Endpoints]:
    """A broker that runs for the length of the block."""
    storage = open_storage(Path(settings.data.folder), settings.storage.engine)
    await storage.open()
    try:
        clock = SystemClock(await storage.cluster.clock_offset(SystemClock().wall))
        broker = Broker(storage, clock, settings.broker, Metrics(), settings.access)
        await broker.open()
        async with _listening(broker, settings, tls) as endpoints, asyncio.TaskGroup() as parts:
            chores = broker.upkeep.run(), broker.access.run(), _watch_over(tls)
            storage.cluster.introduce(
                Presence(
                    address=settings.storage.advertise or str(endpoints.native),
                    http=str(endpoints.http),
                    version=version("taskqueue"),
                )
            )
            at_work = [parts.create_task(chore) for chore in chores]
            try:
                yield endpoints
            finally:
                for task in at_work:
                    task.cancel()
    finally:
        await storage.close()


@asynccontextmanager
async def _listening(
    broker: Broker, settings: Settings, tls: "Tls | None"
) -> AsyncIterator[Endpoints]:
    rest = RestDoor(broker, settings.http)
    native = RespDoor(broker, settings.native)
    grpc = GrpcDoor(broker, settings.grpc)
    try:
        yield Endpoints(
            http=await _listen(rest, settings.http.listen, tls),
            native=await _listen(native, settings.native.listen, tls),
            grpc=await _listen(grpc, settings.grpc.listen, tls),
        )
    finally:
        # Waiting claims and readers are answered first; then the doors can close.
        await broker.close()
        await asyncio.gather(native.close(), rest.close(), grpc.close())


def _allow_many_files() -> None:
    """Take as many file descriptors as the system lets us: each client needs one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _tls(settings: TlsSettings) -> "Tls | None":
    if not (settings.cert or settings.key or settings.client_ca):
        return None
    from taskqueue.doors.tls import Tls, TlsError  # its libraries take a while to import

    try:
        return Tls(settings.cert, settings.key, settings.client_ca)
    except TlsError as error:
        raise SettingsError(str(error)) from error


async def _watch_over(tls: "Tls | None") -> None:
    """Say every day what will be a problem with the certificate soon."""
    while tls is not None:
        await asyncio.sleep(SECONDS_OF_DAY)
        tls.warn()


async def _listen(door: Door, listen: str, tls: "Tls | None") -> Address:
    address = parse_address(listen)
    try:
        await door.start(address.host, address.port, tls)
    except OSError as error:
        raise PortTaken(
            f"cannot listen on {address}: {error.strerror or error}; "
            "stop what listens there or choose another address"
        ) from error
    return Address(address.host, door.port)
