"""The clients of an app, made when they are first needed."""

import threading

from taskqueue.client.aio import AsyncClient
from taskqueue.client.sync import SyncClient


class Clients:
    """One asyncio client and one sync client on the same broker."""

    def __init__(self, url: str | None, api_key: str | None) -> None:
        self.url = url
        self.api_key = api_key
        self._aio: AsyncClient | None = None
        self._sync: SyncClient | None = None
        self._lock = threading.Lock()

    def aio(self) -> AsyncClient:
        """The client for coroutines."""
        if self._aio is None:
            self._aio = AsyncClient(self.url, api_key=self.api_key)
        return self._aio

    def sync(self) -> SyncClient:
        """The client for other code."""
        with self._lock:  # handlers in several threads may be the first to ask
            if self._sync is None:
                self._sync = SyncClient(self.url, api_key=self.api_key)
            return self._sync

    async def close(self) -> None:
        """Hang up."""
        if self._aio is not None:
            await self._aio.close()
        if self._sync is not None:
            self._sync.close()
        self._aio = self._sync = None
