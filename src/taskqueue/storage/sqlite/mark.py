"""The commit number kept beside the database, which shows when acknowledged commits are missing.

SQLite drops a damaged tail of its write-ahead log without a word. The mark is written after each
commit, before its outcome is told, without a sync of its own: after a crash of the process it is
exact; after a power cut it may be behind the database, never ahead of what was synced.
"""

import os
import zlib
from pathlib import Path
from typing import Final

import structlog

from taskqueue.core.errors import StorageRefused
from taskqueue.storage.sqlite.folder import open_private

FILE_NAME: Final = "commit.mark"

log = structlog.get_logger(component="storage")


class CommitMark:
    """The number of the latest commit that was acknowledged."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        self._file = open_private(self.path)
        self._is_failing = False

    def require(self, commit_number: int) -> None:
        """Raise StorageRefused if the database ends before the commit that was acknowledged.

        Also raised where the mark cannot be read. One that is torn is taken for none.
        """
        marked = self._read()
        if marked is not None and commit_number < marked:
            raise StorageRefused(
                f"acknowledged commits {commit_number + 1}-{marked} are missing from the database: "
                "its write-ahead log was damaged or an older copy was put in place. Restore the "
                f"data folder from a backup, or delete {self.path} to go on without those commits"
            )

    def write(self, commit_number: int) -> None:
        """Note a commit. A mark that cannot be written is logged, once; commits go on."""
        digits = b"%020d" % commit_number
        try:
            os.pwrite(self._file, b"%s %08x\n" % (digits, zlib.crc32(digits)), 0)
        except OSError as error:
            if not self._is_failing:
                log.warning("the commit mark cannot be written", error=str(error))
            self._is_failing = True
        else:
            self._is_failing = False

    def sync(self) -> None:
        """Force the mark to the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _read(self) -> int | None:
        try:
            content = os.pread(self._file, 64, 0)
        except OSError as error:
            raise StorageRefused(
                f"{self.path} cannot be read: {error.strerror}; it tells whether acknowledged "
                "commits are missing. See to the disk, or delete the file to go on without it"
            ) from error
        digits, _, check = content.strip().partition(b" ")
        if digits.isdigit() and check == b"%08x" % zlib.crc32(digits):
            return int(digits)
        if content:
            log.warning("the commit mark is torn; it cannot tell whether commits are missing")
        return None
