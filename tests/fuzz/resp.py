"""`python -m tests.fuzz.resp --inputs 1000000`: what anybody may send to the native port.

Every input goes to the parser and, as far as it holds commands, to their grammars, whole and in
pieces; a part of them also goes to a started server. Reported are inputs that raise what they may
not, that read differently in pieces, that take long, and memory that grows.
"""

import argparse
import contextlib
import random
import socket
import tempfile
import time
from pathlib import Path

import redis

from taskqueue.core.errors import TaskQueueError
from taskqueue.doors.grammar import GRAMMARS
from taskqueue.wire.resp import RequestReader
from tests.fuzz.inputs import inputs, one_input, pieces
from tests.fuzz.memory import resident
from tests.support.broker import BrokerProcess, a_broker_process

LONGEST_SECONDS = 1.0
MOST_GROWTH = 32 * 1024 * 1024
SETTLED_AFTER = 20_000
"""Inputs after which caches are full and memory should grow no more."""

Command = list[bytes]


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.resp", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=20_000, help="inputs for the server")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    print(parse_all(seed, options.inputs), flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        a_broker_process(Path(folder) / "data", "--rate-limit", "0") as broker,
    ):
        print(send_all(broker, seed, options.connections), flush=True)


def parse_all(seed: int, number: int) -> str:
    """Put inputs through the parser and the grammars. Raises AssertionError with a finding."""
    rng = random.Random(seed)
    settled, slowest, commands = 0, 0.0, 0
    for place, data in enumerate(inputs(seed, number)):
        begun = time.perf_counter()
        whole = read([data])
        commands += len(whole[0])
        for words in whole[0]:
            understand(words)
        slowest = max(slowest, time.perf_counter() - begun)
        assert slowest < LONGEST_SECONDS, data
        assert read(pieces(rng, data)) == whole, data
        if place == SETTLED_AFTER:
            settled = resident()
    growth = resident() - settled if settled else 0
    assert growth < MOST_GROWTH, f"memory grew by {growth} bytes"
    return (
        f"{number} inputs with {commands} commands: no crash, no hang (slowest "
        f"{slowest * 1000:.1f} ms), memory grew by {growth // 1024} KiB"
    )


def read(parts: list[bytes]) -> tuple[list[Command], str]:
    """What the parser makes of bytes that come in these parts."""
    reader = RequestReader()
    commands = [command for part in parts for command in reader.feed(part)]
    assert reader.held <= sum(map(len, parts)) + 12 * 2**20
    return commands, type(reader.fault).__name__


def understand(words: Command) -> None:
    """Have its grammar read a command; all it may raise is an error of the queue."""
    grammar = GRAMMARS.get(words[0].upper()) if words else None
    if grammar is None:
        return
    with contextlib.suppress(TaskQueueError):
        grammar.request(words[1:])


def send_all(broker: BrokerProcess, seed: int, number: int) -> str:
    """Send inputs to a server, which then must be as well as before."""
    rng = random.Random(seed)
    host, _, port = broker.native.rpartition(":")
    settled = 0
    for place in range(number):
        send_one(host, int(port), b"".join(one_input(rng) for _ in range(rng.randrange(1, 4))))
        if place == min(2_000, number // 2):
            settled = resident(str(broker.pid))
    client = redis.Redis(host=host, port=int(port))
    assert client.ping()
    client.close()
    assert broker.health()["status"] == "healthy"
    growth = resident(str(broker.pid)) - settled
    assert growth < 2 * MOST_GROWTH, f"the server grew by {growth} bytes"
    log = broker.folder.with_suffix(".log").read_text()
    assert "Traceback" not in log, log[-4_000:]
    return f"{number} connections to a server: it is well, memory grew by {growth // 1024} KiB"


def send_one(host: str, port: int, data: bytes) -> None:
    """Send bytes and hang up, with or without reading the answers."""
    with socket.create_connection((host, port), timeout=20) as connection:
        try:
            connection.sendall(data)
            if len(data) % 2:
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(65_536):
                    pass
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has hung up on us, as it may


if __name__ == "__main__":
    main()
