"""How PostgreSQL carries out the engine's statements with hundreds of thousands of tasks there.

The engine itself is made to work, and `auto_explain` writes down each plan with what it read. So
what is looked at are the plans that brokers get: prepared statements, generic plans, statistics
that are missing. Where there is no `auto_explain`, what was read is looked up in the counters of
tables and indexes. The queue is one that has grown for long: what runs and what failed is oldest.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import asyncpg
from msgspec import structs

from taskqueue.core.audit import Actor
from taskqueue.core.clock import SECOND, ManualClock
from taskqueue.core.commands import (
    Audited,
    Cancel,
    Checkpoint,
    Claim,
    Complete,
    CreateKey,
    Fail,
    Log,
    Progress,
    Promote,
    Purge,
    Release,
    Retry,
    TakeBack,
)
from taskqueue.core.ids import new_task_id
from taskqueue.core.keys import Key, Permission
from taskqueue.core.repeats import Repeat, Unique
from taskqueue.core.task import ClaimedTask, Event, LogLevel, Status
from taskqueue.storage.port import TaskQuery
from taskqueue.storage.postgres import days, reader, schema, statements
from taskqueue.storage.postgres.connections import Connection, connect, database_at
from taskqueue.storage.postgres.engine import PostgresStorage
from tests.support.door import PATIENCE
from tests.support.postgres import PostgresServer, a_database, a_server
from tests.support.storage import Queue
from tests.support.tasks import START

EXPLAINING: Final = "15"
"""Debian's release, which brings auto_explain along."""

COUNTING: Final = "18"
LIVE: Final = 300_000
ENDED: Final = 100_000
BATCH: Final = 1_000
"""Commands in the largest transaction."""

PAGE: Final = 300
"""Tasks of the longest list, with those that it leaves out."""

DAYS_KEPT: Final = 30

ROWS_FOR_ONE: Final = 10
"""Rows that one step of a plan may handle, wanted or not, for each command; and BATCH besides."""

BLOCKS_FOR_ONE: Final = 100
"""Blocks that a statement may touch for each command: a row has a dozen index entries, each some
blocks deep."""

SCANNED: Final = """
    SELECT relname, seq_tup_read FROM pg_stat_user_tables WHERE seq_tup_read > 0"""
