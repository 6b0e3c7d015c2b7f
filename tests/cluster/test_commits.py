"""What callers are told when the database or the way to it fails around a commit."""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal

import asyncpg
import pytest

from taskqueue.core.clock import SECOND, ManualClock
from taskqueue.core.commands import Claim, Command, Complete, Fail, Submit
from taskqueue.core.errors import BrokerUnavailable, OutcomeUnknown
from taskqueue.core.repeats import Repeat
from taskqueue.core.task import Status
from taskqueue.storage.postgres.connections import Connection, database_at
from taskqueue.storage.postgres.engine import PostgresStorage
from tests.support.door import PATIENCE
from tests.support.pg_proxy import COMMITS, Act, Link, PgProxy, a_pg_proxy, cut, pass_by, silence
from tests.support.postgres import PostgresServer, a_database, a_server
from tests.support.storage import Queue

RELEASE: Final = "16"
LONG: Final = 3 * PATIENCE

WAITING: Final = f"""
    FROM pg_stat_activity WHERE datname = current_database()
    AND application_name = '{COMMITS}' AND wait_event = 'SyncRep'"""

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
        return bool(await self.ask("SELECT FROM taskqueue.tasks WHERE id = $1", submit.task.id))

    async def insist(self, *commands: Command) -> None:
        """Repeat until it is done, as clients do."""
        async with asyncio.timeout(LONG):
            while await self.tell(*commands) != "done":  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def until(self, is_so: Callable[[], Awaitable[object]]) -> None:
        async with asyncio.timeout(LONG):
            while not await is_so():  # noqa: ASYNC110  there is no event to wait for
                await asyncio.sleep(0.02)

    async def waits_for_standby(self) -> bool:
        """Whether a commit waits for a standby."""
        return await self.ask(f"SELECT count(*) {WAITING}") == [(1,)]

    async def terminate_commits(self, *_: object) -> None:
        """End the server's process behind the connection for commits."""
        await self.ask(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            f"WHERE datname = current_database() AND application_name = '{COMMITS}'"
        )


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101 - the server is another user
        with a_server(RELEASE, Path(folder) / "pg", "fsync = off") as server:
            yield server


@pytest.fixture
async def site(server: PostgresServer) -> AsyncIterator[Site]:
    async with a_site(server) as site:
        yield site
        assert await site.storage.audit() == []


