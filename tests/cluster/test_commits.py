"""What callers are told when the database or the way to it fails around a commit."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import asyncpg
import pytest

from taskqueue.core.clock import ManualClock
from taskqueue.core.commands import Claim, Command, Complete, Submit
from taskqueue.core.errors import BrokerUnavailable, OutcomeUnknown
from taskqueue.core.task import Status
from taskqueue.storage.postgres.connections import database_at
from taskqueue.storage.postgres.engine import PostgresStorage
from tests.support.door import PATIENCE
from tests.support.pg_proxy import COMMITS, Act, Link, PgProxy, a_pg_proxy, cut, pass_by, silence
from tests.support.postgres import PostgresServer, a_database, a_server
from tests.support.storage import Queue

RELEASE: Final = "16"
LONG: Final = 3 * PATIENCE

Told = Literal["done", "not done", "unknown"]


class Site:
    """A queue whose storage reaches its database through a proxy."""

    def __init__(self, server: PostgresServer, dsn: str, proxy: PgProxy) -> None:
        self.server = server
        self.dsn = dsn
        self.proxy = proxy
        self.queue = Queue(PostgresStorage(database_at(proxy.dsn(dsn))), ManualClock())

    @property
    def storage(self) -> PostgresStorage:
        storage = self.queue.storage
        assert isinstance(storage, PostgresStorage)
        return storage

    async def tell(self, *commands: Command) -> Told:
        """What the callers of one transaction are told."""
        try:
            await self.queue.apply(*commands)
        except OutcomeUnknown:
            return "unknown"
        except BrokerUnavailable:
            return "not done"
        return "done"

    async def ask(self, statement: str, *bindings: Any) -> list[Any]:
        """The rows of a statement, by no way of the storage's."""
        connection = await asyncpg.connect(self.dsn)
        try:
            return [tuple(row) for row in await connection.fetch(statement, *bindings)]
        finally:
            await connection.close()

    async def is_there(self, submit: Submit) -> bool:
        """Whether a task is in the database."""
        return bool(
            await self.ask("SELECT FROM taskqueue.tasks WHERE id = $1", submit.task.id)
        )

    async def insist(self, *commands: Command) -> None:
        """Repeat until it is done, as clients do."""
        async with asyncio.timeout(LONG):
            while await self.tell(*commands) != "done":
                await asyncio.sleep(0.05)

    async def until(self, is_so: Callable[[], Awaitable[object]]) -> None:
        async with asyncio.timeout(LONG):
            while not await is_so():
                await asyncio.sleep(0.02)

    async def terminate_commits(self, *_: object) -> None:
        """End the server's process behind the connection for commits."""
        await self.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = current_database() AND application_name = '{COMMITS}'"
        )


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101, S103 - the server is another user
        with a_server(RELEASE, Path(folder) / "pg", "fsync = off") as server:
            yield server


@pytest.fixture
async def site(server: PostgresServer) -> AsyncIterator[Site]:
    async with a_site(server) as site:
        yield site
        assert await site.storage.audit() == []


@asynccontextmanager
async def another(site: Site) -> AsyncIterator[Queue]:
    """Another broker's storage on the same database."""
    storage = PostgresStorage(database_at(site.dsn))
    await storage.open()
    try:
        yield Queue(storage, site.queue.clock)
    finally:
        await storage.close()


@asynccontextmanager
async def a_site(server: PostgresServer) -> AsyncIterator[Site]:
    async with a_database(server) as dsn, a_pg_proxy(server.port) as proxy:
        site = Site(server, dsn, proxy)
        await site.storage.open()
        try:
            yield site
        finally:
            await site.storage.close()


COMMIT: Final = "COMMIT\0"
"""A whole statement; `BEGIN … READ COMMITTED` has the word too."""


async def test_a_connection_cut_before_a_commit_changes_nothing(site: Site) -> None:
    submit = site.queue.a_submit()
    site.proxy.trap(COMMIT, asked=cut)
    assert await site.tell(submit) == "not done"
    assert not await site.is_there(submit)
    assert await site.tell(submit, site.queue.a_submit()) == "done"


async def test_a_commit_whose_answer_is_lost_is_looked_up(site: Site) -> None:
    submit = site.queue.a_submit()
    site.proxy.trap(COMMIT, answered=cut)
    assert await site.tell(submit) == "done"
    assert await site.is_there(submit)
    assert await site.tell(submit, site.queue.a_submit()) == "done"


