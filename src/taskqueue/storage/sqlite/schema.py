"""Brings a database to the schema this release knows, one numbered file in one transaction each."""

from importlib import resources
from typing import Final

import apsw

from taskqueue.core.errors import StorageRefused
from taskqueue.storage.migrations import newest_of, numbered_files
from taskqueue.storage.sqlite.statements import row_of

MIGRATIONS: Final = numbered_files(resources.files("taskqueue.storage.sqlite") / "migrations")


def known_commit(connection: apsw.Connection) -> int:
    """The number of the latest commit; 0 for a database that is still empty."""
    if not int(row_of(connection, "PRAGMA user_version")[0]):
        return 0
    return int(row_of(connection, "SELECT commit_number FROM ledger")[0])


def migrate(connection: apsw.Connection) -> None:
    """Carry out the migrations that are missing.

    Raises StorageRefused if the database is newer than this release.
    """
    version = int(row_of(connection, "PRAGMA user_version")[0])
    newest = newest_of(MIGRATIONS)
    if version > newest:
        raise StorageRefused(
            f"the database has schema {version}, this release knows {newest}; "
            "start it with the release that last used it, or a newer one"
        )
    for number, sql in MIGRATIONS:
        if number > version:
            with connection:
                connection.execute(sql)
                connection.execute(f"PRAGMA user_version = {number}")