@pytest.fixture
async def lonely(server: PostgresServer) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Makes commits wait for a standby that does not exist, until the end of the test."""
    yield partial(demand_standby, server, "nobody")
    await demand_standby(server, "")


async def demand_standby(server: PostgresServer, names: str) -> None:
    """Let commits wait for standbys of these names, or for none; return when they do."""
    connection = await asyncpg.connect(server.dsn())
    await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = '{names}'")
    await connection.execute("SELECT pg_reload_conf()")
    async with asyncio.timeout(PATIENCE):
        while await _waits_for_standby(server, connection) is not bool(names):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await connection.close()


async def _waits_for_standby(server: PostgresServer, observer: Connection) -> bool:
    """Whether a commit does."""
    connection = await asyncpg.connect(server.dsn())
    pid = await connection.fetchval("SELECT pg_backend_pid()")
    committing = asyncio.create_task(
        connection.execute("SELECT pg_logical_emit_message(true, 'test', '')")
    )
    waits = False
    while not committing.done() and not waits:
        waits = await observer.fetchval(
            "SELECT wait_event IS NOT DISTINCT FROM 'SyncRep' FROM pg_stat_activity WHERE pid = $1",
            pid,
        )
    connection.terminate()
    await asyncio.gather(committing, return_exceptions=True)
    await observer.execute("SELECT pg_terminate_backend($1)", pid)
    return waits


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
    await site.queue.submit()  # so that neither waits for the other's new lane
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
    site.proxy.trap(
        COMMIT, asked=None if is_committed else cut, answered=cut if is_committed else None
    )
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


async def test_a_server_that_crashes_under_load_loses_nothing_it_confirmed(site: Site) -> None:
    told: dict[str, Told] = {}
    submits: list[Submit] = []
    is_over = asyncio.Event()

    async def load() -> None:
        while not is_over.is_set():
            batch = [site.queue.a_submit() for _ in range(20)]
            submits.extend(batch)
            answer = await site.tell(*batch)
            told.update((one.task.id, answer) for one in batch)
            await asyncio.sleep(0)

    loading = asyncio.create_task(load())
    for _ in range(3):
        known = len(told)
        async with asyncio.timeout(LONG):
            while "done" not in list(told.values())[known:]:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        await asyncio.to_thread(site.server.stop, "immediate")
        await asyncio.to_thread(site.server.start)
    is_over.set()
    await loading
    there = {str(row[0]) for row in await site.ask("SELECT id FROM taskqueue.tasks")}
    assert {one for one, answer in told.items() if answer == "done"} <= there
    assert not {one for one, answer in told.items() if answer == "not done"} & there
    for start in range(0, len(submits), 500):
        await site.insist(*submits[start : start + 500])
    assert await site.ask("SELECT count(*) FROM taskqueue.tasks") == [(len(submits),)]


async def test_a_network_silent_in_a_commit_keeps_callers_waiting_for_a_bounded_time(
    site: Site,
) -> None:
    submit, later = site.queue.a_submit(), site.queue.a_submit()
    site.proxy.trap(COMMIT, asked=silence)
    async with asyncio.timeout(PATIENCE):
        assert await site.tell(submit) == "not done"  # the server has given the connection up
    assert site.proxy.cancels == 0
    await site.insist(later)
    assert not await site.is_there(submit)
    assert await site.tell(submit) == "done"


async def test_a_commit_whose_answer_comes_late_was_done(site: Site) -> None:
    submit = site.queue.a_submit()
    may_answer = asyncio.Event()

    async def hold(_link: Link) -> None:
        await may_answer.wait()

    trap = site.proxy.trap(COMMIT, answered=hold)
    assert await site.tell(submit) == "unknown"
    assert await site.tell(submit) == "not done"
    may_answer.set()
    await trap.was_answered.wait()
    await site.insist(submit, site.queue.a_submit())
    assert await site.ask("SELECT count(*) FROM taskqueue.tasks") == [(2,)]


async def test_the_words_of_holders_are_repeated_alike_after_a_lost_commit(site: Site) -> None:
    """Complete, fail and claim after each kind of loss: the first word counts, once."""
    running = [await site.queue.running() for _ in range(4)]
    for task, act in zip(running[:2], ("asked", "answered"), strict=True):
        complete = Complete(task.id, task.token, b"r")
        acts: dict[str, Act] = {act: cut}
        site.proxy.trap(COMMIT, asked=acts.get("asked"), answered=acts.get("answered"))
        assert await site.tell(complete) == ("not done" if act == "asked" else "done")
        assert (await site.queue.do(complete)).status is Status.COMPLETED
    for task, act in zip(running[2:], ("asked", "answered"), strict=True):
        fail = Fail(task.id, task.token, "E", "m")
        acts = {act: cut}
        site.proxy.trap(COMMIT, asked=acts.get("asked"), answered=acts.get("answered"))
        assert await site.tell(fail) == ("not done" if act == "asked" else "done")
        assert (await site.queue.do(fail)).retry_count == 1
        assert len((await site.queue.detail(task.id)).failures) == 1


async def test_a_repeated_claim_gets_what_a_lost_commit_gave_it(site: Site) -> None:
    tasks = [await site.queue.submit() for _ in range(3)]
    claim = Claim("w", ("work",), 2, Repeat("c1", site.queue.clock.wall() + 60 * SECOND))

    async def vanish(link: Link) -> None:
        site.proxy.refuses = True
        await cut(link)

    site.proxy.trap(COMMIT, answered=vanish)
    assert await site.tell(claim) == "unknown"
    site.proxy.refuses = False
    await site.insist(site.queue.a_submit())
    claimed = await site.queue.do(claim)
    assert [(one.task.id, one.task.token) for one in claimed] == [(t.id, 1) for t in tasks[:2]]


async def _is_so(answer: bool) -> bool:
    return answer


async def test_writes_fail_fast_while_no_standby_confirms_them(
    site: Site, lonely: Callable[[], Awaitable[None]]
) -> None:
    task = await site.queue.submit()
    submit = site.queue.a_submit()
    await lonely()
    await site.until(lambda: _is_so(site.storage.cluster.complaint is not None))
    assert "1 synchronous standbys" in str(site.storage.cluster.complaint)
    async with asyncio.timeout(2):  # far less than the patience with a commit
        assert await site.tell(submit) == "not done"
        assert (await site.queue.detail(task.id)).task == task
        assert await site.storage.count(Status.PENDING, None) == 1
    assert site.storage.cluster.is_leader
    await demand_standby(site.server, "")
    await site.insist(submit)
    assert site.storage.cluster.complaint is None


async def test_commits_under_way_are_unknown_while_no_standby_confirms_them(
    site: Site, lonely: Callable[[], Awaitable[None]]
) -> None:
    submit, later = site.queue.a_submit(), site.queue.a_submit()
    site.proxy.trap(COMMIT, asked=lambda _link: lonely())
    async with asyncio.timeout(PATIENCE):
        assert await site.tell(submit) == "unknown"
    assert await site.tell(later) == "not done"
    assert site.storage.cluster.complaint is not None
    assert site.proxy.cancels == 0
    assert not await site.is_there(submit)  # to nobody, as long as it may be lost
    await demand_standby(site.server, "")
    await site.until(lambda: site.is_there(submit))
    await site.insist(submit, later)
    assert await site.ask("SELECT count(*) FROM taskqueue.tasks") == [(2,)]


@pytest.mark.parametrize("ended_by", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_a_wait_for_a_standby_that_an_operator_ends_is_no_confirmation(
    site: Site, lonely: Callable[[], Awaitable[None]], ended_by: str
) -> None:
    submit = site.queue.a_submit()
    site.proxy.trap(COMMIT, asked=lambda _link: lonely())
    telling = asyncio.create_task(site.tell(submit))
    await site.until(site.waits_for_standby)
    await site.ask(f"SELECT {ended_by}(pid) {WAITING}")
    assert await telling == "unknown"
    await demand_standby(site.server, "")
    await site.insist(submit, site.queue.a_submit())


async def test_a_commit_that_only_a_restarted_primary_has_is_not_confirmed(
    site: Site, lonely: Callable[[], Awaitable[None]]
) -> None:
    submit = site.queue.a_submit()
    site.proxy.trap(COMMIT, asked=lambda _link: lonely())
    telling = asyncio.create_task(site.tell(submit))
    await site.until(site.waits_for_standby)
    site.proxy.flows.clear()
    await asyncio.to_thread(site.server.stop, "immediate")
    await asyncio.to_thread(site.server.start)
    site.proxy.flows.set()
    assert await telling == "unknown"
    await demand_standby(site.server, "")
    await site.insist(submit, site.queue.a_submit())


async def test_closing_ends_no_wait_for_a_standby(
    server: PostgresServer, lonely: Callable[[], Awaitable[None]]
) -> None:
    async with a_database(server) as dsn, a_pg_proxy(server.port) as proxy:
        site = Site(server, dsn, proxy)
        await site.storage.open()
        submit = site.queue.a_submit()
        proxy.trap(COMMIT, asked=lambda _link: lonely())
        telling = asyncio.create_task(site.tell(submit))
        await site.until(site.waits_for_standby)
        await site.storage.close()
        assert await telling == "unknown"
        assert await site.waits_for_standby()
        assert not await site.is_there(submit)
        await demand_standby(site.server, "")
        await site.until(lambda: site.is_there(submit))


async def test_a_caller_that_gives_up_cancels_no_commit(site: Site) -> None:
    submit = site.queue.a_submit()
    may_answer = asyncio.Event()

    async def hold(_link: Link) -> None:
        await may_answer.wait()

    trap = site.proxy.trap(COMMIT, answered=hold)
    telling = asyncio.create_task(site.tell(submit))
    await trap.sprung.wait()
    telling.cancel()
    await asyncio.gather(telling, return_exceptions=True)
    may_answer.set()
    await trap.was_answered.wait()
    assert site.proxy.cancels == 0
    assert await site.is_there(submit)
    await site.insist(submit)
