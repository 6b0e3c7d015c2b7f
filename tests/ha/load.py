"""The load of the drill: what submits and works, and when each broker last took a write."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Final

from tests.chaos.history import Outcome
from tests.chaos.rest_producer import Producer, produce_one

PAUSE: Final = 0.03
"""Seconds between two tasks of a probe."""

PATIENCE: Final = 30.0
HONEST: Final = ("worker0", "worker1")
SUBMITTING: Final = ("producer",)
ROGUE: Final = "rogue"


class Probe(Producer):
    """Submits to one broker over REST, one task after the other, in a thread of its own."""

    def __init__(self, name: str, folder: Path, http: str, seed: int) -> None:
        super().__init__(folder, http, seed)
        self.name = name
        self.slowest = 0.0
        """Seconds that the slowest answer took since `forget`."""
        self._acks: list[tuple[int, int]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce, daemon=True)

    def submit(self, task_id: str, payload: bytes, delay: float) -> Outcome:
        """Send a submit once, and remember when it was acknowledged."""
        sent = time.monotonic_ns()
        outcome = super().submit(task_id, payload, delay)
        done = time.monotonic_ns()
        self.slowest = max(self.slowest, (done - sent) / 1e9)
        if outcome == "ok":
            self._acks.append((sent, done))
        return outcome

    def forget(self) -> None:
        """Forget the acknowledgements so far."""
        self._acks = []
        self.slowest = 0.0

    def acks_since(self, moment: int) -> list[int]:
        """When what was sent after a moment was acknowledged."""
        return [done for sent, done in self._acks if sent >= moment]

    def start(self) -> None:
        """Begin to submit."""
        self._thread.start()

    def stop(self) -> None:
        """Submit no more, and wait for what is under way."""
        self._stop.set()
        self._thread.join(PATIENCE)
        self._history.close()

    def _produce(self) -> None:
        while not self._stop.is_set():
            produce_one(self)
            time.sleep(self.chance.uniform(0, PAUSE))


class Crew:
    """Processes that use the SDK at every broker's address, and a worker that breaks the rules."""

    def __init__(self, folder: Path, addresses: list[str], seed: int) -> None:
        self._env = os.environ | {"TQ_CHAOS_FOLDER": str(folder)}
        self._log = (folder / "crew.log").open("ab")
        # Each with the brokers in an order of its own, so that they do not all begin at one.
        chance = random.Random(seed)
        self._commands = {
            **{name: self._worker(chance.sample(addresses, len(addresses))) for name in HONEST},
            "producer": [
                *("tests.chaos.producer", str(folder)),
                *(f"tq://{','.join(chance.sample(addresses, len(addresses)))}", str(seed)),
            ],
            ROGUE: ["tests.chaos.rogue", str(folder), addresses[-1], str(seed)],
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Start them all."""
        for name, command in self._commands.items():
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                start_new_session=True,
            )

    def died(self) -> list[str]:
        """Who has ended without having been told to."""
        return [
            f"{name} ended by itself with exit code {process.returncode}"
            for name, process in self._running.items()
            if process.poll() is not None
        ]

    def end(self, *names: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End them, together."""
        ending = [self._running.pop(name) for name in names if name in self._running]
        for process in ending:
            process.send_signal(number)
        for process in ending:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def end_all(self) -> None:
        """End whoever is left, at once."""
        self.end(*list(self._running), number=signal.SIGKILL)
        self._log.close()

    def _worker(self, addresses: list[str]) -> list[str]:
        return [
            *("taskqueue.cli.main", "worker", "tests.chaos.tasks:app", "--concurrency", "8"),
            *("--url", f"tq://{','.join(addresses)}", "--log-level", "warning"),
        ]
