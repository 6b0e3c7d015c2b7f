"""The crash test: `python -m tests.chaos.run [--kills 20] [--seed N] [--folder DIR]`.

A broker, producers, honest workers and one that breaks the rules run at once, while broker and
workers are killed with SIGKILL, and workers frozen past their lease, at moments drawn from the
seed. Then the faults end, the queue drains, and what the clients saw is held against the books.
Everything it starts, it ends; the folder is kept if a promise is broken.
"""

import argparse
import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from taskqueue.core.task import Status
from taskqueue.storage.engines import open_storage
from taskqueue.storage.port import TaskQuery
from tests.chaos.checker import Books, Kept, check, double_executions, summary
from tests.chaos.client import total
from tests.chaos.history import read_histories
from tests.support.broker import BrokerProcess

LEASE_SECONDS = 2
WORKERS = 2
PRODUCERS = 2
DRAIN_SECONDS = 120


class Crew:
    """The processes of a run besides the broker, by what starts them."""

    def __init__(self, folder: Path, address: str) -> None:
        self._folder = folder
        self._env = os.environ | {"TQ_CHAOS_FOLDER": str(folder)}
        self._log = (folder / "crew.log").open("ab")
        worker = ["taskqueue.cli.main", "worker", "tests.chaos.tasks:app", "--url", address]
        self._commands = {
            **{f"worker{one}": [*worker, "--concurrency", "8"] for one in range(WORKERS)},
            **{
                f"producer{one}": ["tests.chaos.producer", str(folder), address, str(one)]
                for one in range(PRODUCERS)
            },
            "rogue": ["tests.chaos.rogue", str(folder), address, "1"],
        }
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def workers(self) -> list[str]:
        """Those that may be killed."""
        return [name for name in self._commands if not name.startswith("producer")]

    def start(self, *names: str) -> None:
        """Start those that do not run; all if none is named."""
        for name in names or tuple(self._commands):
            process = self._running.get(name)
            if process is None or process.poll() is not None:
                self._running[name] = subprocess.Popen(
                    [sys.executable, "-m", *self._commands[name]],
                    env=self._env,
                    stdout=self._log,
                    stderr=self._log,
                )

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal to one of them."""
        self._running[name].send_signal(number)

    def end(self, *names: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End them and wait for that."""
        for name in names:
            process = self._running.get(name)
            if process is not None and process.poll() is None:
                process.send_signal(number)
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    def end_all(self) -> None:
        """End every one of them, at once."""
        self.end(*self._commands, number=signal.SIGKILL)
        self._log.close()


def hurt(broker: BrokerProcess, crew: Crew, chance: random.Random) -> str:
    """One fault; returns what it was."""
    fault = chance.choice(["broker", "broker", "worker", "worker", "freeze"])
    victim = chance.choice(crew.workers)
    if fault == "broker":
        broker.kill()
        time.sleep(chance.uniform(0, 0.5))
        broker.start()
        return "broker killed"
    if fault == "worker":
        crew.end(victim, number=signal.SIGKILL)
        time.sleep(chance.uniform(0, 0.3))
        crew.start(victim)
        return "worker killed"
    crew.send(victim, signal.SIGSTOP)
    time.sleep(LEASE_SECONDS + 1.5)
    crew.send(victim, signal.SIGCONT)
    return "worker frozen"


def drain(broker: BrokerProcess) -> bool:
    """Wait until nothing is left to do; whether that came to pass."""
    ends_at = time.monotonic() + DRAIN_SECONDS
    while time.monotonic() < ends_at:
        if open_tasks(broker) == 0:
            return True
        time.sleep(0.2)
    return False


def open_tasks(broker: BrokerProcess) -> int:
    """How many tasks have not ended."""
    return sum(
        total(broker.http, status) for status in (Status.PENDING, Status.IN_PROGRESS, Status.FAILED)
    )


async def read_books(folder: Path) -> tuple[Books, list[str]]:
    """Every task as the stopped broker kept it, and what the audit says."""
    storage = open_storage(folder)
    await storage.open()
    try:
        books: Books = {}
        before = None
        while page := await storage.find(TaskQuery(limit=1_000, before_seq=before)):
            for task in page:
                detail, payload = await storage.get(task.id), await storage.payload(task.id)
                if detail is not None and payload is not None:
                    books[task.id] = Kept(detail, payload)
            before = page[-1].seq
        return books, await storage.audit()
    finally:
        await storage.close()


def run(folder: Path, kills: int, seed: int) -> int:
    """One run; returns the exit code."""
    chance = random.Random(seed)
    os.environ["TQ_BROKER_LEASE_SECONDS"] = str(LEASE_SECONDS)
    broker = BrokerProcess(folder / "data", "--log-level", "warning")
    broker.start()
    crew = Crew(folder, broker.native)
    faults: dict[str, int] = {}
    try:
        crew.start()
        time.sleep(2)
        while sum(faults.values()) - faults.get("worker frozen", 0) < kills:
            fault = hurt(broker, crew, chance)
            faults[fault] = faults.get(fault, 0) + 1
            time.sleep(chance.uniform(0.1, 1.2))
        crew.end(*(f"producer{one}" for one in range(PRODUCERS)))
        crew.end("rogue", number=signal.SIGKILL)
        is_drained = drain(broker)
        crew.end(*crew.workers)
    finally:
        crew.end_all()
        broker.stop()
    return report(folder, faults, seed, is_drained=is_drained)


def report(folder: Path, faults: dict[str, int], seed: int, *, is_drained: bool) -> int:
    """Check, print, and say whether all promises held."""
    lines = list(read_histories(folder))
    books, audit = asyncio.run(read_books(folder / "data"))
    violations = check(lines, books)
    print(f"seed {seed}; faults: " + ", ".join(f"{n} × {what}" for what, n in faults.items()))
    print(f"{'':<12}{'ok':>8}{'refused':>9}{'unknown':>9}")
    counts = summary(lines)
    for op in ("submit", "cancel", "run", "complete"):
        row = [counts[op, outcome] for outcome in ("ok", "fail", "unknown")]
        print(f"{op:<12}{row[0]:>8}{row[1]:>9}{row[2]:>9}")
    completed = sum(kept.detail.task.status is Status.COMPLETED for kept in books.values())
    stale = sum(line.answer.startswith("LEASE_LOST") for line in lines)
    print(f"tasks in the books: {len(books)}, completed: {completed}")
    print(f"stale words refused: {stale}; executions beyond the first: {double_executions(lines)}")
    print(f"drained: {'yes' if is_drained else 'NO'}; audit: {'; '.join(audit) or 'sound'}")
    for violation in violations[:20]:
        print(violation)
    is_sound = is_drained and not audit and not violations and completed > 0
    print("every promise held" if is_sound else f"BROKEN: {len(violations)} violations")
    return 0 if is_sound else 1


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="tq-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    code = run(folder, options.kills, options.seed)
    if code:
        print(f"histories, logs and data are in {folder}")
    elif options.folder is None:
        shutil.rmtree(folder)
    return code


if __name__ == "__main__":
    sys.exit(main())
