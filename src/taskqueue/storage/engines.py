"""Which engine a setting means."""

from pathlib import Path

from taskqueue.storage.port import Storage
from taskqueue.storage.sqlite.engine import SqliteStorage


def open_storage(folder: Path) -> Storage:
    """The embedded engine on a data folder; `Storage.open` takes possession of it."""
    return SqliteStorage(folder)
