"""Brings a database to the schema this release knows, one numbered file in one transaction each."""

from importlib import resources
from typing import Final

import apsw

from taskqueue.core.errors import StorageRefused
from taskqueue.storage.sqlite.statements import row_of

_FOLDER: Final = resources.files("taskqueue.storage.sqlite") / "migrations"


def known_migrations() -> list[tuple[int, str]]:
    """Version and SQL of every migration, oldest first."""
    files = sorted(
        (file for file in _FOLDER.iterdir() if file.name.endswith(".sql")),
        key=lambda file: file.name,
    )
    return [(int(file.name[:4]), file.read_text()) for file in files]


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
    migrations = known_migrations()
    newest = migrations[-1][0]
    if version > newest:
        raise StorageRefused(
            f"the database has schema {version}, this release knows {newest}; "
            "start it with the release that last used it, or a newer one"
        )
    for number, sql in migrations:
        if number > version:
            with connection:
                connection.execute(sql)
                connection.execute(f"PRAGMA user_version = {number}")
