"""The outbox on real PostgreSQL: with the transaction or not at all, and each task once."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest

from taskqueue import App, InvalidRequest, SyncClient, Task, TaskNotFound
from taskqueue.outbox import (
    Relay,
    create_table,
    create_table_sync,
    submit,
    submit_sync,
    submit_task,
    submit_task_sync,
)
from taskqueue.testing import LocalBroker
from taskqueue.worker.middleware import SubmitNext
from tests.support.broker import BrokerProcess, a_broker_process
from tests.support.postgres import PostgresServer, a_database, shared_server

PATIENCE = 60.0
app = App("127.0.0.1:1")


@app.task(priority=7, timeout=30, retries=5)
async def double(number: int) -> int:
    return 2 * number


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with shared_server("16") as server:
        yield server


@pytest.fixture
async def dsn(server: PostgresServer) -> AsyncIterator[str]:
    """A database with an outbox."""
    async with a_database(server) as dsn:
        connection = await asyncpg.connect(dsn)
        await create_table(connection)
        yield dsn
        await connection.execute("DROP TABLE taskqueue_outbox")
        await connection.execute("DROP FUNCTION IF EXISTS taskqueue_outbox_notify")
        await connection.close()


@pytest.fixture(scope="module")
def broker_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


@pytest.fixture
def broker(broker_process: LocalBroker) -> LocalBroker:
    """A broker; each test tells its tasks by their type."""
    return broker_process


async def rows(dsn: str) -> list[Any]:
    connection = await asyncpg.connect(dsn)
    found = await connection.fetch("SELECT * FROM taskqueue_outbox ORDER BY seq")
    await connection.close()
    return list(found)


async def until(is_so: Callable[[], Any]) -> None:
    """Wait for something that is on its way."""
    async with asyncio.timeout(PATIENCE):
        while True:
            one = is_so()
            if await one if asyncio.iscoroutine(one) else one:
                return
            await asyncio.sleep(0.02)


async def until_empty(dsn: str) -> None:
    async def is_empty() -> bool:
        return not await rows(dsn)

    await until(is_empty)


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    """A broker that a test may stop."""
    with a_broker_process(tmp_path / "data", "--rate-limit", "0") as process:
        yield process


@contextlib.asynccontextmanager
async def relaying(dsn: str, url: str, number: int = 1, **options: Any) -> AsyncIterator[None]:
    relays = [Relay(dsn, url, api_key="", **options) for _ in range(number)]
    running = [asyncio.create_task(relay.run()) for relay in relays]
    yield
    for relay in relays:
        relay.stop()
    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*running)


def numbers(broker: LocalBroker | BrokerProcess, task_type: str) -> list[str]:
    """The ids of all tasks of a type, oldest first."""
    url = broker.url if isinstance(broker, LocalBroker) else broker.native
    with SyncClient(url, api_key="") as client:
        page = client.list_tasks(task_type=task_type, limit=1000)
        assert page.total == len(page.tasks)
        return [task.task_id for task in page.tasks[::-1]]


async def test_a_submit_is_part_of_the_transaction(dsn: str, broker: LocalBroker) -> None:
    connection = await asyncpg.connect(dsn)
    transaction = connection.transaction()
    await transaction.start()
    await submit(connection, double, 1)
    await transaction.rollback()
    async with connection.transaction():
        handle = await submit(connection, double, 21)
        assert await rows(dsn) == []
    await connection.close()
    async with broker.working(app):
        with pytest.raises(TaskNotFound):
            await handle.status()
        async with relaying(dsn, broker.url):
            await until_empty(dsn)
        assert await handle.result(timeout=PATIENCE) == 42
        status = await handle.status()
    assert (status.priority, status.timeout_seconds, status.max_retries) == (7, 30, 5)


async def test_psycopg_can_do_the_same(dsn: str, broker: LocalBroker) -> None:
    when = datetime(2130, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        await create_table(connection, notify=True)
        handle = await submit(connection, double, 4)
        raw = await submit_task(connection, Task("psycopg", b"\x00\xff", schedule_at=when))
    with psycopg.connect(dsn) as sync_connection:
        create_table_sync(sync_connection, notify=True)
        other = submit_sync(sync_connection, double, 5)
        submit_task_sync(sync_connection, Task("psycopg", b"", delay=3600))
        sync_connection.rollback()
        other = submit_sync(sync_connection, double, 6)
    async with relaying(dsn, broker.url):
        await until_empty(dsn)
    async with broker.working(app):
        assert await handle.result(timeout=PATIENCE) == 8
        assert await other.result(timeout=PATIENCE) == 12
    assert numbers(broker, "psycopg") == [raw]
    assert broker.client.get_status(raw).schedule_at == when


async def test_times_options_and_middleware_are_kept(dsn: str, broker: LocalBroker) -> None:
    mine = App("127.0.0.1:1")

    @mine.submit_middleware
    async def raise_priority(task: Task, call_next: SubmitNext) -> str:
        return await call_next(task.with_priority(99))

    @mine.task(name="outbox.late")
    def late() -> None: ...

    before = datetime.now(UTC)
    connection = await asyncpg.connect(dsn)
    first = await submit(connection, late.options(delay=600))
    await connection.close()
    with psycopg.connect(dsn) as sync_connection:
        second = submit_sync(sync_connection, late)
    async with relaying(dsn, broker.url):
        await until_empty(dsn)
    assert numbers(broker, "outbox.late") == [first.task_id, second.task_id]
    status = broker.client.get_status(first.task_id)
    assert timedelta(seconds=590) < status.schedule_at - before < timedelta(seconds=660)
    assert status.priority == broker.client.get_status(second.task_id).priority == 99


async def test_what_a_client_refuses_is_refused_in_the_transaction(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    for task in (Task("x", b"", priority=256), Task("x", b"").with_idempotency_key("key")):
        with pytest.raises(InvalidRequest):
            await submit_task(connection, task)
    await connection.close()
    assert await rows(dsn) == []


async def test_one_relay_keeps_the_order(dsn: str, broker: LocalBroker) -> None:
    connection = await asyncpg.connect(dsn)
    ids = [await submit_task(connection, Task("ordered", b"%d" % n)) for n in range(230)]
    await connection.close()
    async with relaying(dsn, broker.url, batch=50):
        await until_empty(dsn)
    assert numbers(broker, "ordered") == ids


async def test_several_relays_send_each_task_once(dsn: str, broker: LocalBroker) -> None:
    connection = await asyncpg.connect(dsn)
    async with relaying(dsn, broker.url, number=4, batch=7, poll_seconds=0.01):
        async with connection.transaction():
            ids = [await submit_task(connection, Task("shared", b"")) for _ in range(300)]
        await until_empty(dsn)
    await connection.close()
    assert sorted(numbers(broker, "shared")) == sorted(ids)


async def test_a_commit_wakes_the_relay(dsn: str, broker: LocalBroker) -> None:
    connection = await asyncpg.connect(dsn)
    await create_table(connection, notify=True)
    async with relaying(dsn, broker.url, poll_seconds=3600):
        for _ in range(3):
            await submit_task(connection, Task("notified", b""))
            await until_empty(dsn)
    await connection.close()
    assert len(numbers(broker, "notified")) == 3


async def test_a_refused_task_holds_up_no_other(dsn: str, broker: LocalBroker) -> None:
    taken = broker.client.submit_task(Task("refused", b"another payload"))
    connection = await asyncpg.connect(dsn)
    first = await submit_task(connection, Task("refused", b""))
    await submit_task(connection, Task("refused", b"", task_id=taken))
    last = await submit_task(connection, Task("refused", b""))
    await connection.close()
    async with relaying(dsn, broker.url):

        async def is_done() -> bool:
            return len(await rows(dsn)) == 1

        await until(is_done)
    [row] = await rows(dsn)
    assert row["refused"].startswith("IDEMPOTENCY_CONFLICT: ")
    assert numbers(broker, "refused") == [taken, first, last]


class RelayProcess:
    """`python -m taskqueue.outbox`, as a process that can be killed."""

    def __init__(self, dsn: str, url: str, log: Path) -> None:
        command = [sys.executable, "-m", "taskqueue.outbox", dsn, "--url", url]
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [*command, "--poll-seconds", "0.05"],
                stdout=out,
                stderr=out,
                env=os.environ | {"TQ_API_KEY": ""},
            )

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


Start = Callable[[str, str], RelayProcess]


@pytest.fixture
def start_relay(tmp_path: Path) -> Iterator[Start]:
    """Starts relays; those that are left are killed after the test."""
    started: list[RelayProcess] = []

    def start(dsn: str, url: str) -> RelayProcess:
        started.append(RelayProcess(dsn, url, tmp_path / "relay.log"))
        return started[-1]

    yield start
    for relay in started:
        relay.kill()


GATE = """
CREATE OR REPLACE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
CREATE OR REPLACE TRIGGER gate BEFORE DELETE ON taskqueue_outbox
    FOR EACH STATEMENT EXECUTE FUNCTION wait_at_gate()
