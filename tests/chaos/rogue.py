"""A worker that breaks the rules: `python -m tests.chaos.rogue FOLDER ADDRESS SEED`.

It speaks the protocol itself, never beats, completes twice and with other results, keeps old
tokens to use them later, makes tokens up, and is silent at times until long after its lease.
"""

import os
import random
import socket
import sys
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import hiredis

from taskqueue.wire import resp
from tests.chaos.history import Args, History, digest_of

MOST_KEPT = 500


class Connection:
    """A blocking connection that comes back when the broker does."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address = (host, int(port))
        self._socket: socket.socket | None = None
        self._reader = hiredis.Reader()

    def ask(self, *words: bytes) -> Any:
        """The answer, an error included; raises OSError where there is none."""
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


class Claim(NamedTuple):
    """A task that this worker had at some time."""

    task_id: str
    token: int
    payload: str


class Rogue:
    """What it does, in the order of its history."""

    def __init__(self, folder: Path, address: str, seed: int) -> None:
        self.chance = random.Random(seed)
        self.kept: list[Claim] = []
        self._history = History(folder, "rogue")
        self._connection = Connection(address)
        self._worker = f"rogue-{os.getpid()}".encode()

    def claim(self) -> list[Claim]:
        """Claim a few tasks."""
        sent_ns = time.monotonic_ns()
        words = [b"TQ.CLAIM", self._worker, b"COUNT", b"3", b"BLOCK", b"500", b"TYPES"]
        answer = self._connection.ask(*words, b"chaos", b"chaos-thread")
        if isinstance(answer, hiredis.ReplyError):
            raise OSError(str(answer))
        claims = [
            Claim(name.decode(), token, digest_of(data)) for name, token, _, data, *_ in answer
        ]
        for one in claims:
            args = Args(task_id=one.task_id, token=one.token, payload=one.payload)
            self._history.note("claim", args, sent_ns)
        self.kept = (self.kept + claims)[-MOST_KEPT:]
        return claims

    def complete(self, claim: Claim, *, ahead: int = 0) -> None:
        """Say that a task is done, true or not, with a result unlike any other."""
        token = claim.token + ahead
        result = f"{claim.payload} {token} {self.chance.random()}".encode()
        self._tell("complete", claim, token, digest_of(result), b"RESULT", result)

    def fail(self, claim: Claim) -> None:
        """Say that a task failed."""
        self._tell("fail", claim, claim.token, "", b"on purpose", b"DELAY", b"0.1")

    def release(self, claim: Claim) -> None:
        """Give a task back."""
        self._tell("release", claim, claim.token, "")

    def _tell(
        self,
        op: Literal["complete", "fail", "release"],
        claim: Claim,
        token: int,
        result: str,
        *rest: bytes,
    ) -> None:
        call = self._history.begin(op, Args(task_id=claim.task_id, token=token, result=result))
        name, number = claim.task_id.encode(), b"%d" % token
        answer = self._connection.ask(f"TQ.{op.upper()}".encode(), name, number, *rest)
        if not isinstance(answer, hiredis.ReplyError):
            call.ended("ok", answer.decode())
        elif str(answer).startswith("BROKER_UNAVAILABLE"):
            call.ended("unknown", str(answer))  # the code does not say whether it is
        else:
            call.ended("fail", str(answer))


def misbehave(rogue: Rogue) -> None:
    """Claim, and end most of it in one way or another, some of it more than once."""
    chance = rogue.chance
    ways = [rogue.complete, rogue.complete, rogue.complete, rogue.fail, rogue.release]
    for claim in rogue.claim():
        if chance.random() < 0.85:
            chance.choice(ways)(claim)
        if chance.random() < 0.3:
            chance.choice(ways)(claim)
    if rogue.kept and chance.random() < 0.7:
        chance.choice(ways)(chance.choice(rogue.kept))
    if rogue.kept and chance.random() < 0.1:
        rogue.complete(chance.choice(rogue.kept), ahead=1_000)
    if chance.random() < 0.02:
        time.sleep(chance.uniform(0, 5))  # longer than its lease, at times
    time.sleep(chance.uniform(0, 0.05))


def main(folder: Path, address: str, seed: int) -> None:
    """Break the rules until killed."""
    rogue = Rogue(folder, address, seed)
    while True:
        try:
            misbehave(rogue)
        except OSError:
            time.sleep(0.1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
