"""Brokers that share a database, and workers that may talk to any of them."""

import sys
from pathlib import Path
from typing import Any, Final

from examples.ha.database import answer_of
from examples.ha.processes import Process, free_port, until

START_SECONDS: Final = 30.0
ROOT: Final = Path(__file__).parents[2]


class Broker:
    """`tq serve` on a database, on ports that stay the same when it is started anew."""

    def __init__(self, name: str, folder: Path, dsn: str, *, lease_seconds: float = 30.0) -> None:
        self.name = name
        self.http, self.native, self.grpc = (f"127.0.0.1:{free_port()}" for _ in range(3))
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log"
        self.process = Process(
            [
                *(sys.executable, "-m", "taskqueue.cli.main", "serve"),
                *("--http", self.http, "--native", self.native, "--grpc", self.grpc),
                *("--data", folder / "data", "--rate-limit", "0", "--log-level", "warning"),
            ],
            self._log,
            # Not among the flags: everybody on the machine can read those, and the password.
            {
                "TQ_ENGINE": dsn,
                "TQ_BROKER_LEASE_SECONDS": str(lease_seconds),
                "TQ_LOG_FORMAT": "json",
            },
        )

    def start(self) -> None:
        """Start it and return once it can write."""
        self.process.start()
        until(f"broker {self.name}", lambda: self.is_well() or self._has_died(), START_SECONDS)

    def is_well(self) -> bool:
        """Whether its health check says that it can write."""
        return self.get("/api/v1/health") is not None

    def leads(self) -> bool:
        """Whether it does the housekeeping."""
        health = self.get("/api/v1/health")
        return health is not None and bool(health.get("is_leader"))

    def get(self, path: str) -> dict[str, Any] | None:
        """The JSON under a path, or None where it does not answer with success."""
        return answer_of(f"http://{self.http}{path}")

    def last_words(self) -> str:
        """The end of its log."""
        return self._log.read_text(errors="replace")[-500:]

    def _has_died(self) -> bool:
        if not self.process.is_alive:
            raise RuntimeError(f"broker {self.name} ended by itself: {self.last_words()}")
        return False


def worker(folder: Path, app: str, addresses: list[str], concurrency: int = 10) -> Process:
    """`tq worker` for an app, at whichever broker answers."""
    return Process(
        [
            *(sys.executable, "-m", "taskqueue.cli.main", "worker", app),
            *("--url", f"tq://{','.join(addresses)}", "--concurrency", str(concurrency)),
            *("--shutdown", "5", "--log-level", "warning"),
        ],
        folder / "workers.log",
        {"PYTHONPATH": str(ROOT)},
    )
