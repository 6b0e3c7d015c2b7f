"""What the clients of a crash test saw, a line of JSON for each thing they did."""

import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Literal

import msgspec

Outcome = Literal["ok", "fail", "unknown"]


class Line(msgspec.Struct, frozen=True):
    """One thing a client did.

    `fail` only where the answer proves that nothing happened; a lost connection is `unknown`.
    `digest` is that of the payload or the result.
    """

    client: str
    op: Literal["submit", "cancel", "run", "complete"]
    task_id: str
    outcome: Outcome
    at_ns: int
    token: int = 0
    digest: str = ""
    answer: str = ""


class History:
    """A client's own file, written line by line so that a kill loses at most the last one."""

    def __init__(self, folder: Path, client: str) -> None:
        self._client = client
        self._file = (folder / f"{client}.jsonl").open("ab", buffering=0)

    def note(
        self,
        op: Literal["submit", "cancel", "run", "complete"],
        task_id: str,
        outcome: Outcome,
        *,
        token: int = 0,
        digest: str = "",
        answer: str = "",
    ) -> None:
        """Write a line."""
        line = Line(self._client, op, task_id, outcome, time.time_ns(), token, digest, answer)
        self._file.write(msgspec.json.encode(line) + b"\n")


def digest_of(data: bytes) -> str:
    """What stands for bytes in a history."""
    return sha256(data).hexdigest()


def read_histories(folder: Path) -> Iterator[Line]:
    """All lines of all clients; one cut short by a kill is left out."""
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_bytes().splitlines():
            try:
                yield msgspec.json.decode(line, type=Line)
            except msgspec.DecodeError:
                continue
