"""The database that tasks are moved to: nobody's before the move, and no broker's until its end."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final, Self

import asyncpg

from taskqueue.core.errors import BrokerUnavailable, StorageRefused
from taskqueue.storage.migrations import newest_of
from taskqueue.storage.move.days import Days, old_number
from taskqueue.storage.move.rows import (
    PART_COLUMNS,
    SIDE_TABLES,
    STATUS,
    TASK_COLUMNS,
    Row,
    Whole,
)
from taskqueue.storage.postgres import schema
from taskqueue.storage.postgres.audit import audit
from taskqueue.storage.postgres.connections import LOST, Connection, Database, close, connect
from taskqueue.storage.postgres.days import bounds_of, day_of
from taskqueue.storage.postgres.keeping import DAILY
from taskqueue.storage.postgres.membership import GONE_SECONDS, NOW
from taskqueue.storage.postgres.reader import Reader
from taskqueue.storage.postgres.statements import task_columns
from taskqueue.storage.postgres.tables import ENDED
from taskqueue.storage.sqlite.moved import Note

MOVE_LOCK: Final = schema.MIGRATION_LOCK + 1
"""An advisory lock, held by whoever moves tasks to the database."""

LOCK_ROUNDS: Final = 50
LOCK_PAUSE: Final = 0.2
"""For about ten seconds: what a killed move leaves behind in the server ends by then."""

NUMBERED: Final = ("failures", "logs")
"""Of these a task may have several, in an order."""

TASK_TABLES: Final = ("tasks", "archive", *PART_COLUMNS)
HELD_TABLES: Final = (*TASK_TABLES, "batches")
LIVE_COLUMNS: Final = [*TASK_COLUMNS, "weight", "ready"]
ENDED_COLUMNS: Final = [*TASK_COLUMNS, "weight"]
PAGE: Final = 5_000

MOVE: Final = "SELECT id::text, source, folder, days, reached, finished_at FROM taskqueue.move"
BROKERS: Final = """
    SELECT count(*) FROM taskqueue.brokers
    WHERE seen > clock_timestamp() - make_interval(secs => $1)"""
PLACED: Final = f"""
    SELECT {task_columns("tasks")}, ready FROM taskqueue.tasks WHERE seq > $1 AND seq <= $2
    UNION ALL SELECT {task_columns("archive")}, NULL FROM taskqueue.archive
    WHERE seq > $1 AND seq <= $2 ORDER BY seq LIMIT $3"""
BEYOND: Final = """
    SELECT seq FROM taskqueue.tasks WHERE seq > $1
    UNION ALL SELECT seq FROM taskqueue.archive WHERE seq > $1 LIMIT $2"""
PARTS: Final = {
    part: f"SELECT {', '.join(columns)} FROM taskqueue.{part} WHERE seq > $1 AND seq <= $2 "
    f"ORDER BY seq{', number' * (part in NUMBERED)}"
    for part, columns in PART_COLUMNS.items()
}
OWNER: Final = """
    SELECT quote_ident(tableowner) FROM pg_tables
    WHERE schemaname = 'taskqueue' AND tablename = $1 AND tableowner <> current_user"""
LANES: Final = """
    INSERT INTO taskqueue.lanes SELECT DISTINCT task_type, priority FROM taskqueue.tasks
    ON CONFLICT DO NOTHING"""
NEXT_AUDIT: Final = """
    SELECT setval(pg_get_serial_sequence('taskqueue.audit', 'number'), greatest($1::bigint, 1),
                  $1::bigint > 0)"""


class Destination:
    """A connection to the database, and what the move notes in it."""

    def __init__(self, database: Database, connection: Connection) -> None:
        self.database = database
        self.id = ""
        """Of the move, as the database knows it."""
        self.days = Days([], 0)
        self._connection = connection
        self._today = 0
        self._made_days: set[int] = set()

    @classmethod
    @asynccontextmanager
    async def at(cls, database: Database) -> AsyncIterator[Self]:
        """The database, for the block. Raises BrokerUnavailable, StorageRefused."""
        if not database.prepares:
            raise StorageRefused(
                "a move needs a connection of its own: name the server itself, not a pooler, and "
                "leave prepared_statements=false out"
            )
        connection = await connect(database, "read-write", "move")
        try:
            with _explained(database):
                yield cls(database, connection)
        finally:
            await close(connection)

    async def look(self, note: Note | None) -> bool:
        """Whether the move that a note tells of is finished; nothing is changed.

        Raises StorageRefused for a database that cannot be moved to.
        """
        version = await schema.schema_version(self._connection)
        schema.require_known(version)
        if version < newest_of(schema.MIGRATIONS):
            if version:
                await self._require_empty()
            return False
        return await self._is_finished(note)

    async def begin(self, note: Note, folder: str) -> bool:
        """Reserve the database for a move; whether it is finished already.

        Raises StorageRefused where somebody else uses it.
        """
        await self._lock()
        if await self.look(note):
            return True
        await schema.migrate(self._connection)
        await self._connection.execute("SET synchronous_commit = off")
        async with self._connection.transaction():
            # Brokers that join meanwhile wait, and then meet the row.
            await self._connection.execute("SET LOCAL lock_timeout = '10s'")
            await self._connection.execute(
                "LOCK TABLE taskqueue.brokers IN SHARE ROW EXCLUSIVE MODE"
            )
            if await self._is_finished(note):
                return True
            # Of all that comes, this wants the most rights: better refused now than at the end.
            await self._connection.execute(NEXT_AUDIT, 0)
            await self._connection.execute(
                "INSERT INTO taskqueue.move (one, source, folder) VALUES (1, $1, $2) "
                "ON CONFLICT (one) DO UPDATE SET folder = excluded.folder",
                note.id,
                folder,
            )
            await self.require_mine(note)
        return False

    async def require_mine(self, note: Note) -> None:
        """Learn how far the move has come. Raises StorageRefused if it is not that of the note."""
        if await self._is_finished(note):
            raise StorageRefused(f"{note.to} was finished by somebody else meanwhile")

    async def new_day(self) -> None:
        """Look which day it is, and see to it that the days have their partitions."""
        self._today = day_of(await self._connection.fetchval(NOW))
        await self._make_days()

    def place(self, tasks: Iterable[Row]) -> list[Row]:
        """Tasks with the numbers that they get here."""
        created_at = TASK_COLUMNS.index("created_at")
        return [
            (self.days.place(task[0], task[created_at], self._today), *task[1:]) for task in tasks
        ]

    async def tasks(self, above: int, up_to: int) -> AsyncIterator[list[Row]]:
        """The tasks whose numbers here lie in this range, in order, page by page."""
        while rows := await self._connection.fetch(PLACED, above, up_to, PAGE):
            yield [tuple(row) for row in rows]
            above = rows[-1][0]

    async def delete(self, places: Sequence[int]) -> None:
        """Delete tasks with all that belongs to them."""
        async with self._connection.transaction():
            await self._delete(places)

    async def delete_beyond(self, place: int) -> None:
        """Delete every task with a higher number."""
        while rows := await self._connection.fetch(BEYOND, place, PAGE):
            await self.delete([row[0] for row in rows])

    async def write(self, stale: Sequence[int], new: Whole, weights: dict[int, int]) -> None:
        """Bring tasks instead of others, all or nothing; `weights` are the payloads' bytes."""
        await self._make_days()
        rows = [(*task[:-1], weights[task[0]], task[-1]) for task in new.tasks]
        async with self._connection.transaction():
            await self._delete(stale)
            await self._copy("tasks", LIVE_COLUMNS, [row for row in rows if not _ended(row)])
            await self._copy("archive", ENDED_COLUMNS, [row[:-1] for row in rows if _ended(row)])
            for part, columns in PART_COLUMNS.items():
                await self._copy(part, columns, getattr(new, part))
            await self._connection.execute(
                "UPDATE taskqueue.move SET days = $1, reached = $2",
                json.dumps(self.days.boundaries),
                self.days.reached,
            )

    async def replace_sides(
        self, sides: Iterable[tuple[str, Iterable[Row]]], last_audit: int
    ) -> None:
        """Put these rows into the tables beside the tasks, instead of all that are there."""
        async with self._connection.transaction():
            for table, rows in sides:
                await self._connection.execute(f"DELETE FROM taskqueue.{table}")
                await self._copy(table, SIDE_TABLES[table], rows)
            await self._connection.execute(LANES)
            await self._connection.execute(NEXT_AUDIT, last_audit)

    async def whole(self, above: int, up_to: int) -> Whole:
        """The tasks in a range with all that belongs to them, under their old numbers."""
        parts: dict[str, list[Row]] = {}
        for part, statement in PARTS.items():
            rows = await self._connection.fetch(statement, above, up_to)
            parts[part] = [(old_number(row[0]), *tuple(row)[1:]) for row in rows]
        tasks = [
            (old_number(task[0]), *task[1:])
            async for page in self.tasks(above, up_to)
            for task in page
        ]
        return Whole(tasks, **parts)

    async def side(self, table: str) -> AsyncIterator[Row]:
        """The rows of a table beside the tasks, in any order."""
        columns = ", ".join(SIDE_TABLES[table])
        async with self._connection.transaction(readonly=True):
            async for row in self._connection.cursor(
                f"SELECT {columns} FROM taskqueue.{table}", prefetch=1_000
            ):
                yield tuple(row)

    async def audit(self) -> list[str]:
        """What the engine itself finds wrong with the database."""
        reader = Reader(self.database)
        try:
            return await audit(reader)
        finally:
            await reader.close()

    async def analyze(self) -> None:
        """Let PostgreSQL learn what it holds now."""
        for table in (*HELD_TABLES, *SIDE_TABLES):
            await self._connection.execute(f"ANALYZE taskqueue.{table}")

    async def settle(self) -> None:
        """Return once everything so far is durable, on as many servers as commits wait for."""
        await self._connection.execute("RESET synchronous_commit")
        await self._connection.execute("UPDATE taskqueue.move SET reached = reached")

    async def finish(self) -> None:
        """Open the database to brokers."""
        await self._connection.execute(
            "UPDATE taskqueue.move SET finished_at = clock_timestamp() WHERE finished_at IS NULL"
        )

    async def _lock(self) -> None:
        for _ in range(LOCK_ROUNDS):
            if await self._connection.fetchval("SELECT pg_try_advisory_lock($1)", MOVE_LOCK):
                return
            await asyncio.sleep(LOCK_PAUSE)
        raise StorageRefused(
            f"another tq move is at work on {self.database}; let it end, then run this one again"
        )

    async def _is_finished(self, note: Note | None) -> bool:
        move = await self._connection.fetchrow(MOVE)
        if note is not None and note.target not in ("", move and move["id"]):
            raise StorageRefused(
                f"the tasks of this folder were moved to {note.to} already; start brokers there. "
                "To move them once more, to another database, delete moved.json in the folder: "
                "tasks that are in both databases are then done twice"
            )
        if move is None:
            await self._require_empty()
            return False
        if note is None or move["source"] != note.id:
            raise StorageRefused(
                f"{self.database} {'has' if move['finished_at'] else 'is to have'} the tasks of "
                f"another data folder, {move['folder']}; name an empty database, or empty this one "
                f"with DROP SCHEMA {schema.SCHEMA} CASCADE if nobody needs what it holds"
            )
        self.id = move["id"]
        self.days = Days(json.loads(move["days"]), move["reached"])
        return move["finished_at"] is not None

    async def _require_empty(self) -> None:
        if await self._connection.fetchval(BROKERS, float(GONE_SECONDS)):
            raise StorageRefused(
                f"a broker uses {self.database}; stop it, and wait for {GONE_SECONDS} seconds if "
                "it was killed"
            )
        for table in (*HELD_TABLES, *SIDE_TABLES):
            # A database of an earlier release has not all of them.
            exists = await self._connection.fetchval("SELECT to_regclass($1)", f"taskqueue.{table}")
            if exists and await self._connection.fetchval(
                f"SELECT EXISTS (SELECT FROM taskqueue.{table})"
            ):
                raise StorageRefused(
                    f"{self.database} has rows of its own (table {table}), which a move would mix "
                    "with those of the folder; name an empty database"
                )

    async def _make_days(self) -> None:
        for day in self.days.recent(self._today):
            if day not in self._made_days:
                low, high = bounds_of(day)
                async with self._connection.transaction():
                    for table in DAILY:
                        await self._make_day(table, f"{table}_d{day}", low, high)
                self._made_days.add(day)

    async def _make_day(self, table: str, name: str, low: int, high: int) -> None:
        await self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS taskqueue.{name} "
            f"PARTITION OF taskqueue.{table} FOR VALUES FROM ({low}) TO ({high})"
        )
        # Whoever has the table must be able to drop its days.
        owner = await self._connection.fetchval(OWNER, table)
        if owner is not None:
            await self._connection.execute(f"ALTER TABLE taskqueue.{name} OWNER TO {owner}")

    async def _delete(self, places: Sequence[int]) -> None:
        if places:
            for table in TASK_TABLES:
                await self._connection.execute(
                    f"DELETE FROM taskqueue.{table} WHERE seq = ANY($1::bigint[])", list(places)
                )

    async def _copy(self, table: str, columns: list[str], rows: Iterable[Row]) -> None:
        if rows:
            await self._connection.copy_records_to_table(
                table, schema_name=schema.SCHEMA, columns=columns, records=rows
            )


def _ended(task: Row) -> bool:
    return task[STATUS] in ENDED


@contextmanager
def _explained(database: Database) -> Iterator[None]:
    """What PostgreSQL complains of is told with what to do about it."""
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as error:
        raise StorageRefused(
            f"this role may not move tasks to {database}: {error}; use the role that owns the "
            "schema, or the database"
        ) from error
    except LOST as error:
        raise BrokerUnavailable(
            f"The database {database} does not answer as it should: {error or type(error)}; run "
            "the same command again, it goes on from there"
        ) from error
    except asyncpg.PostgresError as error:
        raise StorageRefused(f"the move to {database} failed: {error}") from error