async def test_a_commit_lost_on_its_way_is_looked_up(site: Site) -> None:
    async def lose(link: Link) -> None:
        await silence(link)
        link.cut()

    submit = site.queue.a_submit()
    site.proxy.trap(COMMIT, asked=lose)
    assert await site.tell(submit) == "not done"
    assert not await site.is_there(submit)
    assert await site.tell(submit) == "done"


@pytest.mark.parametrize("word", ["BEGIN", "INSERT INTO taskqueue.tasks", "taskqueue.batches"])
@pytest.mark.parametrize("moment", ["asked", "answered"])
async def test_a_connection_cut_inside_a_transaction_changes_nothing(
    site: Site, word: str, moment: str
) -> None:
    submit = site.queue.a_submit()
    acts: dict[str, Act] = {moment: cut}
    site.proxy.trap(word, asked=acts.get("asked"), answered=acts.get("answered"))
    assert await site.tell(submit) == "not done"
    assert not await site.is_there(submit)
    assert await site.tell(submit) == "done"


@pytest.mark.parametrize("moment", ["asked", "answered"])
async def test_a_connection_cut_while_nothing_changes_is_survived(site: Site, moment: str) -> None:
    """A claim that finds nothing is rolled back."""
    acts: dict[str, Act] = {moment: cut}
    site.proxy.trap("ROLLBACK", asked=acts.get("asked"), answered=acts.get("answered"))
    assert await site.tell(Claim("w", ("work",), 1)) in ("done", "not done")
    assert await site.tell(site.queue.a_submit()) == "done"


async def test_a_connection_cut_while_a_conflict_is_taken_back_is_survived(site: Site) -> None:
    """Another broker has taken the id meanwhile; then the connection is lost as well."""
    submit = site.queue.a_submit()

    async def take_the_id(_link: Link) -> None:
        async with another(site) as queue:
            await queue.do(submit)

    site.proxy.trap("INSERT INTO taskqueue.tasks", asked=take_the_id)
    site.proxy.trap("ROLLBACK", asked=cut)
    assert await site.tell(submit) == "not done"
    assert await site.tell(submit) == "done"


async def test_what_nobody_could_look_up_is_settled_later(site: Site) -> None:
    submit, later = site.queue.a_submit(), site.queue.a_submit()

    async def vanish(link: Link) -> None:
        site.proxy.refuses = True
        await cut(link)

    site.proxy.trap(COMMIT, answered=vanish)
    assert await site.tell(submit) == "unknown"
    assert await site.tell(later) == "not done"
    site.proxy.refuses = False
    await site.insist(later)
    assert await site.is_there(submit)
    assert await site.tell(submit) == "done"


@pytest.mark.parametrize("is_committed", [False, True])
async def test_a_look_up_whose_answer_is_lost_settles_it_the_next_time(
    site: Site, is_committed: bool
) -> None:
    submit = site.queue.a_submit()
    site.proxy.trap(COMMIT, **({"answered": cut} if is_committed else {"asked": cut}))
    site.proxy.trap("taskqueue.batches", asked=pass_by)  # the transaction's own row
    site.proxy.trap("taskqueue.batches", answered=cut)
    assert await site.tell(submit) == "unknown"
    assert await site.is_there(submit) is is_committed
    assert await site.tell(submit) == "done"


async def test_a_look_up_for_a_commit_of_nothing_blocks_none_of_the_next(site: Site) -> None:
    """After a failure a batch that changes nothing is committed too, to see that one can."""
    site.proxy.trap("BEGIN", asked=cut)
    assert await site.tell(site.queue.a_submit()) == "not done"
    site.proxy.trap(COMMIT, asked=cut)
    site.proxy.trap("taskqueue.batches", answered=cut)
    assert await site.tell(Claim("w", ("work",), 1)) != "done"
    await site.insist(site.queue.a_submit())


@pytest.mark.parametrize("word", ["BEGIN", "INSERT INTO taskqueue.payloads", COMMIT])
async def test_a_terminated_backend_changes_nothing(site: Site, word: str) -> None:
    submit = site.queue.a_submit()
    site.proxy.trap(word, asked=site.terminate_commits)
    assert await site.tell(submit) == "not done"
    assert not await site.is_there(submit)
    assert await site.tell(submit) == "done"


async def test_a_backend_terminated_after_its_commit_leaves_no_doubt(site: Site) -> None:
    submit = site.queue.a_submit()

    async def terminate(link: Link) -> None:
        await site.terminate_commits()
        await cut(link)

    site.proxy.trap(COMMIT, answered=terminate)
    assert await site.tell(submit) == "done"
    assert await site.is_there(submit)