FOUND: Final = "SELECT indexrelname, idx_tup_read FROM pg_stat_user_indexes"
OTHERS: Final = """
    SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""
MOST_READ: Final = 100 * BATCH
"""Entries of an index that everything together may read."""

SETTINGS: Final = ("autovacuum = off", "fsync = off", "max_wal_size = 4GB")
EXPLAIN: Final = (
    "shared_preload_libraries = 'auto_explain'",
    "auto_explain.log_analyze = on",
    "auto_explain.log_timing = off",
    "auto_explain.log_buffers = on",
    "auto_explain.log_format = json",
)

OLDEST: Final = days.first_seq(days.step_of(START - SECOND), 0)
"""The number before that of the oldest task; the others have every thousandth after it."""

COLUMNS: Final = (
    "seq, id, task_type, priority, status, run_at, timeout, max_retries, payload_crc, weight,"
    " created_at, updated_at, last_event, retry_count, token, progress_note"
)
FILL_LIVE: Final = f"""
    INSERT INTO taskqueue.tasks
        ({COLUMNS}, worker_id, claimed_at, deadline, ready, options, expires_at)
    SELECT {{first}} + n * 1000, gen_random_uuid(),
        CASE WHEN n <= {ENDED} THEN 'old0' ELSE 'old' || 1 + n % 9 END, n % 3 * 100, status,
        {START} - {LIVE} + n + CASE ready WHEN 0 THEN 3600000000 ELSE 0 END, 300000000, 3, 0, 0,
        {START}, {START}, 'submit', 0, 1, '',
        CASE status WHEN 'in_progress' THEN 'w' || n % 50 END,
        CASE status WHEN 'in_progress' THEN {START} END,
        CASE status WHEN 'in_progress' THEN {START} + 300000000 END, ready,
        CASE n % 5000 WHEN 0 THEN '{{{{"tags":["rare"],"metadata":{{{{"k":"v"}}}}}}}}' END,
        CASE n % 10 WHEN 7 THEN {START} + 10000000000 END
    FROM generate_series(1::bigint, {LIVE}) AS n CROSS JOIN LATERAL (
        SELECT CASE WHEN n <= 5000 THEN 'in_progress' WHEN n <= 5500 THEN 'failed'
            WHEN n <= 8000 THEN 'dead_letter' ELSE 'pending' END AS status
    ) AS chosen CROSS JOIN LATERAL (
        SELECT CASE WHEN status IN ('in_progress', 'dead_letter') THEN NULL
            WHEN status = 'failed' OR n % 20 = 0 THEN 0 ELSE 1 END AS ready
    ) AS readied"""
FILL_ENDED: Final = f"""
    INSERT INTO taskqueue.archive ({COLUMNS})
    SELECT {{first}} + n * 1000, gen_random_uuid(), 'old' || n % 10, 100,
        CASE n % 20 WHEN 0 THEN 'cancelled' ELSE 'completed' END, {START}, 300000000, 3, 0, 0,
        {START}, {START} + n, 'complete', 0, 1, ''
    FROM generate_series(1::bigint, {ENDED}) AS n"""
FILL_BYTES: Final = f"""
    INSERT INTO taskqueue.{{table}} SELECT {{first}} + n * 1000, {{columns}}
    FROM generate_series(1::bigint, {ENDED}) AS n"""
FILL_NOTES: Final = (
    f"""
    INSERT INTO taskqueue.checkpoints
    SELECT {{first}} + n * 1000, 'c' FROM generate_series(1::bigint, {ENDED}) AS n""",
    f"""
    INSERT INTO taskqueue.logs (seq, attempt, at, level, message)
    SELECT {{first}} + n * 1000, 1, 0, 'info', 'm'
    FROM generate_series(1::bigint, {ENDED}) AS n""",
)
FILL_FAILURES: Final = f"""
    INSERT INTO taskqueue.failures (seq, attempt, at, kind, message, traceback)
    SELECT {{first}} + n * 1000, 1, 0, 'E', 'm', '' FROM generate_series(1::bigint, {ENDED}) AS n"""
FILL_KEPT: Final = f"""
    INSERT INTO taskqueue.kept SELECT 'submit', 'work', 'k' || n, '[]', {START + 10**12}
    FROM generate_series(1, {ENDED}) AS n"""
FILL_LANES: Final = """
    INSERT INTO taskqueue.lanes SELECT DISTINCT task_type, priority FROM taskqueue.tasks"""
FILL_COUNTERS: Final = """
    INSERT INTO taskqueue.counters
    SELECT task_type, status, (ARRAY['low', 'normal', 'high'])[1 + priority / 100], count(*), 0
    FROM (SELECT task_type, status, priority FROM taskqueue.tasks
        UNION ALL SELECT task_type, status, priority FROM taskqueue.archive) AS every
    GROUP BY 1, 2, 3"""

INDEXES: Final = """
    SELECT indexname, indexdef FROM pg_indexes
    WHERE schemaname = 'taskqueue' AND tablename = 'tasks' AND indexname <> 'tasks_pkey'"""
"""They are built faster than filled."""

BIG: Final = (
    *("tasks", "archive", "payloads", "results", "failures", "checkpoints", "logs", "kept"),
)
"""Tables of which nothing may be read from end to end."""


class Step:
    """One step of a plan."""

    def __init__(self, node: dict[str, Any]) -> None:
        self.kind: str = node["Node Type"]
        self.table: str = node.get("Relation Name", "")
        loops = max(1, node.get("Actual Loops", 1))
        self.rows = loops * (
            node.get("Actual Rows", 0)
            + node.get("Rows Removed by Filter", 0)
            + node.get("Rows Removed by Index Recheck", 0)
        )
        self.blocks: int = node.get("Shared Hit Blocks", 0) + node.get("Shared Read Blocks", 0)
        self.inner = [Step(one) for one in node.get("Plans", ())]

    def walk(self) -> Iterator["Step"]:
        yield self
        for one in self.inner:
            yield from one.walk()

    def complaints(self, number: int) -> Iterator[str]:
        """What is wrong with it for so many commands: it reads or sorts more than they ask for."""
        for step in self.walk():
            if step.kind == "Seq Scan" and step.table.startswith(BIG) and step.rows > BATCH:
                yield f"reads all of {step.table}"
            if step.rows > BATCH + number * ROWS_FOR_ONE:
                yield f"{step.kind} of {step.table or 'rows'} handles {step.rows} rows"
        if self.blocks > BATCH + number * BLOCKS_FOR_ONE:
            yield f"touches {self.blocks} blocks"


@contextmanager
def a_server_of_its_own(release: str, *settings: str) -> Iterator[PostgresServer]:
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the server is another user
        with a_server(release, Path(folder) / "pg", *SETTINGS, *settings) as server:
            yield server


async def test_no_statement_reads_more_than_it_is_asked_for() -> None:
    with a_server_of_its_own(EXPLAINING, *EXPLAIN) as server:
        async with a_database(server) as dsn:
            await fill(dsn)
            connection = await asyncpg.connect(dsn)
            await connection.execute("ALTER SYSTEM SET auto_explain.log_min_duration = 0")
            await connection.execute("SELECT pg_reload_conf()")
            seen: set[str] = set()
            complaints: set[tuple[str, str]] = set()
            for statistics in ("none", "fresh"):
                if statistics == "fresh":
                    await connection.execute("ANALYZE")
                written = len(server.log)
                async for number in work(dsn):
                    log = server.log
                    for statement, plan in plans_in(log[written:]):
                        seen.add(statement)
                        complaints |= {(one, statement) for one in plan.complaints(number)}
                    written = len(log)
            await connection.close()
            assert not complaints, "\n".join(": ".join(one) for one in sorted(complaints))
            assert not missing_in(seen)


async def test_no_table_is_read_from_end_to_end() -> None:
    with a_server_of_its_own(COUNTING) as server:
        async with a_database(server) as dsn:
            await fill(dsn)
            connection = await asyncpg.connect(dsn)
            for statistics in ("none", "fresh"):
                if statistics == "fresh":
                    await connection.execute("ANALYZE")
                await connection.execute("SELECT pg_stat_reset()")
                async for _ in work(dsn):
                    pass
                await all_others_gone(connection)
                scanned = dict(map(tuple, await connection.fetch(SCANNED)))
                found = dict(map(tuple, await connection.fetch(FOUND)))
                assert found["tasks_by_id"] > BATCH  # it counts
                assert {one: n for one, n in scanned.items() if one.startswith(BIG)} == {}
                assert {one: n for one, n in found.items() if n > MOST_READ} == {}
            await connection.close()


async def all_others_gone(connection: Connection) -> None:
    """Wait until each has added up what it read, which it does before it ends."""
    async with asyncio.timeout(PATIENCE):
        while await connection.fetchval(OTHERS):  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.02)


def missing_in(seen: set[str]) -> set[str]:
    """Which of the engine's statements are not among these."""
    return {
        name for name, text in texts().items() if not any(re.fullmatch(text, one) for one in seen)
    }


