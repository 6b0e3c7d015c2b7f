"""`tq doctor --audit`: a promise that is broken is named, and damage in what is stored."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import asyncpg
import pytest

from taskqueue.cli.doctor_audit import PROBES, Crew, promises_kept, tried
from taskqueue.cli.doctor_store import open_store, store_checks
from taskqueue.cli.findings import Finding
from taskqueue.client.address import broker_addresses
from taskqueue.client.connection import Connection
from taskqueue.core.clock import SystemClock
from taskqueue.core.errors import StorageRefused
from taskqueue.storage.sqlite.folder import DATABASE_NAME
from taskqueue.storage.sqlite.mark import FILE_NAME
from tests.planted import bugs
from tests.support.broker import BrokerProcess, a_broker, a_broker_process, submitted
from tests.support.postgres import a_database, shared_server
from tests.support.resp import a_resp_house


def test_the_folder_of_another_broker_is_not_taken_for_this_ones(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    async def both() -> list[Finding]:
        async with a_broker(tmp_path / "other"):
            pass
        store = await open_store("", tmp_path / "other")
        async with connections(broker.native) as (first, second):
            crew = Crew(first, second, store)
            name = "1 acknowledged means durable"
            finding = await tried(name, PROBES[name], crew)
            await crew.dismiss()
            return [finding]

    (finding,) = asyncio.run(both())
    assert finding.verdict == "fail"
    assert "is that where this broker keeps its tasks?" in finding.detail


async def test_a_database_under_brokers_is_audited(tmp_path: Path) -> None:
    with shared_server("16") as server:
        async with a_database(server) as dsn:
            with a_broker_process(tmp_path / "data", "--engine", dsn) as broker:
                store = await open_store(dsn, None)
                assert store is not None
                async with connections(broker.native) as (first, second):
                    found = [one async for one in promises_kept(first, second, store)]
                found += [one async for one in store_checks(store)]
                number, damaged = await store.damaged()
                assert (number > 10, damaged) == (True, [])
                database = await asyncpg.connect(dsn)
                await database.execute(r"UPDATE taskqueue.payloads SET data = '\x00'")
                await database.close()
                assert len((await store.damaged())[1]) > 10
                await store.close()
    failed = {one.check: one.detail for one in found if one.verdict == "fail"}
    # The server of the tests runs without fsync: a crash of the machine is not what they are about.
    assert failed.keys() == {"1 acknowledged means durable, as stored"}
    assert "fsync and full_page_writes off" in failed.popitem()[1]


@pytest.mark.parametrize(
    ("bug", "probes"),
    [
        (bugs.token_not_compared, ["3 at least once, one at a time"]),
        (bugs.token_not_raised, ["3 at least once, one at a time"]),
        (bugs.completion_not_repeatable, ["4 a repeated request is harmless"]),
        (bugs.id_used_for_another_task, ["4 a repeated request is harmless"]),
        (bugs.key_used_for_another_task, ["4 a repeated request is harmless"]),
        (bugs.repeated_claim_claims_more, ["4 a repeated request is harmless"]),
        (bugs.release_costs_a_retry, ["5 workers cannot leak tasks"]),
        (bugs.retry_not_counted, ["6 a poisoned task cannot loop for ever"]),
        (bugs.priority_ignored, ["claim order"]),
        (bugs.status_guard_dropped, ["cancel"]),
        (bugs.counters_drift_on_cancel, ["cancel", "7 counters equal the truth, by type"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_broken_promise_is_noticed(
    bug: bugs.Bug, probes: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bug(monkeypatch)
    async with (
        a_resp_house(tmp_path, clock=SystemClock()) as house,
        connections(f"127.0.0.1:{house.door.port}") as (first, second),
    ):
        crew = Crew(first, second, None)
        found = [await tried(name, PROBES[name], crew) for name in probes]
    assert found[-1].verdict == "fail", found


async def test_damage_in_a_folder_is_named(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as broker:
        task = await submitted(broker)
        assert await failures(tmp_path) == {}
    database = apsw.Connection(str(tmp_path / DATABASE_NAME))
    database.execute("UPDATE counters SET present = present + 1 WHERE task_type = 'work'")
    database.execute("UPDATE payloads SET data = x'00'")
    database.execute("UPDATE tasks SET ready = NULL")
    database.execute("UPDATE ledger SET commit_number = commit_number - 1")
    database.close()
    found = await failures(tmp_path)
    assert "counter of type 'work'" in found["7 counters equal the truth"]
    assert f"task {task.id} is pending, but its readiness is" in found["stored state"]
    assert f"the payload of task {task.id}" in found["10 damage is noticed"]
    assert "were acknowledged and are missing" in found["1 acknowledged means durable, as stored"]


async def test_a_folder_of_another_release_or_of_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageRefused, match="there is no"):
        await open_store("", tmp_path)
    async with a_broker(tmp_path):
        pass
    assert (tmp_path / FILE_NAME).exists()
    database = apsw.Connection(str(tmp_path / DATABASE_NAME))
    database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StorageRefused, match="schema 99"):
        await open_store("", tmp_path)


async def failures(folder: Path) -> dict[str, str]:
    """The checks of a folder that fail, and why."""
    store = await open_store("", folder)
    assert store is not None
    found = [finding async for finding in store_checks(store)]
    await store.close()
    return {one.check: one.detail for one in found if one.verdict == "fail"}


@contextlib.asynccontextmanager
async def connections(url: str) -> AsyncIterator[tuple[Connection, Connection]]:
    """Two connections to a broker."""
    (address,) = broker_addresses(url)
    both = await Connection.connect(address), await Connection.connect(address)
    try:
        yield both
    finally:
        for connection in both:
            connection.close()
