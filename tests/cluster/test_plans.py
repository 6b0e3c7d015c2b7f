"""How PostgreSQL carries out the engine's statements with a million tasks in the queue.

The engine itself is made to work, and `auto_explain` writes down each plan with what it read. So
what is looked at are the plans that brokers get: prepared statements, generic plans, statistics
that are missing or old.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import asyncpg
import pytest
from msgspec import structs

from taskqueue.core.audit import Actor
from taskqueue.core.clock import SECOND, ManualClock
from taskqueue.core.commands import (
    Audited,
    Cancel,
    Claim,
    Complete,
    CreateKey,
    Fail,
    Progress,
    Promote,
    Purge,
    Release,
    Retry,
    TakeBack,
)
from taskqueue.core.ids import new_task_id
from taskqueue.core.keys import Key, Permission
from taskqueue.core.repeats import Repeat
from taskqueue.core.task import ClaimedTask, Event, Status
from taskqueue.storage.port import TaskQuery
from taskqueue.storage.postgres import days, reader, schema, statements
from taskqueue.storage.postgres.connections import connect, database_at
from taskqueue.storage.postgres.engine import PostgresStorage
from tests.support.postgres import PostgresServer, a_database, a_server
from tests.support.storage import Queue
from tests.support.tasks import START

RELEASE: Final = "15"
"""Debian's, which brings auto_explain along."""

LIVE: Final = 1_000_000
ENDED: Final = 200_000
BATCH: Final = 1_000
"""Commands in the largest transaction."""

MOST_ROWS: Final = 10 * BATCH
"""Rows that one step of a plan may handle, wanted or not, for a batch of that size."""

MOST_BLOCKS: Final = 100 * BATCH
"""Blocks that a statement may touch: a row has a dozen index entries, each some blocks deep."""

LONGEST_PLAN: Final = 300_000
"""Characters in the log."""

SETTINGS: Final = (
    "shared_preload_libraries = 'auto_explain'",
    "auto_explain.log_analyze = on",
    "auto_explain.log_timing = off",
    "auto_explain.log_buffers = on",
    "auto_explain.log_format = json",
    "autovacuum = off",
    "fsync = off",
    "max_wal_size = 4GB",
)

COLUMNS: Final = (
    "seq, id, task_type, priority, status, run_at, timeout, max_retries, payload_crc, weight,"
    " created_at, updated_at, last_event, retry_count, token, progress_note"
)
FILL_LIVE: Final = f"""
    INSERT INTO taskqueue.tasks ({COLUMNS}, worker_id, claimed_at, deadline, ready)
    SELECT {{first}} + n * 1000, gen_random_uuid(), 'old' || n % 10, n % 3 * 100, status,
        {START} - {LIVE} + n + CASE ready WHEN 0 THEN 3600000000 ELSE 0 END, 300000000, 3, 0, 0,
        {START}, {START}, 'submit', 0, 1, '',
        CASE status WHEN 'in_progress' THEN 'w' || n % 50 END,
        CASE status WHEN 'in_progress' THEN {START} END,
        CASE status WHEN 'in_progress' THEN {START} + 300000000 END, ready
    FROM generate_series(1::bigint, {LIVE}) AS n CROSS JOIN LATERAL (
        SELECT CASE n % 20 WHEN 0 THEN 'in_progress' WHEN 1 THEN 'dead_letter' ELSE 'pending' END
            AS status,
        CASE n % 20 WHEN 0 THEN NULL WHEN 1 THEN NULL WHEN 2 THEN 0 ELSE 1 END AS ready
    ) AS chosen"""
FILL_ENDED: Final = f"""
    INSERT INTO taskqueue.archive ({COLUMNS})
    SELECT {{first}} + n * 1000, gen_random_uuid(), 'old' || n % 10, 100,
        CASE n % 20 WHEN 0 THEN 'cancelled' ELSE 'completed' END, {START}, 300000000, 3, 0, 0,
        {START}, {START} + n, 'complete', 0, 1, ''
    FROM generate_series(1::bigint, {ENDED}) AS n"""
FILL_BYTES: Final = """
    INSERT INTO taskqueue.{table} SELECT {first} + n * 1000, {columns}
    FROM generate_series(1::bigint, {number}) AS n"""

BIG: Final = ("tasks", "archive", "payloads", "results", "failures", "kept")
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

    def complaints(self) -> Iterator[str]:
        """What is wrong with it: reading a whole table, sorting a queue, looking at too much."""
        for step in self.walk():
            if step.kind == "Seq Scan" and step.table.startswith(BIG) and step.rows > BATCH:
                yield f"reads all of {step.table}"
            if step.rows > MOST_ROWS:
                yield f"{step.kind} of {step.table or 'rows'} handles {step.rows} rows"
        if self.blocks > MOST_BLOCKS:
            yield f"touches {self.blocks} blocks"


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)  # the server is another user
        with a_server(RELEASE, Path(folder) / "pg", *SETTINGS) as server:
            yield server


