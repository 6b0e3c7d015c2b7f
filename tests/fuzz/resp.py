"""`python -m tests.fuzz.resp --inputs 1000000`: what anybody may send to the native port.

Every input goes to the parser and, as far as it holds commands, to their grammars, whole and in
pieces; a part of them also goes to a started server. Reported are inputs that raise what they may
not, that read differently in pieces, that take long, and memory that grows.
"""

import argparse
import asyncio
import gc
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Final

from taskqueue.core.errors import InvalidRequest, PayloadTooLarge
from taskqueue.doors.grammar import GRAMMARS
from taskqueue.wire.resp import RequestReader
from tests.fuzz.inputs import encoded, inputs, one_input, pieces
from tests.hardening.bystander import assert_well, memory_of, resident
from tests.support.broker import BrokerProcess, a_broker_process

HANGS_AFTER: Final = 20
"""Seconds for one input, on a machine however busy."""

MOST_GROWTH: Final = 32 * 1024 * 1024
SETTLED_AFTER: Final = 20_000
"""Inputs after which caches are full and memory should grow no more."""

LARGEST_HELD: Final = 12 * 1024 * 1024
LEAST_UNDERSTOOD: Final = 0.1
"""Of the commands; with fewer, the generator would only test how nonsense is refused."""

AT_ONCE: Final = 20
KEY: Final = "a-key-for-automation-of-32-characters-or-more"
LOGIN: Final = encoded([b"AUTH", KEY.encode()])
KNOWN: Final = 0.8
"""Of the connections, those that show a key first."""

LEAST_ANSWERED: Final = 0.5
"""Of the connections; seven of ten wait for their answers."""

Command = list[bytes]
Reading = tuple[list[Command], str]


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.resp", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--connections", type=int, default=30_000, help="clients of the server")
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    if options.inputs:
        print(parse_all(seed, options.inputs), flush=True)
    if options.connections:
        with tempfile.TemporaryDirectory() as folder, a_server_with_a_key(Path(folder)) as broker:
            print(asyncio.run(send_all(broker, seed, options.connections)), flush=True)


@contextmanager
def a_server_with_a_key(folder: Path) -> Iterator[BrokerProcess]:
    """A server that demands a key: else the first one that is created by chance locks out all."""
    os.environ["TQ_BOOTSTRAP_KEY"] = KEY
    try:
        with a_broker_process(folder / "data", "--rate-limit", "0") as broker:
            yield broker
    finally:
        del os.environ["TQ_BOOTSTRAP_KEY"]


def parse_all(seed: int, number: int) -> str:
    """Put inputs through the parser and the grammars. Raises AssertionError with a finding."""
    rng = random.Random(seed)
    settled, slowest, commands, understood = 0, 0.0, 0, 0
    with a_watchdog() as watch:
        for place, data in enumerate(inputs(seed, number)):
            watch(data)
            begun = time.perf_counter()
            whole = read([data])
            commands += len(whole[0])
            understood += sum(map(understand, whole[0]))
            slowest = max(slowest, time.perf_counter() - begun)
            assert read(pieces(rng, data)) == whole, data
            assert read([encoded(words) for words in whole[0]]) == (whole[0], "None"), data
            if place == SETTLED_AFTER:
                gc.collect()
                settled = resident()
    gc.collect()
    growth = resident() - settled if settled else 0
    assert growth < MOST_GROWTH, f"memory grew by {growth} bytes"
    assert understood > commands * LEAST_UNDERSTOOD, f"only {understood} of {commands} are valid"
    return (
        f"{number} inputs with {commands} commands, {understood} of them valid: no crash, no hang "
        f"(slowest {slowest * 1000:.1f} ms), memory grew by {growth // 1024} KiB"
    )