"""
"""Holds a relay up between what it has sent and the end of its transaction."""


async def test_a_relay_killed_before_it_deletes_makes_no_second_task(
    dsn: str, broker: LocalBroker, start_relay: Start
) -> None:
    connection = await asyncpg.connect(dsn)
    await connection.execute(GATE)
    await connection.execute("SELECT pg_advisory_lock(1)")
    ids = [await submit_task(connection, Task("killed", b"%d" % n)) for n in range(20)]
    first = start_relay(dsn, broker.url)
    await until(lambda: len(numbers(broker, "killed")) == 20)
    first.kill()
    assert len(await rows(dsn)) == 20
    await connection.execute("SELECT pg_advisory_unlock(1)")
    second = start_relay(dsn, broker.url)
    await until_empty(dsn)
    assert second.stop() == 0
    assert numbers(broker, "killed") == ids
    await connection.execute("DROP TRIGGER gate ON taskqueue_outbox")
    await connection.close()


async def test_a_relay_killed_while_it_sends_loses_nothing(
    dsn: str, own_broker: BrokerProcess, start_relay: Start
) -> None:
    """The broker stands still and comes back with what it had been sent, or without it."""
    broker = own_broker
    os.kill(broker.pid, signal.SIGSTOP)
    connection = await asyncpg.connect(dsn)
    ids = [await submit_task(connection, Task("sending", b"")) for _ in range(20)]
    first = start_relay(dsn, broker.native)

    async def is_locked() -> bool:
        free = "SELECT count(*) FROM (SELECT 1 FROM taskqueue_outbox FOR UPDATE SKIP LOCKED) f"
        return bool(await connection.fetchval(free) == 0)

    await until(is_locked)
    first.kill()
    os.kill(broker.pid, signal.SIGCONT)
    second = start_relay(dsn, broker.native)
    await until_empty(dsn)
    assert second.stop() == 0
    assert sorted(numbers(broker, "sending")) == sorted(ids)
    await connection.close()


async def test_broker_and_database_may_be_away(dsn: str, own_broker: BrokerProcess) -> None:
    broker = own_broker
    connection = await asyncpg.connect(dsn)
    async with relaying(dsn, broker.native, poll_seconds=0.05):
        first = await submit_task(connection, Task("away", b""))
        await until_empty(dsn)
        broker.kill()
        second = await submit_task(connection, Task("away", b""))
        # Its connection breaks, while it waits for the broker or between two tries.
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'taskqueue outbox' AND datname = current_database()"
        )
        broker.start()
        await until_empty(dsn)
    assert numbers(broker, "away") == [first, second]
    await connection.close()


async def test_a_table_that_is_not_there_is_told(server: PostgresServer) -> None:
    async with a_database(server) as dsn:
        with pytest.raises(asyncpg.UndefinedTableError):
            await Relay(dsn, "127.0.0.1:1").run()
