"""The processes of a crash test besides the broker: producers, honest workers, a rogue."""

import os
import signal
import subprocess
import sys
from pathlib import Path

PRODUCERS = ("producer0", "producer1", "rest")
HONEST = ("worker0", "worker1")
ROGUE = "rogue"
WORKERS = (*HONEST, ROGUE)
PATIENCE = 20.0
"""Seconds a process gets to end before it is killed."""


class Crew:
    """Starts, hurts and ends them; it touches no process but its own."""

    def __init__(self, folder: Path, native: str, http: str, seed: int) -> None:
        self._env = os.environ | {"TQ_CHAOS_FOLDER": str(folder)}
        self._log = (folder / "crew.log").open("ab")
        self._starts = seed * 1_000
        worker = ["taskqueue.cli.main", "worker", "tests.chaos.tasks:app", "--url", native]
        self._commands = {
            **{name: [*worker, "--concurrency", "8"] for name in HONEST},
            **{name: ["tests.chaos.producer", str(folder), native] for name in PRODUCERS[:2]},
            "rest": ["tests.chaos.rest_producer", str(folder), http],
            ROGUE: ["tests.chaos.rogue", str(folder), native],
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self.died: list[str] = []
        """Who ended without having been told to, and with which exit code."""

    def start(self, *names: str) -> None:
        """Start them."""
        for name in names:
            self._starts += 1
            seed = [] if name in HONEST else [str(self._starts)]
            self._running[name] = subprocess.Popen(
                [sys.executable, "-m", *self._commands[name], *seed],
                env=self._env,
                stdout=self._log,
                stderr=self._log,
            )

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one of them."""
        self._running[name].send_signal(number)

    def end(self, *names: str, number: signal.Signals = signal.SIGTERM) -> list[int]:
        """End them, together; returns their exit codes."""
        ending = {name: self._running.pop(name) for name in names if name in self._running}
        for name, process in ending.items():
            if process.poll() is not None:
                self.died.append(f"{name} ended by itself with exit code {process.returncode}")
            process.send_signal(number)
        return [_wait(process) for process in ending.values()]

    def end_all(self) -> None:
        """End every one of them, at once."""
        self.end(*self._running, number=signal.SIGKILL)
        self._log.close()


def _wait(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
