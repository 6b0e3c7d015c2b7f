"""What a move brings: everything, once, in its order, so that the new broker goes on from there."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from taskqueue.core.clock import SECOND
from taskqueue.core.commands import Claim, Complete, Promote, Release, Submit
from taskqueue.core.errors import LeaseLost
from taskqueue.core.repeats import Repeat
from taskqueue.core.task import ClaimedTask, Status, Task, TaskDetail
from taskqueue.storage.move.move import move_tasks
from taskqueue.storage.port import Storage, TaskQuery
from taskqueue.storage.postgres import schema
from taskqueue.storage.postgres.connections import connect, database_at
from taskqueue.storage.postgres.engine import PostgresStorage
from taskqueue.storage.postgres.keeping import DAILY
from taskqueue.storage.sqlite.engine import SqliteStorage
from tests.move.filling import NUL, TYPES, Folder
from tests.support.storage import Queue

EVERY: Final = TaskQuery(limit=1_000_000)
YEAR: Final = 365 * 86_400


@asynccontextmanager
async def opened(storage: Storage) -> AsyncIterator[Storage]:
    """A storage in use."""
    await storage.open()
    try:
        yield storage
    finally:
        await storage.close()


async def moved(folder: Folder, dsn: str) -> PostgresStorage:
    """The database that has everything now, not open yet."""
    outcome = await move_tasks(folder.path, database_at(dsn), 0, lambda _what, _number: None)
    assert outcome.is_finished
    return PostgresStorage(database_at(dsn))


def as_it_was(detail: TaskDetail) -> TaskDetail:
    """Without what is the engine's own: the number, and the way to write a NUL."""
    return msgspec.convert(
        msgspec.json.decode(msgspec.json.encode(detail).replace(rb"\u0000", "␀".encode())),
        TaskDetail,
        strict=False,
    )


async def everything(storage: Storage) -> dict[str, Any]:
    """What the port tells of a storage."""
    tasks = await storage.find(EVERY)
    details = [await storage.get(task.id) for task in tasks]
    counts = await storage.counts()
    totals = await storage.totals(0)
    return {
        "order": [task.id for task in tasks],
        "details": {
            detail.task.id: as_it_was(
                msgspec.structs.replace(detail, task=msgspec.structs.replace(detail.task, seq=0))
            )
            for detail in details
            if detail is not None
        },
        "payloads": {task.id: await storage.payload(task.id) for task in tasks},
        "counts": {count.key: (count.present, count.entered) for count in counts},
        "recent": totals.recent,
        "oldest_ready": totals.oldest_ready,
        "keys": await storage.keys(),
        "audit_log": await storage.audit_log(2**60, 1_000_000),
        "holders": sorted(await storage.holders()),
        "next_due": await storage.next_due(),
    }


async def test_everything_is_there_and_in_its_order(folder: Folder, dsn: str) -> None:
    async with opened(SqliteStorage(folder.path)) as storage:
        before = await everything(storage)
        assert NUL in str(before["details"]) or "␀" in str(before["details"])
        counts = {status: await storage.count(status, None) for status in Status}
    assert all(counts.values()), f"the folder must have tasks in every status: {counts}"
    async with opened(await moved(folder, dsn)) as storage:
        after = await everything(storage)
        assert await storage.audit() == []
    for name, value in before.items():
        assert after[name] == value, name


async def claims(storage: Storage, folder: Folder) -> list[tuple[str, int]]:
    """Every task that can be had, in the order in which it is, with its token."""
    queue = Queue(storage, folder.clock)
    folder.clock.advance(YEAR)
    await queue.do(Promote(limit=1_000_000))
    found: list[ClaimedTask] = []
    while some := await queue.claim(*TYPES, worker_id="late", limit=200):
        found += some
    return [(one.task.id, one.task.token) for one in found]


async def test_tasks_are_claimed_in_the_order_and_with_the_tokens_of_before(
    folder: Folder, dsn: str, tmp_path: Path
) -> None:
    other = folder.copy(tmp_path / "copy")
    async with opened(SqliteStorage(other.path)) as storage:
        before = await claims(storage, other)
    async with opened(await moved(folder, dsn)) as storage:
        assert await claims(storage, folder) == before
        assert len(before) > 300
        assert await storage.audit() == []


async def test_held_tasks_end_once_and_old_tokens_never_count(folder: Folder, dsn: str) -> None:
    async with opened(await moved(folder, dsn)) as storage:
        queue = Queue(storage, folder.clock)
        done, given_back = folder.held[0], folder.held[1]
        assert (await queue.do(Complete(done.id, done.token, b"late"))).status is Status.COMPLETED
        detail = await queue.detail(done.id)
        assert detail.result == b"late"
        with pytest.raises(LeaseLost):
            await queue.do(Complete(done.id, done.token - 1, b"never"))
        assert (await queue.detail(done.id)).result == b"late"
        await queue.do(Release(given_back.id, given_back.token))
        again = next(
            one.task
            for one in await queue.claim(given_back.task_type, limit=1_000)
            if one.task.id == given_back.id
        )
        assert again.token == given_back.token + 1
        with pytest.raises(LeaseLost):
            await queue.do(Complete(given_back.id, given_back.token, b"never"))
        assert await storage.audit() == []


