"""Brings a database to the schema this release knows, all missing files in one transaction."""

from importlib import resources
from typing import Final

from taskqueue.core.errors import StorageRefused
from taskqueue.storage.migrations import newest_of, numbered_files
from taskqueue.storage.postgres.connections import Connection

SCHEMA: Final = "taskqueue"
"""The schema of the database that everything is in."""

MIGRATION_LOCK: Final = 0x7461736B71756575
"""An advisory lock, held by whoever migrates."""

EXISTS: Final = """
    SELECT EXISTS (SELECT FROM pg_tables WHERE schemaname = $1 AND tablename = 'migrations')"""
UNFINISHED: Final = "SELECT folder FROM taskqueue.move WHERE finished_at IS NULL"
VERSION: Final = "SELECT coalesce(max(number), 0) FROM taskqueue.migrations"

MIGRATIONS: Final = numbered_files(resources.files("taskqueue.storage.postgres") / "migrations")


async def migrate(connection: Connection, *, dry_run: bool = False) -> list[int]:
    """Carry out the migrations that are missing; returns their numbers.

    Brokers that start at the same time wait for each other. With `dry_run` everything is carried
    out and taken back. Raises StorageRefused if the database is newer than this release.
    """
    transaction = connection.transaction(isolation="read_committed")
    await transaction.start()
    try:
        await connection.execute("SELECT pg_advisory_xact_lock($1)", MIGRATION_LOCK)
        version = await schema_version(connection)
        require_known(version)
        missing = [(number, sql) for number, sql in MIGRATIONS if number > version]
        if version == 0:
            await _make_schema(connection)
        await connection.execute(f"SET LOCAL search_path = {SCHEMA}")
        for number, sql in missing:
            await connection.execute(sql)
            await connection.execute(
                "INSERT INTO taskqueue.migrations (number) VALUES ($1)", number
            )
    except BaseException:
        await transaction.rollback()
        raise
    if dry_run:
        await transaction.rollback()
    else:
        await transaction.commit()
    return [number for number, _ in missing]


async def schema_version(connection: Connection) -> int:
    """The number of the latest migration; 0 for a database without the schema."""
    # Not by to_regclass: what that remembers may be older than the lock that was waited for.
    if not await connection.fetchval(EXISTS, SCHEMA):
        return 0
    return int(await connection.fetchval(VERSION))


def require_known(version: int) -> None:
    """Raise StorageRefused if the database is newer than this release."""
    newest = newest_of(MIGRATIONS)
    if version > newest:
        raise StorageRefused(
            f"the database has schema {version}, this release knows {newest}; "
            "start it with the release that last used it, or a newer one"
        )


async def require_whole(connection: Connection) -> None:
    """Raise StorageRefused while tasks are being moved here from the embedded engine."""
    folder = await connection.fetchval(UNFINISHED)
    if folder is not None:
        raise StorageRefused(
            f"not all tasks of the data folder {folder} are in this database yet: run tq move "
            f"--from {folder} again, to its end. To give the move up, drop the schema {SCHEMA}; "
            "the folder still has every task"
        )


async def _make_schema(connection: Connection) -> None:
    # IF NOT EXISTS would want the right to make one even where there is one.
    if not await connection.fetchval(
        "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)", SCHEMA
    ):
        await connection.execute(f"CREATE SCHEMA {SCHEMA}")
    await connection.execute(
        "CREATE TABLE taskqueue.migrations "
        "(number integer PRIMARY KEY, at timestamptz NOT NULL DEFAULT clock_timestamp())"
    )
