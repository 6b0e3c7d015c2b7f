"""Several broker processes on one database, and clients of each."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Final

from taskqueue.client.aio import AsyncClient
from taskqueue.storage.postgres.connections import database_at
from taskqueue.storage.postgres.engine import PostgresStorage
from taskqueue.wire.cluster import ClusterReply
from tests.support.broker import BrokerProcess
from tests.support.door import PATIENCE
from tests.support.resp import RespClient

LEASE_SECONDS: Final = 2

SETTINGS: Final = """
[broker]
lease_seconds = {lease_seconds}
[access]
rate_limit = 0
"""


class Crew:
    """Brokers that share a database."""

    def __init__(self, brokers: Sequence[BrokerProcess], clients: AsyncExitStack) -> None:
        self.brokers = list(brokers)
        self._clients = clients

    async def client(self, broker: BrokerProcess) -> AsyncClient:
        """A producer at a broker."""
        return await self._clients.enter_async_context(AsyncClient(broker.native))

    async def worker(self, broker: BrokerProcess) -> RespClient:
        """A connection that says a worker's words."""
        host, _, port = broker.native.rpartition(":")
        client = RespClient(*await asyncio.open_connection(host, int(port)))
        self._clients.callback(client.hang_up)
        return client

    async def view(self, broker: BrokerProcess) -> ClusterReply:
        """The cluster as a broker sees it."""
        return await (await self.client(broker)).cluster()

    async def leader(self, among: Sequence[BrokerProcess]) -> BrokerProcess:
        """The one that leads, once all of these agree on it."""
        async with asyncio.timeout(PATIENCE):
            while True:
                views = [await self.view(broker) for broker in among]
                led = {view.leader.address for view in views if view.leader is not None}
                leaders = [broker for broker in among if broker.native in led]
                if len(leaders) == len(led) == 1 and all(view.leader for view in views):
                    return leaders[0]
                await asyncio.sleep(0.05)

    async def known_to_all(self) -> None:
        """Return once each broker knows of all others."""
        names = {broker.native for broker in self.brokers}

        async def is_known() -> bool:
            views = [await self.view(broker) for broker in self.brokers]
            return all({one.address for one in view.brokers} >= names for view in views)

        await until(is_known)


@asynccontextmanager
async def a_crew(
    folder: Path, dsn: str, number: int, lease_seconds: int = LEASE_SECONDS
) -> AsyncIterator[Crew]:
    """So many brokers on a database."""
    settings = folder / "tq.toml"
    settings.write_text(SETTINGS.format(lease_seconds=lease_seconds))
    flags = ("--engine", dsn, "--config", str(settings))
    brokers = [BrokerProcess(folder / f"broker{place}", *flags) for place in range(number)]
    async with AsyncExitStack() as clients:
        try:
            await asyncio.gather(*(asyncio.to_thread(broker.start) for broker in brokers))
            crew = Crew(brokers, clients)
            await crew.known_to_all()
            yield crew
        finally:
            await clients.aclose()
            await asyncio.gather(*(asyncio.to_thread(broker.stop) for broker in brokers))


@asynccontextmanager
async def opened(dsn: str) -> AsyncIterator[PostgresStorage]:
    storage = PostgresStorage(database_at(dsn))
    await storage.open()
    try:
        yield storage
    finally:
        await storage.close()


async def until(is_so: Callable[[], Awaitable[object]]) -> None:
    """Wait for something that tells nobody when it happens."""
    async with asyncio.timeout(PATIENCE):
        while not await is_so():  # noqa: ASYNC110  there is no event to wait for
            await asyncio.sleep(0.02)
