"""Brokers to test against: one in this process with a clock to move, one as a real process."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from taskqueue.broker.access import AccessSettings
from taskqueue.broker.broker import Broker, BrokerSettings
from taskqueue.broker.metrics import Metrics
from taskqueue.core.clock import Clock, ManualClock
from taskqueue.core.task import ClaimedTask, Task
from taskqueue.storage.engines import open_storage
from taskqueue.storage.port import Storage
from taskqueue.wire import messages as m
from tests.support.ports import free_port


@asynccontextmanager
async def a_broker(
    folder: Path,
    *,
    clock: Clock | None = None,
    storage: Storage | None = None,
    settings: BrokerSettings | None = None,
    access: AccessSettings | None = None,
) -> AsyncIterator[Broker]:
    """A broker in this process, on SQLite in `folder` unless told otherwise; no chores run.

    Requests are not limited unless `access` says so.
    """
    engine = storage or open_storage(folder)
    await engine.open()
    broker = Broker(
        engine,
        clock or ManualClock(),
        settings or BrokerSettings(),
        Metrics(),
        access or AccessSettings(rate_limit=0),
    )
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()
        await engine.close()


async def submitted(broker: Broker, task_type: str = "work", **fields: object) -> Task:
    """A task put in the queue."""
    request = m.SubmitRequest(task_type=task_type, payload=b"x", **fields)  # type: ignore[arg-type]
    return await broker.submit(request)


async def claimed(
    broker: Broker, *task_types: str, worker_id: str = "w1", count: int = 1, wait_ms: int = 0
) -> list[ClaimedTask]:
    """Tasks claimed, of the type "work" unless told otherwise."""
    return await broker.claim(
        m.ClaimRequest(
            worker_id=worker_id,
            task_types=list(task_types or ("work",)),
            count=count,
            wait_ms=wait_ms,
        )
    )


async def until_parked(turns: int = 50) -> None:
    """Let the loop turn often enough for what was started to come to rest."""
    for _ in range(turns):
        await asyncio.sleep(0.001)


class BrokerProcess:
    """A broker started by `tq serve`, on a data folder and on ports that stay the same."""

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self.http = f"127.0.0.1:{free_port()}"
        self.native = f"127.0.0.1:{free_port()}"
        self.grpc = f"127.0.0.1:{free_port()}"
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the broker that runs now."""
        assert self._process is not None, "the broker was not started"
        return self._process.pid

    @property
    def command(self) -> list[str]:
        """What starts it."""
        return [
            *(sys.executable, "-m", "taskqueue.cli.main", "serve"),
            *("--http", self.http, "--native", self.native, "--grpc", self.grpc),
            *("--data", str(self.folder)),
            *self._flags,
        ]

    def start(self, timeout: float = 20.0) -> None:
        """Start it and return once it answers."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        with self.folder.with_suffix(".log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command, stdout=log, stderr=log, env=os.environ | {"TQ_LOG_FORMAT": "json"}
            )
        ends_at = time.monotonic() + timeout
        while True:
            try:
                self.health()
            except OSError:
                if self._process.poll() is not None or time.monotonic() > ends_at:
                    log_text = self.folder.with_suffix(".log").read_text()[-4000:]
                    raise AssertionError(f"the broker did not start:\n{log_text}") from None
                time.sleep(0.02)
            else:
                return

    def health(self) -> dict[str, object]:
        """What its health check says."""
        with urllib.request.urlopen(f"http://{self.http}/api/v1/health", timeout=5) as answer:
            health: dict[str, object] = json.load(answer)
            return health

    def kill(self) -> None:
        """End it as a power cut would, as far as the process can tell."""
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """Ask it to end; returns its exit code."""
        return self._end(signal.SIGTERM)

    def _end(self, number: int) -> int:
        if self._process is None:
            return 0
        self._process.send_signal(number)
        code = self._process.wait(20)
        self._process = None
        return code


@contextmanager
def a_broker_process(folder: Path, *flags: str) -> Iterator[BrokerProcess]:
    """A running `tq serve`, ended with the block."""
    process = BrokerProcess(folder, *flags)
    process.start()
    try:
        yield process
    finally:
        process.stop()
