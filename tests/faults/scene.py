"""A broker and workers as processes of their own, and what can be seen of them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from taskqueue import SyncClient, Task, TaskStatus
from tests.support.broker import BrokerProcess
from tests.support.door import no_longer_than

LEASE: Final = 2
"""Seconds; what lasts longer than a lease in life lasts longer than this one here."""

PATIENCE: Final = 15.0
MEBIBYTE: Final = 1024 * 1024
WAYS: Final = ("loop", "thread", "process")
"""Where handlers run: the end of their tasks' names."""

SETTINGS: Final = """
[broker]
lease_seconds = {lease}
max_worker_losses = {losses}
[access]
rate_limit = 0
"""


class WorkerProcess:
    """A `tq worker`."""

    def __init__(self, folder: Path, number: int, url: str, *flags: str) -> None:
        self.log_file = folder / f"worker{number}.log"
        self.out_file = folder / f"worker{number}.out"
        words = ["worker", "tests.faults.app:app", "--url", url, "--log-format", "json", *flags]
        with self.log_file.open("wb") as log, self.out_file.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "taskqueue.cli.main", *words],
                stdout=out,
                stderr=log,
                env=os.environ | {"TQ_URL": url},
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it runs, or is stopped."""
        return self.process.poll() is None

    @property
    def log(self) -> str:
        """What it has logged."""
        return self.log_file.read_text(errors="replace")

    @property
    def id(self) -> str:
        """What it is called at the broker."""
        until(lambda: '"worker started"' in self.log)
        lines = self.log_file.read_bytes().splitlines()
        started = next(line for line in lines if b'"worker started"' in line)
        fields: dict[str, str] = msgspec.json.decode(started)
        return fields["worker_id"]

    @property
    def resident(self) -> int:
        """Bytes of memory it has."""
        return self._figure("VmRSS") * 1024

    @property
    def threads(self) -> int:
        """How many threads it has."""
        return self._figure("Threads")

    @property
    def children(self) -> set[int]:
        """The processes it has started."""
        file = Path(f"/proc/{self.pid}/task")
        found = set()
        for thread in file.iterdir():
            with suppress(FileNotFoundError):
                found |= {int(word) for word in (thread / "children").read_text().split()}
        return found

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def has_heard(self, number: signal.Signals) -> bool:
        """Whether no such signal is on its way to it; two that are would be one."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        pending = status.partition("ShdPnd:")[2].split()[0]
        return not int(pending, 16) >> (number - 1) & 1

    def end(self, number: signal.Signals = signal.SIGKILL) -> int:
        """End it, even if it is stopped; its exit code."""
        if self.is_alive:
            self.send(number)
            self.send(signal.SIGCONT)
        return self.process.wait(PATIENCE)

    def _figure(self, name: str) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith(f"{name}:"))
        return int(line.split()[1])


class Scene:
    """A broker, a client of it, and the workers that a test starts."""

    def __init__(self, folder: Path, broker: BrokerProcess, ends: ExitStack) -> None:
        self.folder = folder
        self.broker = broker
        self.client = ends.enter_context(SyncClient(broker.native))
        self._ends = ends
        self._workers = 0

    def worker(self, *flags: str, url: str = "") -> WorkerProcess:
        """Start a worker; it is ended with the scene."""
        self._workers += 1
        worker = WorkerProcess(self.folder, self._workers, url or self.broker.native, *flags)
        self._ends.callback(worker.end)
        return worker

    def submit(self, task_type: str, retries: int = 0, timeout: int = 300, **arguments: Any) -> str:
        """Submit a task; its id."""
        payload = msgspec.json.encode(arguments)
        task = Task(task_type, payload, max_retries=retries, timeout=timeout)
        return self.client.submit_task(task)

    def ended(self, task_id: str) -> TaskStatus:
        """How a task stands at its end."""
        return self.client.wait_for_end(task_id, timeout=PATIENCE)

    def result(self, task_id: str) -> Any:
        """What came of a task that must have been completed."""
        return msgspec.json.decode(self.client.wait_for_result(task_id, timeout=PATIENCE))

    def status(self, task_id: str) -> TaskStatus:
        """How a task stands now."""
        return self.client.get_status(task_id)

    def file(self, name: str) -> Path:
        """A file for a handler to say something in."""
        return self.folder / name


@contextmanager
def a_scene(folder: Path, *, lease: int = LEASE, losses: int = 5) -> Iterator[Scene]:
    """A running broker, and everything ended with the block."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = folder / "tq.toml"
    settings.write_text(SETTINGS.format(lease=lease, losses=losses))
    broker = BrokerProcess(folder / "data", "--config", str(settings))
    with ExitStack() as ends:
        ends.enter_context(no_longer_than(3 * PATIENCE))
        broker.start()
        ends.callback(broker.kill)
        scene = Scene(folder, broker, ends)
        try:
            yield scene
        except BaseException:
            tell(folder)
            raise


def tell(folder: Path) -> None:
    """Print what broker and workers have logged last."""
    for file in sorted(folder.glob("*.log")):
        print(f"{file}:\n{file.read_text(errors='replace')[-3_000:]}")


def until(condition: Callable[[], object]) -> None:
    """Wait for something that tells nobody when it happens."""
    ends_at = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < ends_at, "what the test waits for has not happened"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"
