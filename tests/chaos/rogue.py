"""A worker that breaks the rules: `python -m tests.chaos.rogue FOLDER ADDRESS SEED`.

It speaks the protocol itself, completes twice, keeps old tokens to use them later, and often says
nothing until long after its lease.
"""

import os
import random
import socket
import sys
import time
from pathlib import Path
from typing import Any

import hiredis

from taskqueue.wire import resp
from tests.chaos.history import History, Outcome, digest_of


class Line:
    """A blocking connection that comes back when the broker does."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host, int(port))
        self._socket: socket.socket | None = None
        self._reader = hiredis.Reader()

    def ask(self, *words: bytes) -> Any:
        """The answer; raises OSError where there is none."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, 5)
            self._reader = hiredis.Reader()
        try:
            self._socket.sendall(resp.command(*words))
            while (answer := self._reader.gets()) is False:
                data = self._socket.recv(1 << 16)
                if not data:
                    raise ConnectionError("hung up")
                self._reader.feed(data)
        except OSError:
            self._socket.close()
            self._socket = None
            raise
        return answer


def main(folder: Path, address: str, seed: int) -> None:
    """Break the rules until killed."""
    chance = random.Random(seed)
    history = History(folder, f"rogue-{os.getpid()}")
    line, worker = Line(address), f"rogue-{os.getpid()}".encode()
    old: list[tuple[bytes, int, bytes]] = []
    while True:
        try:
            claim = (b"TQ.CLAIM", worker, b"COUNT", b"3", b"BLOCK", b"500", b"TYPES")
            for task_id, token, _, payload, *_ in line.ask(*claim, b"chaos", b"chaos-thread"):
                name = task_id.decode()
                history.note("run", name, "ok", token=token, digest=digest_of(payload))
                old.append((task_id, token, digest_of(payload).encode()))
                if chance.random() < 0.7:
                    complete(line, history, old[-1])
                if chance.random() < 0.3:
                    complete(line, history, old[-1])  # once more, or late
            if old and chance.random() < 0.5:
                complete(line, history, chance.choice(old))
            if chance.random() < 0.02:
                time.sleep(chance.uniform(0, 5))
        except OSError:
            time.sleep(0.1)


def complete(line: Line, history: History, what: tuple[bytes, int, bytes]) -> None:
    """Say that a task is done, true or not, and note what the broker says to that."""
    task_id, token, result = what
    outcome: Outcome = "unknown"
    text = ""
    try:
        answer = line.ask(b"TQ.COMPLETE", task_id, b"%d" % token, b"RESULT", result)
        text = str(answer)
        outcome = "fail" if isinstance(answer, hiredis.ReplyError) else "ok"
        if text.startswith("BROKER_UNAVAILABLE"):
            outcome = "unknown"
    finally:
        history.note(
            "complete", task_id.decode(), outcome, token=token, digest=result.decode(), answer=text
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