def texts() -> dict[str, str]:
    """Every statement of the engine that has a plan, by its name, as a pattern."""
    found: dict[str, str] = {}
    for module in (statements, reader):
        for name, value in vars(module).items():
            for text in value if isinstance(value, tuple) else (value,):
                if isinstance(text, str) and re.match(
                    r"(SELECT|INSERT|UPDATE|DELETE|WITH)\b", text.strip()
                ):
                    found[name] = re.escape(plain(text)).replace(r"\{table\}", r"\w+")
    return found


def plain(statement: str) -> str:
    """A statement on one line."""
    return " ".join(statement.split())


def plans_in(log: str) -> Iterator[tuple[str, Step]]:
    """Each statement on the engine's tables in a server's log, with its plan."""
    for found in re.finditer(r"  plan:\n\t(\{\n.*?\n\t\})\n", log, re.DOTALL):
        plan = json.loads(found[1].replace("\n\t", "\n"))
        statement = plain(plan["Query Text"])
        if "taskqueue." in statement:
            yield statement, Step(plan["Plan"])


async def fill(dsn: str) -> None:
    """Live tasks of all sorts, and ended ones with their bytes, without statistics."""
    connection = await connect(database_at(dsn), "read-write", "fill")
    await schema.migrate(connection)
    day = days.day_of(START)
    for table in ("archive", "payloads", "results"):
        for one in range(day - DAYS_KEPT + 1, day + 1):
            low, high = days.bounds_of(one)
            await connection.execute(
                f"CREATE TABLE taskqueue.{table}_d{one} "
                f"PARTITION OF taskqueue.{table} FOR VALUES FROM ({low}) TO ({high})"
            )
    ended = days.bounds_of(day)[0]
    indexes = await connection.fetch(INDEXES)
    for name, _ in indexes:
        await connection.execute(f"DROP INDEX taskqueue.{name}")
    await connection.execute(FILL_LIVE.format(first=OLDEST))
    for _, definition in indexes:
        await connection.execute(definition)
    await connection.execute(FILL_ENDED.format(first=ended))
    for table, start, columns in (
        ("payloads", OLDEST, "''"),
        ("payloads", ended, "'x'"),
        ("results", ended, "0, 'y'"),
    ):
        await connection.execute(FILL_BYTES.format(table=table, first=start, columns=columns))
    for statement in (FILL_FAILURES, *FILL_NOTES):
        await connection.execute(statement.format(first=ended))
    for statement in (FILL_KEPT, FILL_LANES, FILL_COUNTERS):
        await connection.execute(statement)
    await connection.close()


async def work(dsn: str) -> AsyncIterator[int]:
    """Have the engine do everything it does; after each part, how many commands it had at most."""
    storage = PostgresStorage(database_at(dsn))
    await storage.open()
    try:
        queue = Queue(storage, ManualClock())
        for number in (1, 2, 100, BATCH):
            await live(queue, number)
            yield number
        await ask(queue)
        yield BATCH
        await look_after(queue)
    finally:
        await storage.close()
    # Asked only after a lost commit.
    connection = await asyncpg.connect(dsn)
    await connection.fetch(statements.CLAIM_NUMBER, 1, 10**9)
    await connection.close()
    yield BATCH


