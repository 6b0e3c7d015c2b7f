"""Keeps a client connected: one pipelined connection for all, others for commands that block."""

import asyncio
import random
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from taskqueue.client.address import BrokerAddress
from taskqueue.client.connection import Connection, ConnectionLost, in_words
from taskqueue.core.errors import BrokerUnavailable, TaskQueueError

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0
DISTRUST_SECONDS: Final = 60.0
"""The pause after a broker's certificate was refused: that does not mend itself in a moment."""

MOST_BLOCKING: Final = 100
"""Connections for blocking commands that one client opens at most."""


class Backoff:
    """How long to wait before the next try: twice as long each time, anywhere within that."""

    def __init__(self) -> None:
        self._ceiling = FIRST_PAUSE

    def next_pause(self) -> float:
        """Seconds until the next try. Full jitter, so that clients do not come back together."""
        pause = random.uniform(0, self._ceiling)  # noqa: S311  not a secret
        self._ceiling = min(LONGEST_PAUSE, self._ceiling * 2)
        return pause


class Link:
    """The connections of one client to one broker."""

    def __init__(self, address: BrokerAddress) -> None:
        self.address = address
        self._shared: Connection | None = None
        self._connecting: asyncio.Lock = asyncio.Lock()
        self._blocking_slots = asyncio.Semaphore(MOST_BLOCKING)
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._is_closed = False

    async def shared(self) -> Connection:
        """The pipelined connection, opened anew if need be. Raises BrokerUnavailable."""
        shared = self._shared
        if shared is None or not shared.is_open:
            async with self._connecting:
                if self._shared is None or not self._shared.is_open:
                    self._shared = await self.open()
                shared = self._shared
        await shared.wait_for_room()
        return shared

    @asynccontextmanager
    async def blocking(self) -> AsyncGenerator[Connection, None]:
        """A connection for one command that may block, kept for the next one if it ends well."""
        async with self._blocking_slots:
            connection = self._pop_idle() or await self.open()
            self._busy.add(connection)
            try:
                yield connection
            except TaskQueueError:
                self._keep(connection)
                raise
            except BaseException:
                connection.close()  # its answer may still come, and must not be the next one's
                raise
            else:
                self._keep(connection)
            finally:
                self._busy.discard(connection)

    async def open(self) -> Connection:
        """A new connection. Raises BrokerUnavailable."""
        try:
            return await Connection.connect(self.address)
        except OSError as error:
            is_distrusted = isinstance(error, ssl.SSLCertVerificationError)
            raise BrokerUnavailable(
                f"no broker answers at {self.address}: {in_words(error)}{self._hint(error)}",
                retry_after=DISTRUST_SECONDS if is_distrusted else None,
            ) from error

    def close(self) -> None:
        """Hang up everywhere."""
        self._is_closed = True
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()
        if self._shared is not None:
            self._shared.close()

    def _hint(self, error: OSError) -> str:
        """What might be amiss where the other end just hangs up."""
        if self.address.tls is None and isinstance(error, ConnectionLost):
            return "; if that port is for TLS, write tqs://"
        if self.address.tls is not None and isinstance(error, ConnectionResetError):
            return "; if that port is not for TLS, write tq://"
        return ""

    def _pop_idle(self) -> Connection | None:
        # A broker that has been restarted has closed them all.
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    def _keep(self, connection: Connection) -> None:
        if connection.is_open and not self._is_closed:
            self._idle.append(connection)