async def test_answers_that_were_kept_are_given_again(folder: Folder, dsn: str) -> None:
    async with opened(SqliteStorage(folder.path)) as storage:
        queue = Queue(storage, folder.clock)
        first = queue.a_submit(b"once")
        until = folder.clock.wall() + 3_600 * SECOND
        first = Submit(first.task, b"once", Repeat("shop-1", until))
        await queue.do(first)
        claim = Claim("hasty", ("work",), 1, Repeat("claim-1", until))
        [claimed] = await queue.do(claim)
    async with opened(await moved(folder, dsn)) as storage:
        queue = Queue(storage, folder.clock)
        repeat = Submit(queue.a_submit(b"once").task, b"once", first.repeat)
        told: Task = await queue.do(repeat)
        assert told.id == first.task.id != repeat.task.id
        assert [one.task.token for one in await queue.do(claim)] == [claimed.task.token]
        assert await storage.audit() == []


async def test_new_tasks_and_entries_come_after_the_moved_ones(folder: Folder, dsn: str) -> None:
    async with opened(SqliteStorage(folder.path)) as storage:
        [latest] = await storage.audit_log(2**60, 1)
        [newest] = await storage.find(TaskQuery(limit=1))
    async with opened(await moved(folder, dsn)) as storage:
        queue = Queue(storage, folder.clock)
        made = await queue.submit()
        assert [task.id for task in await storage.find(TaskQuery(limit=2))] == [made.id, newest.id]
        await queue.apply(folder.an_audited_cancel(made.id))
        [entry] = await storage.audit_log(2**60, 1)
        assert entry.number == latest.number + 1
        assert await storage.audit() == []


async def test_ended_tasks_lie_in_the_day_of_their_submit(folder: Folder, dsn: str) -> None:
    await moved(folder, dsn)
    connection = await connect(database_at(dsn), "any", "test")
    try:
        for table in DAILY:
            rows = await connection.fetch(
                f"SELECT tableoid::regclass::text, count(*) FROM taskqueue.{table} GROUP BY 1"
            )
            days = {name: number for name, number in rows if not name.endswith("_rest")}
            assert len(days) >= 4
            assert len(days) == len(rows), "nothing of these days is in the rest"
    finally:
        await connection.close()


async def test_partitions_belong_to_whoever_has_the_table(folder: Folder, dsn: str) -> None:
    role = f"days_{os.getpid()}"
    days = (
        "SELECT tablename, tableowner FROM pg_tables "
        "WHERE schemaname = 'taskqueue' AND tablename ~ '_d[0-9]+$'"
    )
    connection = await connect(database_at(dsn), "read-write", "test")
    await schema.migrate(connection)
    try:
        await connection.execute(f"CREATE ROLE {role}")
        await connection.execute(f"GRANT USAGE, CREATE ON SCHEMA taskqueue TO {role}")
        for table in DAILY:
            await connection.execute(f"ALTER TABLE taskqueue.{table} OWNER TO {role}")
        await moved(folder, dsn)
        owners = dict(map(tuple, await connection.fetch(days)))
        assert len(owners) >= 4 * len(DAILY)
        assert set(owners.values()) == {role}
    finally:
        await connection.execute(f"DROP OWNED BY {role} CASCADE")
        await connection.execute(f"DROP ROLE {role}")
        await connection.close()


async def test_an_empty_folder_can_be_moved(tmp_path: Path, dsn: str) -> None:
    folder = Folder(tmp_path / "data")
    async with opened(SqliteStorage(folder.path)):
        pass
    async with opened(await moved(folder, dsn)) as storage:
        assert await storage.find(EVERY) == []
        assert (await Queue(storage, folder.clock).submit()).status is Status.PENDING
        assert await storage.audit() == []


async def test_the_largest_payloads_fit(tmp_path: Path, dsn: str) -> None:
    folder = Folder(tmp_path / "data")
    payload = bytes(range(256)) * 40_960
    async with opened(SqliteStorage(folder.path)) as storage:
        queue = Queue(storage, folder.clock)
        tasks = [await queue.submit(payload) for _ in range(3)]
    async with opened(await moved(folder, dsn)) as storage:
        for task in tasks:
            assert await storage.payload(task.id) == payload
        assert await asyncio.wait_for(storage.audit(), 60) == []
