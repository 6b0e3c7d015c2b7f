"""Keeps a client connected: one pipelined connection for all, others for commands that block."""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from taskqueue.client.address import BrokerAddress
from taskqueue.client.connection import Connection
from taskqueue.core.errors import BrokerUnavailable, TaskQueueError

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0
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

    async def shared(self) -> Connection:
        """The pipelined connection, opened anew if need be. Raises BrokerUnavailable."""
        if self._shared is not None and self._shared.is_open:
            return self._shared
        async with self._connecting:
            if self._shared is None or not self._shared.is_open:
                self._shared = await self.open()
        return self._shared

    @asynccontextmanager
    async def blocking(self) -> AsyncGenerator[Connection, None]:
        """A connection for one command that may block, kept for the next one if it ends well."""
        async with self._blocking_slots:
            connection = self._idle.pop() if self._idle else await self.open()
            try:
                yield connection
            except TaskQueueError:
                self._keep(connection)
                raise
            except BaseException:
                connection.close()  # its answer may still come, and must not be the next one's
                raise
            self._keep(connection)

    async def open(self) -> Connection:
        """A new connection. Raises BrokerUnavailable."""
        try:
            return await Connection.connect(self.address)
        except OSError as error:
            reason = error.strerror or str(error) or type(error).__name__
            raise BrokerUnavailable(f"no broker answers at {self.address}: {reason}") from error

    def close(self) -> None:
        """Hang up everywhere."""
        if self._shared is not None:
            self._shared.close()
        while self._idle:
            self._idle.pop().close()

    def _keep(self, connection: Connection) -> None:
        if connection.is_open:
            self._idle.append(connection)
