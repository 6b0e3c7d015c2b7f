"""Reads while no primary answers: what a server that takes no writes may say, and for how long."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from taskqueue.core.clock import ManualClock
from taskqueue.core.errors import BrokerUnavailable
from taskqueue.core.ids import new_task_id
from taskqueue.core.task import Status
from taskqueue.storage.postgres.connections import database_at
from taskqueue.storage.postgres.engine import PostgresStorage
from tests.support.postgres import a_database, shared_server
from tests.support.storage import Queue


class Place:
    """A queue on a database that is told to take no writes from new connections, or to take them.

    To those it is as a standby is; what is connected goes on writing.
    """

    def __init__(self, queue: Queue, dsn: str) -> None:
        self.queue = queue
        self._dsn = dsn

    async def takes_writes(self, does: bool) -> None:
        """Let the readers that come now find a primary, or none."""
        connection = await asyncpg.connect(self._dsn)
        await connection.execute("SET default_transaction_read_only = off")
        name = self._dsn.rpartition("/")[2]
        state = "off" if does else "on"
        await connection.execute(
            f"ALTER DATABASE {name} SET default_transaction_read_only = {state}"
        )
        await connection.close()


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    with shared_server("16") as server:
        async with a_database(server) as dsn:
            storage = PostgresStorage(database_at(dsn))
            await storage.open()
            place = Place(Queue(storage, ManualClock()), dsn)
            try:
                yield place
            finally:
                await place.takes_writes(True)
                await storage.close()


async def test_a_standby_may_tell_of_tasks_but_not_that_there_are_none(place: Place) -> None:
    storage = place.queue.storage
    assert isinstance(storage, PostgresStorage)
    task = await place.queue.submit(payload=b"p")
    await place.takes_writes(False)
    await storage._reader.close()  # what it had open was open to the primary
    assert (await place.queue.detail(task.id)).task.status is Status.PENDING
    assert await storage.payload(task.id) == b"p"
    assert await storage.look([task.id]) == [task]
    unknown = new_task_id()
    for asking in (storage.get(unknown), storage.payload(unknown), storage.look([unknown])):
        with pytest.raises(BrokerUnavailable, match="standby"):
            await asking


async def test_who_has_written_reads_from_the_primary_at_once(place: Place) -> None:
    storage = place.queue.storage
    assert isinstance(storage, PostgresStorage)
    await place.takes_writes(False)
    await storage._reader.close()
    with pytest.raises(BrokerUnavailable, match="standby"):
        await storage.get(new_task_id())
    await place.takes_writes(True)
    await place.queue.submit()
    assert await storage.get(new_task_id()) is None
