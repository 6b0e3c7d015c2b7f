"""Which engine a setting means."""

from pathlib import Path

from taskqueue.storage.port import Storage
from taskqueue.storage.sqlite.engine import SqliteStorage


def open_storage(folder: Path, engine: str = "") -> Storage:
    """The embedded engine on a data folder, or the database that `engine` is the URL of.

    `Storage.open` takes possession of it.
    """
    if not engine:
        return SqliteStorage(folder)
    # Its library takes a while to import, and most brokers have no use for it.
    from taskqueue.storage.postgres.connections import database_at
    from taskqueue.storage.postgres.engine import PostgresStorage

    return PostgresStorage(database_at(engine))
