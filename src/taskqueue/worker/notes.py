"""What an attempt says while it goes on, as workers and their child processes pass it on."""

from typing import Any, Final

from msgspec import Struct

from taskqueue.wire.workers import LARGEST_CHECKPOINT, LONGEST_LINE

PROGRESS: Final = "progress"
LOG: Final = "log"
CHECKPOINT: Final = "checkpoint"
EXTEND: Final = "extend"

NEWS: Final = (PROGRESS, LOG)
"""What is worth no failure if it cannot be told."""


class Note(Struct, frozen=True):
    """A word about an attempt: its kind, and the fields of the request that it makes."""

    kind: str
    fields: dict[str, Any]

    @property
    def is_news(self) -> bool:
        """Whether the attempt goes on as well if nobody hears it."""
        return self.kind in NEWS

    def command(self, task_id: str, token: int) -> list[bytes]:
        """The words that tell the broker."""
        fields = self.fields
        about = [task_id.encode(), b"%d" % token]
        match self.kind:
            case "progress":
                note = fields["note"].encode(errors="replace")
                return [b"TQ.PROGRESS", *about, f"{fields['fraction']:.6f}".encode(), b"NOTE", note]
            case "log":
                text = fields["message"].encode(errors="replace")
                return [b"TQ.LOG", *about, text, b"LEVEL", fields["level"].encode()]
            case "extend":
                return [b"TQ.EXTEND", *about, b"%d" % fields["seconds"]]
            case _:
                return [b"TQ.CHECKPOINT", *about, fields["data"]]


def progress(fraction: float, note: str) -> Note:
    """How far it is, from 0 to 1."""
    said = note.encode(errors="replace").decode()
    return Note(PROGRESS, {"fraction": float(fraction), "note": said})


def log_line(message: str, level: str) -> Note:
    """A line of the task's log, as much of it as is kept."""
    said = message[:LONGEST_LINE].encode(errors="replace").decode()
    return Note(LOG, {"message": said, "level": level})


def checkpoint(data: bytes) -> Note:
    """What the next attempt is to be given. Raises ValueError if that is too much."""
    if len(data) > LARGEST_CHECKPOINT:
        raise ValueError(
            f"a checkpoint may have at most {LARGEST_CHECKPOINT} bytes, this one has {len(data)}; "
            "keep the data elsewhere, and its place here"
        )
    return Note(CHECKPOINT, {"data": data})


def extend(seconds: float) -> Note:
    """So many seconds more from now, rounded up. Raises ValueError."""
    if not seconds > 0:
        raise ValueError(f"seconds must be more than 0, got {seconds}")
    return Note(EXTEND, {"seconds": -int(-seconds // 1)})
