"""A disk that fails on demand: an SQLite VFS between the engine and the real files."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import apsw


class FailingDisk(apsw.VFS):
    """Passes everything on to the real disk until a switch is set.

    `sync_fails` and `write_fails` apply to the write-ahead log, as a full disk or a bad one would
    show first; `database_fails` to the database file, where checkpoints write. `write_error` is
    what a failing write raises. `after_sync` is called once the log has been synced.
    """

    def __init__(self, name: str = "failing-disk") -> None:
        self.sync_fails = False
        self.write_fails = False
        self.database_fails = False
        self.after_sync: Callable[[], object] = lambda: None
        self.write_error: type[apsw.Error] = apsw.FullError
        super().__init__(name=name, base="unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> "_File":
        return _File(self, name, flags)


class _File(apsw.VFSFile):
    def __init__(self, disk: FailingDisk, name: Any, flags: list[int]) -> None:
        self._disk = disk
        self._is_log = bool(flags[0] & apsw.SQLITE_OPEN_WAL)
        self._is_database = bool(flags[0] & apsw.SQLITE_OPEN_MAIN_DB)
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        log_fails = self._disk.write_fails and self._is_log
        if log_fails or (self._disk.database_fails and self._is_database):
            raise self._disk.write_error("the test's disk takes no more")
        super().xWrite(data, offset)

    def xSync(self, flags: int) -> None:
        if self._disk.sync_fails and self._is_log:
            raise apsw.IOError("the test's disk does not sync")
        super().xSync(flags)
        if self._is_log:
            self._disk.after_sync()


@contextmanager
def a_failing_disk() -> Iterator[FailingDisk]:
    """Every database opened in the block lies on a disk that can be told to fail."""
    disk = FailingDisk()
    try:
        yield disk
    finally:
        disk.unregister()
