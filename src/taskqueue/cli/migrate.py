"""`tq migrate`: brings the database that brokers share to the schema of this release."""

import asyncio
import os
from pathlib import Path
from typing import Annotated

import asyncpg
from cyclopts import Parameter

from taskqueue.core.errors import StorageRefused
from taskqueue.settings.errors import SettingsError
from taskqueue.settings.sources import load_settings
from taskqueue.storage.postgres import schema
from taskqueue.storage.postgres.connections import (
    LOST,
    Connection,
    close,
    connect,
    database_at,
    unavailable,
)


def migrate(
    *,
    engine: Annotated[
        str | None,
        Parameter(help="postgresql://… of the database, else TQ_ENGINE or the settings file"),
    ] = None,
    dry_run: Annotated[
        bool, Parameter(negative="", help="say what would be done, having tried it")
    ] = False,
    config: Annotated[Path | None, Parameter(help="settings file, instead of ./tq.toml")] = None,
) -> None:
    """Bring the database up to date; say which migrations were carried out."""
    loaded = load_settings({"storage.engine": engine}, os.environ, config)
    url = loaded.settings.storage.engine
    if not url:
        raise SettingsError(
            "no database is named: give --engine postgresql://…, set TQ_ENGINE, or engine in "
            "section [storage] of the settings file; the embedded engine needs no migrations"
        )
    done = asyncio.run(_bring_up_to_date(url, dry_run=dry_run))
    for number in done:
        print(f"migration {number:04}\t{'would be' if dry_run else 'was'} carried out")
    if not done:
        print("the schema is up to date")


async def _bring_up_to_date(url: str, *, dry_run: bool) -> list[int]:
    try:
        database = database_at(url)
        connection = await connect(database, "read-write", "migration")
    except (ValueError, OverflowError):
        # What they say may have parts of the password in it.
        raise SettingsError(
            "the address of the database cannot be read; it has the form "
            "postgresql://USER:PASSWORD@HOST:PORT/DATABASE, with %40 for an @ in the password, "
            "%2F for a / and %3A for a :"
        ) from None
    try:
        return await _migrated(connection, dry_run=dry_run)
    except LOST as error:
        raise unavailable(database, error) from error
    finally:
        await close(connection)


async def _migrated(connection: Connection, *, dry_run: bool) -> list[int]:
    try:
        return await schema.migrate(connection, dry_run=dry_run)
    except asyncpg.InsufficientPrivilegeError as error:
        raise StorageRefused(
            f"this role may not migrate the database: {error}; use the role that owns the schema"
        ) from error
    except LOST:
        raise
    except asyncpg.PostgresError as error:
        raise StorageRefused(f"the migration failed, nothing was changed: {error}") from error
