"""The data folder: made private, and locked so that one broker at a time uses it."""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from taskqueue.core.errors import StorageRefused

DATABASE_NAME: Final = "queue.db"
LOCK_NAME: Final = "broker.lock"

FileIdentity = tuple[int, int]
"""Device and inode."""


class FolderInUse(StorageRefused):
    """Another process has the folder."""


class DataFolder:
    """A folder that belongs to this process until `close`, or until the process ends."""

    def __init__(self, path: Path) -> None:
        """Make the folder if need be and lock it. Raises StorageRefused if that cannot be."""
        self.path = path
        self.database = path / DATABASE_NAME
        self.log = path / f"{DATABASE_NAME}-wal"
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageRefused(
                f"the data folder {path} cannot be used: {error.strerror}; choose another one"
            ) from error
        self._lock = open_private(path / LOCK_NAME)
        try:
            # The kernel drops the lock with the process, however it ends: it is never stale.
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise FolderInUse(
                f"the data folder {path} is in use by another broker; "
                "stop that one or choose another folder"
            ) from None
        except OSError as error:
            os.close(self._lock)
            raise StorageRefused(
                f"the data folder {path} cannot be locked: {error.strerror}; "
                "choose one on a local disk"
            ) from error

    def make_database(self) -> None:
        """See to it that the database file exists and is private. Raises StorageRefused."""
        os.close(open_private(self.database))
        # The folder's own entry; those in it SQLite syncs. Not every parent may be read.
        with contextlib.suppress(OSError):
            sync_path(self.path.parent)

    def close(self) -> None:
        """Give the folder up."""
        os.close(self._lock)


def open_private(path: Path) -> int:
    """A descriptor of the file, made for this user alone if need be. Raises StorageRefused."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageRefused(
            f"the file {path} cannot be opened: {error.strerror}; "
            "let this user write it or choose another data folder"
        ) from error


def identity(path: Path) -> FileIdentity | None:
    """Which file a path leads to now; None if there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116  twice as fast, four times in each commit
    except OSError:
        return None
    return found.st_dev, found.st_ino


def sync_path(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
