"""The data folder: made private, and locked so that one broker at a time uses it."""

import fcntl
import os
from pathlib import Path
from typing import Final

from taskqueue.core.errors import StorageRefused

DATABASE_NAME: Final = "queue.db"
LOCK_NAME: Final = "broker.lock"


class DataFolder:
    """A folder that belongs to this process until `close`, or until the process ends."""

    def __init__(self, path: Path) -> None:
        """Make the folder if need be and lock it. Raises StorageRefused if that cannot be."""
        self.path = path
        self.database = path / DATABASE_NAME
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageRefused(
                f"the data folder {path} cannot be used: {error.strerror}; choose another one"
            ) from error
        try:
            # The kernel drops the lock with the process, however it ends: it is never stale.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise StorageRefused(
                f"the data folder {path} is in use by another broker; "
                "stop that one or choose another folder"
            ) from None

    def make_database(self) -> None:
        """See to it that the database file exists and is private."""
        os.close(os.open(self.database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def identity(self) -> tuple[int, int] | None:
        """Which file the database's path leads to now; None if there is none."""
        try:
            found = self.database.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def close(self) -> None:
        """Give the folder up."""
        os.close(self._lock)