async def live(queue: Queue, number: int) -> None:
    """So many tasks through all that can happen to one, some under idempotency keys."""
    until = queue.clock.wall() + 60 * SECOND
    submits = [queue.a_submit() for _ in range(number)]
    await queue.apply(*submits)
    keyed = [
        structs.replace(queue.a_submit(), repeat=Repeat(new_task_id(), until))
        for _ in range(number)
    ]
    await queue.apply(*keyed)
    unique = [
        structs.replace(queue.a_submit(), unique=Unique(f"work {new_task_id()}", replaces=True))
        for _ in range(number)
    ]
    await queue.apply(*unique)
    again = [structs.replace(queue.a_submit(), unique=one.unique) for one in unique]
    for some in (again[: number // 2 + 1], again):
        await queue.apply(*some)
    await queue.apply(*submits)
    claimed = await claim(queue, number, new_task_id())
    await queue.apply(*(Progress(one.task.id, one.task.token, 0.5, "n") for one in claimed))
    await queue.apply(
        *(Log(one.task.id, one.task.token, LogLevel.INFO, "line") for one in claimed),
        *(Checkpoint(one.task.id, one.task.token, b"c") for one in claimed),
    )
    await queue.apply(*(Fail(one.task.id, one.task.token, "E", "m", delay=0) for one in claimed))
    second = await claim(queue, number, new_task_id())
    await queue.apply(*(Release(one.task.id, one.task.token) for one in second))
    last = await claim(queue, number, new_task_id())
    half = len(last) // 2
    await queue.apply(
        *(Complete(one.task.id, one.task.token, b"r") for one in last[half:]),
        *(TakeBack(one.task.id, one.task.token, Event.LOSE, "m") for one in last[:half]),
    )
    rest = [one.task.id for one in last[:half]]
    await queue.apply(*(Cancel(task_id) for task_id in rest))
    await queue.apply(*(Retry(task_id) for task_id in rest))
    await queue.apply(*(Cancel(new_task_id()) for _ in range(number)))


async def claim(queue: Queue, number: int, key: str) -> list[ClaimedTask]:
    """Tasks of a type of many, and of the one under test."""
    types = ("work", "old0", "old1")
    repeat = Repeat(key, queue.clock.wall() + 60 * SECOND)
    claimed: list[ClaimedTask] = await queue.do(Claim("worker", types, number, repeat))
    assert len(claimed) == number
    await queue.do(Claim("worker", types, number, repeat))
    return claimed


async def ask(queue: Queue) -> None:
    """Every question that there is."""
    storage = queue.storage
    running = await queue.running(task_type="asked")
    await queue.do(Complete(running.id, running.token, b"r"))
    await storage.get(running.id)
    await storage.payload(running.id)
    await storage.look([running.id, new_task_id()])
    for status in (None, *Status):
        for task_type in (None, "old0", "old1"):
            await storage.find(TaskQuery(status, task_type, 100, 0, None))
            await storage.find(TaskQuery(status, task_type, 100, PAGE - 100, None))
            await storage.find(TaskQuery(status, task_type, 100, 0, OLDEST + LIVE * 500))
            await storage.count(status, task_type)
    for tags, metadata in ((("rare",), ()), ((), (("k", "v"),)), (("nobody",), ())):
        for status in (None, Status.PENDING, Status.COMPLETED):
            labelled = TaskQuery(status, None, 100, 0, None, tags, metadata)
            await storage.find(labelled)
            await storage.number(labelled)
    await storage.logs(running.id)
    await storage.expired(queue.clock.wall() + 3600 * SECOND, 100)
    await storage.totals(0)
    await storage.counts()
    await storage.overdue(queue.clock.steady(), 100)
    await storage.held(["w1", "w2"])
    await storage.holders()
    await storage.next_due()
    await storage.keys()
    await storage.audit_log(2**62, 100)


async def look_after(queue: Queue) -> None:
    """The leader's chores, keys and their log."""
    key = Key("key_a", "a", "d", "hint", (Permission.ADMIN,), queue.clock.wall(), "")
    await queue.apply(Audited(CreateKey(key), "create_key", Actor(None, None, "192.0.2.1")))
    queue.clock.advance(3700)
    await queue.do(Promote(BATCH))
    await queue.do(Promote(BATCH))
    await queue.do(Purge(queue.clock.wall() - days.DAY, BATCH, queue.clock.wall()))
    await queue.do(Purge(queue.clock.wall() - SECOND, BATCH, queue.clock.wall()))
