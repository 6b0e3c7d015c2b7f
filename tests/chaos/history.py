"""What the clients of a crash test did and saw: lines of JSON, a file for each client.

A line is written before the request is sent and again when its answer is there, so that a kill
loses at most the answer. All times are of the machine's monotonic clock, which its processes share.
"""

import os
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

# "run" is a handler of the SDK's worker, "fault" what the parent did to the others.
Op = Literal[
    "submit", "get", "result", "cancel", "claim", "run", "complete", "fail", "release", "fault"
]
Outcome = Literal["ok", "fail", "unknown"]


class Args(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was asked for. `payload` and `result` are digests, `delay` is in seconds."""

    task_id: str = ""
    token: int = 0
    payload: str = ""
    result: str = ""
    delay: float = 0.0
    fault: str = ""


class Line(msgspec.Struct, frozen=True):
    """One thing a client did, under the number it gave it.

    `fail` only where the answer proves that nothing happened; a lost connection is `unknown`.
    `done_ns` is 0 where no end was seen. `answer` is the result's digest for "result", the status
    for "get", an error as it was worded, or what the broker said.
    """

    n: int
    client: str
    op: Op
    args: Args
    sent_ns: int
    done_ns: int = 0
    outcome: Outcome = "unknown"
    answer: str = ""


class Call:
    """Something a client has begun."""

    def __init__(self, history: "History", line: Line) -> None:
        self._history = history
        self._line = line

    def ended(self, outcome: Outcome, answer: str = "") -> None:
        """Note how it ended."""
        self._history.write(
            replace(self._line, done_ns=time.monotonic_ns(), outcome=outcome, answer=answer)
        )


class History:
    """A client's own file."""

    def __init__(self, folder: Path, role: str) -> None:
        self._client = f"{role}-{os.getpid()}-{time.monotonic_ns():x}"
        self._file = (folder / f"{self._client}.jsonl").open("xb", buffering=0)
        self._latest = 0

    def begin(self, op: Op, args: Args) -> Call:
        """Note that something is about to be done."""
        self._latest += 1
        line = Line(self._latest, self._client, op, args, time.monotonic_ns())
        self.write(line)
        return Call(self, line)

    def note(self, op: Op, args: Args, sent_ns: int) -> None:
        """Note something that has been done well, and when it was begun."""
        self._latest += 1
        done_ns = time.monotonic_ns()
        self.write(Line(self._latest, self._client, op, args, sent_ns, done_ns, "ok"))

    def close(self) -> None:
        """Close the file; a process that ends need not."""
        self._file.close()

    def write(self, line: Line) -> None:
        """Write a line in one piece."""
        self._file.write(msgspec.json.encode(line) + b"\n")


def digest_of(data: bytes) -> str:
    """What stands for bytes in a history."""
    return sha256(data).hexdigest()[:32]


def read_histories(folder: Path) -> list[Line]:
    """What all clients noted: of each thing the latest, one cut short by a kill left out."""
    latest = {
        (line.client, line.n): line
        for file in sorted(folder.glob("*.jsonl"))
        for line in _read(file)
    }
    return list(latest.values())


def _read(file: Path) -> Iterator[Line]:
    for line in file.read_bytes().splitlines():
        try:
            yield msgspec.json.decode(line, type=Line)
        except msgspec.DecodeError:
            continue
