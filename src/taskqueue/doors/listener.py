"""Listens for HTTP on an address and takes the door down again without hurry or hang.

`uvicorn.Server` is not used: it ends the process when a port is taken, wants the signals for
itself, and polls.
"""

import asyncio
from contextlib import suppress
from email.utils import formatdate
from typing import TYPE_CHECKING, Final

from starlette.types import ASGIApp
from uvicorn import Config

from taskqueue.core.clock import SECOND, Clock
from taskqueue.doors.gate import Gate
from taskqueue.doors.http import Describe, DoorState, LimitedHttp, RestSettings

if TYPE_CHECKING:  # what it brings along takes time to import, and many brokers have no use for it
    from taskqueue.doors.tls import Tls

CLOSE_SECONDS: Final = 3.0
"""How long requests may take to finish once the door closes."""


class HttpListener:
    """Listens on an address and serves an ASGI app there."""

    def __init__(
        self,
        app: ASGIApp,
        settings: RestSettings,
        clock: Clock,
        describe: Describe = lambda _address: [],
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._describe = describe
        self._state = DoorState()
        self._config = Config(
            app,
            interface="asgi3",
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=settings.keep_alive_seconds,
        )
        self._server: asyncio.Server | None = None
        self._gate: Gate | None = None
        self._deserted = asyncio.Event()
        self._date_timer: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port listened on."""
        assert self._server is not None  # noqa: S101  a fault of the caller
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def connection_count(self) -> int:
        """How many clients are connected."""
        return len(self._state.connections)

    async def start(self, host: str, port: int, tls: "Tls | None" = None) -> None:
        """Listen; port 0 takes a free one. Raises OSError where the address cannot be had."""
        loop = asyncio.get_running_loop()
        if tls is not None:
            self._gate = Gate(self._connection, lambda: tls.http)
        protocol = self._gate or self._connection
        self._server = await loop.create_server(protocol, host, port, backlog=2048)
        self._set_date()

    async def close(self) -> None:
        """Take no new requests, finish those under way within CLOSE_SECONDS, cut off the rest."""
        if self._server is None:
            return
        self._server.close()
        if self._gate is not None:
            self._gate.close()
        if self._date_timer is not None:
            self._date_timer.cancel()
        for connection in list(self._state.connections):
            connection.shutdown()
        await self._wait_until_deserted()
        for connection in list(self._state.connections):
            connection.transport.abort()
        if late := set(self._state.tasks):
            for task in late:
                task.cancel()
            await asyncio.wait(late)
        await self._server.wait_closed()

    async def _wait_until_deserted(self) -> None:
        if self._state.connections:
            self._deserted.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._deserted.wait(), CLOSE_SECONDS)

    def _connection(self) -> LimitedHttp:
        return LimitedHttp(
            self._config,
            self._state,
            self._settings,
            self._clock,
            self._connection_lost,
            self._describe,
        )

    def _connection_lost(self) -> None:
        if not self._state.connections:
            self._deserted.set()

    def _set_date(self) -> None:
        date = formatdate(self._clock.wall() / SECOND, usegmt=True)
        self._state.default_headers = [(b"date", date.encode())]
        self._date_timer = asyncio.get_running_loop().call_later(1.0, self._set_date)