class _Watch:
    """Ends the run with the input that takes longer than any may."""

    def __init__(self) -> None:
        self._data = b""

    def __call__(self, data: bytes) -> None:
        self._data = data
        signal.setitimer(signal.ITIMER_REAL, HANGS_AFTER)

    def bark(self, _number: int, _frame: FrameType | None) -> None:
        """It does take longer. Raises AssertionError."""
        raise AssertionError(f"no answer within {HANGS_AFTER} s to {self._data[:2_000]!r}")


@contextmanager
def a_watchdog() -> Iterator[_Watch]:
    """To be told of each input before it is read."""
    watch = _Watch()
    former = signal.signal(signal.SIGALRM, watch.bark)
    try:
        yield watch
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def read(parts: list[bytes]) -> Reading:
    """What the parser makes of bytes that come in these parts: the commands, and the fault."""
    reader = RequestReader()
    commands: list[Command] = []
    come = 0
    for part in parts:
        come += len(part)
        commands += reader.feed(part)
        assert reader.held <= min(come, LARGEST_HELD), "more is held than has come"
    fault = reader.fault
    return commands, "None" if fault is None else f"{type(fault).__name__}: {fault}"


def understand(words: Command) -> bool:
    """Whether its grammar can read a command; it may raise nothing but what it says."""
    grammar = GRAMMARS.get(words[0].upper()) if words else None
    if grammar is None:
        return False
    try:
        grammar.request(words[1:])
    except (InvalidRequest, PayloadTooLarge):
        return False
    return True


async def send_all(broker: BrokerProcess, seed: int, number: int) -> str:
    """Send inputs to a server, which then must be as well as before. Raises AssertionError."""
    clients = Clients(broker, random.Random(seed))
    await clients.come(min(5_000, number // 2))
    settled = memory_of(broker)
    await clients.come(number - min(5_000, number // 2))
    await asyncio.to_thread(assert_well, broker, KEY)
    answered = clients.answered
    assert answered > number * LEAST_ANSWERED, f"only {answered} of {number} had an answer"
    growth = memory_of(broker) - settled
    assert growth < 2 * MOST_GROWTH, f"the server grew by {growth} bytes"
    return (
        f"{number} connections to a server, {answered} of them answered: it is well, "
        f"memory grew by {growth // 1024} KiB"
    )


class Clients:
    """Clients that send anything, some of them at once."""

    def __init__(self, broker: BrokerProcess, rng: random.Random) -> None:
        self.answered = 0
        """Those that were told something."""
        self._host, _, self._port = broker.native.rpartition(":")
        self._rng = rng
        self._room = asyncio.Semaphore(AT_ONCE)

    async def come(self, number: int) -> None:
        """So many more come and go. Raises AssertionError where one is not let go."""
        async with asyncio.TaskGroup() as clients:
            for _ in range(number):
                data = b"".join(one_input(self._rng) for _ in range(self._rng.randrange(1, 4)))
                known = [LOGIN] if self._rng.random() < KNOWN else []
                parts = known + pieces(self._rng, data)
                await self._room.acquire()
                clients.create_task(self._send(parts, to_the_end=self._rng.random() < 0.7))

    async def _send(self, parts: list[bytes], *, to_the_end: bool) -> None:
        try:
            is_answered = await send_one(self._host, int(self._port), parts, to_the_end=to_the_end)
            self.answered += is_answered
        except TimeoutError:
            raise AssertionError(f"it does not hang up after {b''.join(parts)!r}") from None
        finally:
            self._room.release()


async def send_one(host: str, port: int, parts: list[bytes], *, to_the_end: bool) -> bool:
    """Send bytes in parts, then read all the answers or hang up at once; whether any came.

    Raises TimeoutError if the server keeps the connection after its client has ended it.
    """
    answer = b""
    async with asyncio.timeout(HANGS_AFTER):
        reader, writer = await asyncio.open_connection(host, port)
        with suppress(OSError):  # it may hang up on us at any point
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            if to_the_end:
                writer.write_eof()
                while more := await reader.read(65_536):
                    answer += more
        writer.transport.abort()
    return bool(answer)


if __name__ == "__main__":
    main()
