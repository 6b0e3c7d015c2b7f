"""The note in a data folder that says to which database its tasks are moved."""

import os
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from taskqueue.core.errors import StorageRefused
from taskqueue.storage.sqlite.folder import open_private

FILE_NAME: Final = "moved.json"


class Note(Struct, frozen=True, forbid_unknown_fields=True):
    """What a move leaves: the folder's id, and once it is finished the database and its id.

    The database is told without user and password.
    """

    id: str
    to: str = ""
    target: str = ""


def read_note(folder: Path) -> Note | None:
    """The note in a folder; None if nobody has begun to move it. Raises StorageRefused."""
    path = folder / FILE_NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=Note)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageRefused(
            f"{path} cannot be read: {error.strerror}; it tells whether the tasks were moved to "
            "another engine. See to it that this user may read it"
        ) from error
    except msgspec.MsgspecError as error:
        raise StorageRefused(
            f"{path} makes no sense: {error}; it tells whether the tasks were moved to another "
            "engine. Delete it if you know that they were not"
        ) from error


def write_note(folder: Path, note: Note) -> None:
    """Leave the note, durably, in the place of the one before. Raises OSError, StorageRefused."""
    fresh = folder / f"{FILE_NAME}.new"
    fresh.unlink(missing_ok=True)
    with os.fdopen(open_private(fresh), "wb") as file:
        file.write(msgspec.json.encode(note))
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(folder / FILE_NAME)
    entries = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(entries)
    finally:
        os.close(entries)


def require_not_moved(folder: Path) -> None:
    """Raise StorageRefused if the tasks of a folder are in another engine now."""
    note = read_note(folder)
    if note is not None and note.target:
        raise StorageRefused(
            f"the tasks of {folder} were moved to {note.to}: start brokers with --engine and that "
            f"address. To use the folder all the same, delete {folder / FILE_NAME}; tasks that are "
            "in both places are then done twice"
        )
