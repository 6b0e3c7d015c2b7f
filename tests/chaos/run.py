"""The crash test: `python -m tests.chaos.run [--kills N] [--seconds S] [--seed N] [--folder DIR]`.

A broker, producers, honest workers and one that breaks the rules run at once, while broker and
workers are killed with SIGKILL, or frozen past a lease, at moments drawn from the seed. Then the
faults end, the queue drains, and what the clients saw is held against the books. Everything it
starts it ends; the folder is kept if a promise is broken. Exit code 0 if every promise held.
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
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple, NoReturn

from taskqueue.core.task import Status
from tests.chaos import books
from tests.chaos.checker import Violation, check
from tests.chaos.crew import HONEST, PRODUCERS, ROGUE, WORKERS, Crew
from tests.chaos.history import Args, History, read_histories
from tests.chaos.report import table
from tests.support.broker import BrokerProcess

LEASE_SECONDS = 2.0
FREEZE_SECONDS = LEASE_SECONDS + 1.5
DRAIN_SECONDS = 120.0
LEAST_LOAD = 10
"""Tasks completed for each kill, or the run has shown nothing."""

MOST_SHOWN = 3
"""Violations of each kind that are printed; the histories have them all."""

BROKER_KILLED = "broker killed"
BROKER_KILLED_AGAIN = "broker killed, and again as it started"
BROKER_FROZEN = "broker frozen"
WORKER_KILLED = "worker killed"
WORKER_FROZEN = "worker frozen"

OPEN = (Status.PENDING, Status.IN_PROGRESS, Status.FAILED)


class Fault(NamedTuple):
    """Something bad, and how many seconds into the run it is to happen."""

    at: float
    what: str


def schedule(kills: int, seconds: float, chance: random.Random) -> list[Fault]:
    """`kills` kills of broker and workers by turns, and some freezes, spread over `seconds`."""
    kinds = [BROKER_KILLED, WORKER_KILLED, BROKER_KILLED, WORKER_KILLED, BROKER_KILLED_AGAIN]
    faults = [kinds[number % len(kinds)] for number in range(kills)]
    faults += [WORKER_FROZEN] * (1 + kills // 20) + [BROKER_FROZEN] * (1 + kills // 40)
    chance.shuffle(faults)
    moments = sorted(chance.uniform(0, seconds) for _ in faults)
    return [Fault(at, what) for at, what in zip(moments, faults, strict=True)]


class Ran(NamedTuple):
    """What a run showed at once, and what the broker said of its books at the end."""

    wrong: list[str]
    told: books.Told | None


class Chaos:
    """One run: the processes, and what is done to them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._chance = random.Random(seed)
        self._broker = BrokerProcess(folder / "data", "--log-level", "warning")
        self._crew = Crew(folder, self._broker.native, self._broker.http, seed)
        self._history = History(folder, "parent")
        self._died: list[str] = []

    def run(self, kills: int, seconds: float) -> Ran:
        """Run from start to end."""
        faults = schedule(kills, seconds, self._chance)
        try:
            self._broker.start()
            self._crew.start(*WORKERS, *PRODUCERS)
            begun = time.monotonic() + 2  # let everybody come up
            for fault in faults:
                time.sleep(max(0.0, begun + fault.at - time.monotonic()))
                self._hurt(fault.what)
                if fault.what in (BROKER_FROZEN, WORKER_FROZEN):
                    begun += FREEZE_SECONDS  # what is woken is to live on for a while
            return self._wind_down()
        finally:
            self._crew.end_all()
            self._broker.kill()

    def _wind_down(self) -> Ran:
        self._crew.end(*PRODUCERS)
        self._crew.end(ROGUE, number=signal.SIGKILL)
        wrong = [] if self._drain() else [f"not drained in {DRAIN_SECONDS:g} s"]
        if any(codes := self._crew.end(*HONEST)):
            wrong.append(f"the workers ended with exit codes {codes}")
        told = asyncio.run(books.ask(self._broker.native, self._broker.http))
        code = self._broker.stop()
        if code:
            wrong.append(f"the broker ended with exit code {code}")
        return Ran(wrong + self._died + self._crew.died, told)

    def _hurt(self, what: str) -> None:
        self._look_for_death(what)
        sent_ns = time.monotonic_ns()
        {
            BROKER_KILLED: self._kill_broker,
            BROKER_KILLED_AGAIN: self._kill_starting_broker,
            BROKER_FROZEN: self._freeze_broker,
            WORKER_KILLED: self._kill_worker,
            WORKER_FROZEN: self._freeze_worker,
        }[what]()
        self._history.note("fault", Args(fault=what), sent_ns)
        if what in (BROKER_KILLED, BROKER_KILLED_AGAIN):
            self._broker.start()

    def _look_for_death(self, what: str) -> None:
        try:
            self._broker.health()
        except OSError as error:
            self._died.append(f"no broker answered when this was to happen: {what} ({error})")

    def _kill_worker(self) -> None:
        victim = self._chance.choice(WORKERS)
        self._crew.end(victim, number=signal.SIGKILL)
        self._crew.start(victim)

    def _freeze_worker(self) -> None:
        victim = self._chance.choice(WORKERS)
        self._crew.send(victim, signal.SIGSTOP)
        time.sleep(FREEZE_SECONDS)
        self._crew.send(victim, signal.SIGCONT)

    def _freeze_broker(self) -> None:
        os.kill(self._broker.pid, signal.SIGSTOP)
        time.sleep(FREEZE_SECONDS)
        os.kill(self._broker.pid, signal.SIGCONT)

    def _kill_broker(self) -> None:
        self._broker.kill()
        time.sleep(self._chance.uniform(0.02, 0.4))

    def _kill_starting_broker(self) -> None:
        self._kill_broker()
        with (self._folder / "crew.log").open("ab") as log:
            process = subprocess.Popen(self._broker.command, stdout=log, stderr=log)
        try:
            time.sleep(self._chance.uniform(0.05, 0.8))
        finally:
            process.kill()
            process.wait()

    def _drain(self) -> bool:
        ends_at = time.monotonic() + DRAIN_SECONDS
        while time.monotonic() < ends_at:
            totals = books.totals(self._broker.http)
            if not any(totals[status] for status in OPEN):
                return True
            time.sleep(0.2)
        return False


