"""A disk whose every write and sync is on record, and what a power cut may leave of it."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import apsw

SECTOR = 512


@dataclass
class Step:
    """One thing that was done to a file, or a note of the test's between two of them."""

    kind: str
    file: str = ""
    offset: int = 0
    data: bytes = b""
    note: Any = None


@dataclass
class Contents:
    """A file as it is known to be on the disk, and what was done to it since."""

    durable: bytearray = field(default_factory=bytearray)
    since: list[Step] = field(default_factory=list)


class RecordingDisk(apsw.VFS):
    """Passes everything on to the real disk and keeps it on record."""

    def __init__(self, name: str = "recording-disk") -> None:
        self.steps: list[Step] = []
        super().__init__(name=name, base="unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> "_File":
        return _File(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        self.steps.append(Step("delete", Path(filename).name))

    def note(self, note: Any) -> None:
        """Mark a moment, with whatever belongs to it."""
        self.steps.append(Step("note", note=note))

    def latest_note(self, moment: int) -> Any:
        """The last mark that was set before a moment."""
        notes = [step.note for step in self.steps[:moment] if step.kind == "note"]
        return notes[-1] if notes else None

    def leave(self, moment: int, chance: random.Random | None, folder: Path) -> None:
        """Write what is there after a power cut, or with no `chance` after a mere crash.

        What was synced stays. Of the writes since, some are lost, and one may be torn.
        """
        folder.mkdir()
        files: dict[str, Contents] = {}
        steps = self.steps[:moment]
        for number, step in enumerate(steps):
            if step.kind == "delete":
                # The first sync of a new log syncs the folder as well, and so what went before.
                is_synced = any(later.kind == "sync" for later in steps[number:])
                if is_synced or chance is None or chance.random() < 0.5:
                    files.pop(step.file, None)
            elif step.kind == "sync":
                contents = files.setdefault(step.file, Contents())
                _carry_out(contents.durable, contents.since)
                contents.since.clear()
            elif step.kind in ("write", "truncate"):
                files.setdefault(step.file, Contents()).since.append(step)
        for name, contents in files.items():
            kept = contents.since if chance is None else _survivors(contents.since, chance)
            _carry_out(contents.durable, kept)
            (folder / name).write_bytes(contents.durable)


class _File(apsw.VFSFile):
    def __init__(self, disk: RecordingDisk, name: Any, flags: list[int]) -> None:
        self._steps = disk.steps
        self._name = Path(name.filename() if isinstance(name, apsw.URIFilename) else name).name
        super().__init__("unix", name, flags)

    def xWrite(self, data: bytes, offset: int) -> None:
        super().xWrite(data, offset)
        self._steps.append(Step("write", self._name, offset, bytes(data)))

    def xTruncate(self, size: int) -> None:
        super().xTruncate(size)
        self._steps.append(Step("truncate", self._name, size))

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._steps.append(Step("sync", self._name))


def _survivors(steps: list[Step], chance: random.Random) -> list[Step]:
    kept = [step for step in steps if chance.random() < 0.5]
    if kept and kept[-1].kind == "write":
        torn = kept[-1]
        sectors = chance.randrange(len(torn.data) // SECTOR + 1)
        kept[-1] = Step("write", torn.file, torn.offset, torn.data[: sectors * SECTOR])
    return kept


def _carry_out(contents: bytearray, steps: list[Step]) -> None:
    for step in steps:
        if step.kind == "truncate":
            del contents[step.offset :]
        else:
            contents.extend(bytes(max(0, step.offset - len(contents))))
            contents[step.offset : step.offset + len(step.data)] = step.data


@contextmanager
def a_recording_disk() -> Iterator[RecordingDisk]:
    """Every database opened in the block lies on a disk that keeps a record."""
    disk = RecordingDisk()
    try:
        yield disk
    finally:
        disk.unregister()
