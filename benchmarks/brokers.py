"""The processes under measurement: a broker in a folder of its own, and workers."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support.ports import free_port


class MeasuredBroker:
    """A broker started by `tq serve` with an empty data folder, or on a database."""

    def __init__(self, folder: Path, log: Path, engine: str | None = None) -> None:
        self.http, self.native, self.grpc = (
            f"127.0.0.1:{port}" for port in (free_port(), free_port(), free_port())
        )
        command = [
            *(sys.executable, "-m", "taskqueue.cli.main", "serve"),
            *("--http", self.http, "--native", self.native, "--data", str(folder)),
            *("--grpc", self.grpc, "--rate-limit", "0"),
            *(("--engine", engine) if engine else ()),
        ]
        # The figures are for a queue that may hold more than the default million.
        env = os.environ | {"TQ_BROKER_MAX_PENDING": "10000000", "TQ_LOG_LEVEL": "warning"}
        with log.open("wb") as sink:
            self.process = subprocess.Popen(command, stdout=sink, stderr=sink, env=env)
        self._log = log
        self._wait_until_it_answers()

    def get(self, path: str) -> dict[str, Any]:
        """What a REST path answers."""
        with urllib.request.urlopen(f"http://{self.http}{path}", timeout=30) as answer:
            reply: dict[str, Any] = json.load(answer)
            return reply

    def completed(self) -> int:
        """How many tasks have been completed in the last hour."""
        return int(self.get("/api/v1/stats")["completed_last_hour"])

    def resident_mb(self) -> float:
        """The broker's resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1e3

    def _wait_until_it_answers(self) -> None:
        for _ in range(400):
            if self.process.poll() is not None:
                break
            try:
                self.get("/api/v1/health")
            except (OSError, urllib.error.URLError):
                time.sleep(0.05)
            else:
                return
        raise RuntimeError(f"the broker did not start:\n{self._log.read_text()[-2000:]}")


@contextmanager
def measured_broker(engine: str | None = None) -> Iterator[MeasuredBroker]:
    """A broker that ends with the block; its data goes too."""
    with tempfile.TemporaryDirectory(prefix="tq-bench-") as name:
        broker = MeasuredBroker(Path(name) / "data", Path(name) / "log", engine)
        try:
            yield broker
        finally:
            _end(broker.process)


@contextmanager
def a_worker(broker: MeasuredBroker, concurrency: int) -> Iterator[None]:
    """One worker process on the handlers of `benchmarks.tasks`."""
    command = [
        *(sys.executable, "-m", "taskqueue.cli.main", "worker", "benchmarks.tasks:app"),
        *("--concurrency", str(concurrency), "--url", broker.native, "--log-level", "warning"),
    ]
    process = subprocess.Popen(command)
    try:
        yield
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
