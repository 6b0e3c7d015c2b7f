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
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from taskqueue.broker.broker import Broker
from taskqueue.broker.metrics import Metrics
from taskqueue.core.clock import SystemClock
from taskqueue.doors.resp import RespDoor
from taskqueue.doors.rest import RestDoor
from taskqueue.settings.address import Address, parse_address
from taskqueue.settings.tree import Settings
from taskqueue.storage.engines import open_storage

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger(component="server")


class Endpoints(NamedTuple):
    """Where the broker listens."""

    http: Address
    native: Address


class PortTaken(OSError):
    """An address cannot be listened on; the message names it and says what to do."""


async def serve(settings: Settings, on_ready: Callable[[Endpoints], None]) -> None:
    """Run a broker until SIGTERM or SIGINT.

    Calls `on_ready` once it takes requests. Raises PortTaken where an address cannot be had,
    and TaskQueueError where the storage cannot be opened.
    """
    _allow_many_files()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop.set)
    async with running(settings) as endpoints:
        on_ready(endpoints)
        await stop.wait()
        log.info("stopping")


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Endpoints]:
    """A broker that runs for the length of the block."""
    clock = SystemClock()
    storage = open_storage(Path(settings.data.folder))
    await storage.open()
    try:
        broker = Broker(storage, clock, settings.broker, Metrics(), settings.access)
        await broker.open()
        native = RespDoor(broker, settings.native)
        rest = RestDoor(broker, settings.http)
        try:
            endpoints = Endpoints(
                http=await _listen(rest, parse_address(settings.http.listen)),
                native=await _listen(native, parse_address(settings.native.listen)),
            )
            async with asyncio.TaskGroup() as parts:
                chores = [
                    parts.create_task(broker.upkeep.run()),
                    parts.create_task(broker.access.run()),
                ]
                try:
                    yield endpoints
                finally:
                    for chore in chores:
                        chore.cancel()
        finally:
            # Waiting claims and readers are answered first; then the doors can close.
            await broker.close()
            await asyncio.gather(native.close(), rest.close())
    finally:
        await storage.close()


def _allow_many_files() -> None:
    """Take as many file descriptors as the system lets us: each client needs one."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _listen(door: RespDoor | RestDoor, address: Address) -> Address:
    try:
        await door.start(address.host, address.port)
    except OSError as error:
        raise PortTaken(
            f"cannot listen on {address}: {error.strerror or error}; "
            "stop what listens there or choose another address"
        ) from error
    return Address(address.host, door.port)
