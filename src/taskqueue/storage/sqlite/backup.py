"""Copies an embedded broker's database, while it runs or not, and puts copies into folders."""

import os
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

import apsw
from msgspec import Struct

from taskqueue.core.errors import StorageRefused
from taskqueue.storage.migrations import newest_of
from taskqueue.storage.sqlite.folder import (
    DATABASE_NAME,
    LOCK_NAME,
    DataFolder,
    open_private,
    sync_path,
)
from taskqueue.storage.sqlite.schema import MIGRATIONS
from taskqueue.storage.sqlite.statements import row_of

SLICE_PAGES: Final = 2_000
PATIENCE_MS: Final = 2_000

Told = Callable[[int, int], None]
"""Called with the pages copied and how many there are."""


class Copied(Struct, frozen=True):
    """What a copy holds: `tasks`, in so many bytes."""

    tasks: int
    size_bytes: int


def back_up(folder: Path, file: Path, told: Told) -> Copied:
    """Copy what is committed in a data folder at this moment to a new file.

    A broker on the folder goes on meanwhile. The file appears when it is whole and checked. Raises
    StorageRefused.
    """
    source = folder / DATABASE_NAME
    if not source.is_file():
        raise StorageRefused(
            f"there is no {DATABASE_NAME} in {folder}; name the data folder of the broker"
        )
    if file.exists():
        raise StorageRefused(f"{file} is there already; name a file that is not")
    return _copy(source, file, told)


def restore(file: Path, folder: Path, told: Told) -> Copied:
    """Put a copy into a data folder that has no database yet.

    Raises StorageRefused, also where a broker uses the folder.
    """
    if not file.is_file():
        raise StorageRefused(f"there is no file {file}; name what tq backup has written")
    place = DataFolder(folder)
    try:
        taken = sorted(one.name for one in folder.iterdir() if one.name != LOCK_NAME)
        if taken:
            raise StorageRefused(f"{folder} has {taken[0]} in it; restore into an empty folder")
        return _copy(file, place.database, told)
    finally:
        place.close()


def _copy(source: Path, target: Path, told: Told) -> Copied:
    part = target.with_name(f"{target.name}.part")
    try:
        part.unlink(missing_ok=True)  # of one that was killed
        os.close(open_private(part))
        copied = _copy_pages(source, part, told)
        sync_path(part)
        part.rename(target)
        sync_path(target.parent)
    except apsw.Error as error:
        raise StorageRefused(f"{source} cannot be copied to {target}: {error}") from error
    except OSError as error:
        raise StorageRefused(
            f"{target} cannot be written: {error.strerror}; choose another place"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return copied


def _copy_pages(source: Path, target: Path, told: Told) -> Copied:
    with (
        closing(apsw.Connection(str(source), apsw.SQLITE_OPEN_READONLY)) as theirs,
        closing(apsw.Connection(str(target))) as ours,
    ):
        theirs.set_busy_timeout(PATIENCE_MS)
        # One snapshot for all slices: else each commit of a broker would begin the copy anew.
        theirs.execute("BEGIN")
        _require_known(theirs, source)
        with ours.backup("main", theirs, "main") as work:
            while not work.done:
                work.step(SLICE_PAGES)
                told(work.page_count - work.remaining, work.page_count)
        theirs.execute("ROLLBACK")
        # Whole in itself: no log beside it.
        ours.execute("PRAGMA journal_mode = DELETE")
        (verdict,) = row_of(ours, "PRAGMA integrity_check(1)")
        if verdict != "ok":
            raise StorageRefused(f"{source} is damaged, and no copy was made: {verdict}")
        (tasks,) = row_of(ours, "SELECT count(*) FROM tasks")
        return Copied(tasks, target.stat().st_size)


def _require_known(connection: apsw.Connection, file: Path) -> None:
    (number,) = row_of(connection, "PRAGMA user_version")
    newest = newest_of(MIGRATIONS)
    if not 1 <= number <= newest:
        raise StorageRefused(
            f"{file} has schema {number} and this release knows 1 to {newest}: "
            "it is no broker's database, or that of a newer release"
        )
