"""Days: the partitions that finished tasks are in, and the numbers that say which one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Final

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from taskqueue.core.clock import SECOND, ManualClock
from taskqueue.core.commands import Cancel, Complete, Fail, Purge
from taskqueue.core.task import Task
from taskqueue.storage.postgres import days
from taskqueue.storage.postgres.connections import Connection, connect, database_at
from taskqueue.storage.postgres.engine import PostgresStorage
from taskqueue.storage.postgres.keeping import DAILY, DAYS_AHEAD, Keeping
from tests.support.door import PATIENCE
from tests.support.postgres import PostgresServer, a_database, shared_server
from tests.support.storage import Queue

RELEASE: Final = "18"
DAY_SECONDS: Final = days.DAY // SECOND

MOMENTS: Final = st.integers(days.EPOCH, days.EPOCH + 71 * 366 * days.DAY)
BROKERS: Final = st.integers(1, 10**6)


@given(MOMENTS, BROKERS, st.integers(0, days.MOST_IN_BATCH - 1))
def test_a_number_lies_in_the_day_of_its_moment(moment: int, broker: int, place: int) -> None:
    low, high = days.bounds_of(days.day_of(moment))
    assert low <= days.first_seq(days.step_of(moment), broker) + place < high
    assert 0 < high < 2**63


@given(MOMENTS, BROKERS, BROKERS)
def test_batches_of_a_later_step_have_larger_numbers(moment: int, one: int, other: int) -> None:
    step = days.step_of(moment)
    last = days.first_seq(step, one) + days.MOST_IN_BATCH - 1
    assert last < days.first_seq(step + 1, other)


@given(MOMENTS, BROKERS, st.integers(1, 255))
def test_brokers_of_one_step_do_not_share_numbers(moment: int, broker: int, apart: int) -> None:
    step = days.step_of(moment)
    firsts = {days.first_seq(step, broker), days.first_seq(step, broker + apart)}
    assert len(firsts) == 2
    assert abs(max(firsts) - min(firsts)) >= days.MOST_IN_BATCH


@given(st.integers(0, 71 * 366))
def test_days_lie_side_by_side(day: int) -> None:
    assert days.bounds_of(day)[1] == days.bounds_of(day + 1)[0]
    assert days.day_of(days.EPOCH + day * days.DAY) == day
    assert days.day_of(days.EPOCH + (day + 1) * days.DAY - 1) == day


@given(st.integers(-(2**62), days.EPOCH - 1))
def test_moments_before_the_first_day_count_as_its_begin(moment: int) -> None:
    assert days.step_of(moment) == 0
    assert days.day_of(moment) == 0


class Calendar:
    """A queue whose partitions a test makes and drops itself."""

    def __init__(self, dsn: str, storage: PostgresStorage, connection: Connection) -> None:
        self.dsn = dsn
        self.storage = storage
        self.connection = connection
        self.queue = Queue(storage, ManualClock())
        self.keeping: Keeping = storage._keeping

    @property
    def today(self) -> int:
        """The day that it is for the queue."""
        return days.day_of(self.queue.clock.wall())

    def begin_of(self, day: int) -> int:
        """The first moment of a day, in microseconds."""
        return days.EPOCH + day * days.DAY

    async def open_day(self) -> int:
        """Make the partitions of the queue's own day, long before the server's."""
        low, high = days.bounds_of(self.today)
        for table in DAILY:
            await self.connection.execute(
                f"CREATE TABLE taskqueue.{table}_d{self.today} "
                f"PARTITION OF taskqueue.{table} FOR VALUES FROM ({low}) TO ({high})"
            )
        return self.today

    async def completed(self) -> Task:
        """A task that has gone through."""
        task = await self.queue.running(payload=b"p")
        done: Task = await self.queue.do(Complete(task.id, task.token, b"r"))
        return done

    async def partitions(self, table: str) -> set[int]:
        """The days for which a table has a partition."""
        rows = await self.connection.fetch(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = $1::regclass",
            f"taskqueue.{table}",
        )
        names = [row[0].rpartition("_d") for row in rows]
        return {int(day) for _, _, day in names if day.isdigit()}

    async def place_of(self, table: str, task: Task) -> str:
        """The partition in which a table has the row of a task."""
        place = await self.connection.fetchval(
            f"SELECT tableoid::regclass::text FROM taskqueue.{table} WHERE seq = $1", task.seq
        )
        return str(place)

    async def drop(self, before: int) -> None:
        """What the leader does with days past retention."""
        await self.keeping.drop_days(self.connection, before)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with shared_server(RELEASE) as server:
        yield server


@pytest.fixture
async def calendar(server: PostgresServer) -> AsyncIterator[Calendar]:
    async with a_database(server) as dsn:
        storage = PostgresStorage(database_at(dsn))
        await storage.open()
        connection = await connect(database_at(dsn), "read-write", "test")
        try:
            yield Calendar(dsn, storage, connection)
            assert await storage.audit() == []
        finally:
            await connection.close()
            await storage.close()


async def test_days_are_made_ahead(calendar: Calendar) -> None:
    now = await calendar.connection.fetchval(
        "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
    )
    ahead = set(range(days.day_of(now), days.day_of(now) + DAYS_AHEAD))
    for table in DAILY:
        assert await calendar.partitions(table) == ahead


async def test_a_task_is_in_the_partitions_of_the_day_of_its_submit(calendar: Calendar) -> None:
    day = await calendar.open_day()
    task = await calendar.queue.running()
    calendar.queue.clock.advance(3 * DAY_SECONDS)
    await calendar.queue.do(Complete(task.id, task.token, b"r"))
    for table in DAILY:
        assert await calendar.place_of(table, task) == f"taskqueue.{table}_d{day}"


async def test_tasks_of_a_day_without_partitions_are_kept_with_the_rest(
    calendar: Calendar,
) -> None:
    task = await calendar.completed()
    for table in DAILY:
        assert await calendar.place_of(table, task) == f"taskqueue.{table}_rest"
    detail = await calendar.queue.detail(task.id)
    assert detail.result == b"r"


async def test_a_day_past_retention_is_dropped_with_all_that_belongs_to_it(
    calendar: Calendar,
) -> None:
    queue = calendar.queue
    day = await calendar.open_day()
    ended = [await calendar.completed() for _ in range(3)]
    cancelled = await queue.submit(priority=250)
    await queue.do(Cancel(cancelled.id))
    failed = await queue.running(max_retries=1, task_type="other")
    await queue.do(Fail(failed.id, failed.token, "E", "m", delay=0))
    [again] = await queue.claim("other")
    await queue.do(Complete(failed.id, again.task.token, b"r"))
    dead = await queue.running(max_retries=0)
    await queue.do(Fail(dead.id, dead.token, "E", "m"))
    waiting = await queue.submit(payload=b"later", delay=30 * DAY_SECONDS)

    await calendar.drop(calendar.begin_of(day + 1))

    for table in DAILY:
        assert day not in await calendar.partitions(table)
    for task in (*ended, cancelled, failed):
        assert await queue.storage.get(task.id) is None
    assert len((await queue.detail(dead.id)).failures) == 1
    assert await queue.storage.payload(dead.id) == b"x"
    assert await queue.storage.payload(waiting.id) == b"later"
    assert await queue.storage.count(None, None) == 2
    assert await calendar.connection.fetchval("SELECT count(*) FROM taskqueue.failures") == 1
    assert await queue.storage.audit() == []


async def test_what_outlived_its_day_ends_and_is_purged_by_row(calendar: Calendar) -> None:
    day = await calendar.open_day()
    task = await calendar.queue.running(payload=b"long")
    await calendar.drop(calendar.begin_of(day + 1))
    calendar.queue.clock.advance(DAY_SECONDS)
    await calendar.queue.do(Complete(task.id, task.token, b"r"))
    assert await calendar.place_of("archive", task) == "taskqueue.archive_rest"
    calendar.queue.clock.advance(10 * DAY_SECONDS)
    before = calendar.queue.clock.wall() - 5 * days.DAY
    assert await calendar.queue.do(Purge(before, 10)) == 1
    assert await calendar.queue.storage.get(task.id) is None
    assert await calendar.queue.storage.count(None, None) == 0


@pytest.mark.parametrize("late", ["ended", "day"])
async def test_a_day_that_is_still_wanted_stays(calendar: Calendar, late: str) -> None:
    """Because a task of it ended later than that, or because it is not over."""
    day = await calendar.open_day()
    early = await calendar.completed()
    task = await calendar.queue.running()
    if late == "ended":
        calendar.queue.clock.advance(2 * DAY_SECONDS)
    await calendar.queue.do(Complete(task.id, task.token, b"r"))
    await calendar.drop(calendar.begin_of(day + 1) - (late == "day"))
    assert day in await calendar.partitions("archive")
    for one in (early, task):
        assert (await calendar.queue.detail(one.id)).result == b"r"


async def test_only_the_days_past_retention_are_dropped(calendar: Calendar) -> None:
    tasks: dict[int, Task] = {}
    for _ in range(3):
        day = await calendar.open_day()
        tasks[day] = await calendar.completed()
        calendar.queue.clock.advance(DAY_SECONDS)
    first, second, third = tasks
    await calendar.drop(calendar.begin_of(third))
    assert {first, second, third} & await calendar.partitions("archive") == {third}
    found = [await calendar.queue.storage.get(task.id) for task in tasks.values()]
    assert [detail is not None for detail in found] == [False, False, True]


@asynccontextmanager
async def in_use(
    calendar: Calendar, statement: str
) -> AsyncIterator[Callable[[], Awaitable[None]]]:
    """Somebody's transaction that has carried out a statement; the block may commit it."""
    connection = await asyncpg.connect(calendar.dsn)
    try:
        await connection.execute("BEGIN")
        await connection.execute(statement)

        async def commit() -> None:
            await connection.execute("COMMIT")

        yield commit
    finally:
        await connection.close()