def judge(folder: Path, ran: Ran) -> int:
    """Hold the histories in a folder against its books, and print what came of it."""
    lines = read_histories(folder)
    kept, audit = asyncio.run(books.read(folder / "data"))
    violations = check(lines, kept)
    wrong = [*ran.wrong, *audit]
    if ran.told is not None:
        wrong += books.differences(ran.told, kept)
    completed = sum(task.detail.task.status is Status.COMPLETED for task in kept.values())
    kills = sum(line.op == "fault" and "killed" in line.args.fault for line in lines)
    if completed < kills * LEAST_LOAD:
        wrong.append(f"{completed} completed tasks for {kills} kills: too few to show anything")
    print(table(lines, kept, violations))
    for text in [*wrong, *listed(violations)]:
        print(text)
    broken = len(wrong) + len(violations)
    print(f"BROKEN: {broken} faults were found" if broken else "every promise held")
    return 1 if broken else 0


def listed(violations: list[Violation]) -> list[str]:
    """The first few of each kind whole, and how many there are."""
    by_kind: dict[str, list[Violation]] = defaultdict(list)
    for violation in violations:
        by_kind[violation.invariant].append(violation)
    return [
        text
        for kind, found in sorted(by_kind.items())
        for text in (*map(str, found[:MOST_SHOWN]), f"{kind}: {len(found)} in all")
    ]


def main() -> int:
    """Parse the command line, run, judge."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="SIGKILLs of broker and workers")
    parser.add_argument("--seconds", type=float, help="how long faults go on (1.25 for each kill)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--folder", type=Path, help="where data and histories go; it is kept")
    parser.add_argument("--check", type=Path, metavar="DIR", help="judge an old run again")
    options = parser.parse_args()
    if options.check is not None:
        return judge(options.check, Ran([], None))
    folder = options.folder or Path(tempfile.mkdtemp(prefix="tq-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {options.seed}, histories, logs and data in {folder}", flush=True)
    os.environ["TQ_BROKER_LEASE_SECONDS"] = str(LEASE_SECONDS)
    signal.signal(signal.SIGTERM, _leave)
    seconds = 1.25 * options.kills if options.seconds is None else options.seconds
    code = judge(folder, Chaos(folder, options.seed).run(options.kills, seconds))
    if code:
        print(f"kept; judge it again with: python -m tests.chaos.run --check {folder}")
    elif options.folder is None:
        shutil.rmtree(folder)
    return code


def _leave(_number: int, _frame: object) -> NoReturn:
    sys.exit(1)  # by way of every `finally`


if __name__ == "__main__":
    sys.exit(main())