async def test_no_statement_reads_more_than_it_is_asked_for(server: PostgresServer) -> None:
    async with a_database(server) as dsn:
        await fill(dsn)
        plans: list[tuple[str, Step]] = []
        for statistics in ("none", "fresh"):
            connection = await asyncpg.connect(dsn)
            if statistics == "fresh":
                await connection.execute("ANALYZE")
            await connection.execute("ALTER SYSTEM SET auto_explain.log_min_duration = 0")
            await connection.execute("SELECT pg_reload_conf()")
            await connection.close()
            before = len(server.log)
            await work(dsn)
            plans += plans_in(server.log[before:])
        complaints = {
            (statement, complaint) for statement, plan in plans for complaint in plan.complaints()
        }
        assert not complaints, "\n".join(f"{what}: {text}" for text, what in sorted(complaints))
        seen = {statement for statement, _ in plans}
        missing = {
            name
            for name, text in texts().items()
            if not any(re.fullmatch(text, one) for one in seen)
        }
        assert not missing


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
    decoder = json.JSONDecoder()
    for found in re.finditer(r"  plan:\s*(?=\{)", log):
        text = log[found.end() : found.end() + LONGEST_PLAN]
        plan, _ = decoder.raw_decode(text.replace("\n\t", "\n"))
        statement = plain(plan["Query Text"])
        if "taskqueue." in statement:
            yield statement, Step(plan["Plan"])


async def fill(dsn: str) -> None:
    """A million live tasks of all sorts, and ended ones with their bytes, without statistics."""
    connection = await connect(database_at(dsn), "read-write", "fill")
    await schema.migrate(connection)
    day = days.day_of(START)
    low, high = days.bounds_of(day - 1)
    for table in ("archive", "payloads", "results"):
        await connection.execute(
            f"CREATE TABLE taskqueue.{table}_d{day - 1} "
            f"PARTITION OF taskqueue.{table} FOR VALUES FROM ({low}) TO ({high})"
        )
    await connection.execute(FILL_LIVE.format(first=low))
    first = (low + high) // 2
    await connection.execute(FILL_ENDED.format(first=first))
    for table, columns in (
        ("payloads", "'x'"),
        ("results", "0, 'y'"),
    ):
        await connection.execute(
            FILL_BYTES.format(table=table, first=first, columns=columns, number=ENDED)
        )
    await connection.execute(
        "INSERT INTO taskqueue.failures (seq, attempt, at, kind, message, traceback) "
        f"SELECT {first} + n * 1000, 1, 0, 'E', 'm', '' FROM generate_series(1::bigint, {ENDED}) n"
    )
    await connection.execute(
        "INSERT INTO taskqueue.kept SELECT 'submit', 'work', 'k' || n, '[]', "
        f"{START + 10**12} FROM generate_series(1, {ENDED}) n"
    )
    await connection.execute(
        "INSERT INTO taskqueue.lanes SELECT DISTINCT task_type, priority FROM taskqueue.tasks"
    )
    await connection.close()


async def work(dsn: str) -> None:
    """Have the engine do everything it does, alone and a thousand times in a transaction."""
    storage = PostgresStorage(database_at(dsn))
    await storage.open()
    try:
        queue = Queue(storage, ManualClock())
        for number in (1, 2, 100, BATCH):
            await live(queue, number)
        await ask(queue)
        await look_after(queue)
    finally:
        await storage.close()
    # Asked only after a lost commit.
    connection = await asyncpg.connect(dsn)
    await connection.fetch(statements.CLAIM_NUMBER, 1, 10**9)
    await connection.close()


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
    await queue.apply(*submits)
    claimed = await claim(queue, number, new_task_id())
    await queue.apply(*(Progress(one.task.id, one.task.token, 0.5, "n") for one in claimed))
    await queue.apply(*(Fail(one.task.id, one.task.token, "E", "m", delay=0) for one in claimed))
    again = await claim(queue, number, new_task_id())
    await queue.apply(*(Release(one.task.id, one.task.token) for one in again))
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
    types = ("work", "old1", "old2")
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
        for task_type in (None, "old1"):
            await storage.find(TaskQuery(status, task_type, 100, 0, None))
            await storage.find(TaskQuery(status, task_type, 100, 200, None))
            await storage.count(status, task_type)
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
    queue.clock.advance(7200)
    await queue.do(Promote(BATCH))
    await queue.do(Promote(BATCH))
    await queue.do(Purge(queue.clock.wall() - days.DAY, BATCH, queue.clock.wall()))
    await queue.do(Purge(queue.clock.wall() - SECOND, BATCH, queue.clock.wall()))