@pytest.mark.parametrize("table", DAILY)
async def test_a_day_in_use_is_left_as_it_is_until_the_next_time(
    calendar: Calendar, table: str
) -> None:
    day = await calendar.open_day()
    task = await calendar.completed()
    async with in_use(calendar, f"SELECT FROM taskqueue.{table}_d{day}"):
        await calendar.drop(calendar.begin_of(day + 1))
        for one in DAILY:
            assert day in await calendar.partitions(one)
        assert (await calendar.queue.detail(task.id)).result == b"r"
        assert await calendar.queue.storage.count(None, None) == 1
        assert await calendar.queue.storage.audit() == []
    await calendar.drop(calendar.begin_of(day + 1))
    assert day not in await calendar.partitions("archive")
    assert await calendar.queue.storage.get(task.id) is None


async def test_a_task_that_ends_while_its_day_is_being_dropped_is_kept(
    calendar: Calendar,
) -> None:
    day = await calendar.open_day()
    task = await calendar.queue.running()
    await calendar.completed()
    calendar.queue.clock.advance(5 * DAY_SECONDS)
    async with in_use(calendar, f"SELECT FROM taskqueue.archive_d{day}") as commit:
        dropping = asyncio.create_task(calendar.drop(calendar.begin_of(day + 1)))
        await until_somebody_waits(calendar.dsn)
        # The completion queues up before the drop has its lock, or comes when it has failed.
        completing = asyncio.create_task(calendar.queue.do(Complete(task.id, task.token, b"late")))
        await commit()
        await dropping
        await completing
    assert (await calendar.queue.detail(task.id)).result == b"late"


async def until_somebody_waits(dsn: str) -> None:
    """Until a connection to the database waits for a lock."""
    connection = await asyncpg.connect(dsn)
    try:
        async with asyncio.timeout(PATIENCE):
            while not await connection.fetchval(  # noqa: ASYNC110
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ):
                await asyncio.sleep(0.005)
    finally:
        await connection.close()
