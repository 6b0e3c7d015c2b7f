"""The failover drill: `python -m tests.ha.drill [--rounds N] [--seed N] [--folder DIR]`.

Three PostgreSQL nodes under Patroni, three brokers, producers and workers run while, round by
round, the primary's PostgreSQL is killed, the broker that leads is killed, a broker is cut from
the database, a standby is killed, and the primary's whole node is. Then the queue drains, and what
the clients saw is held against the books. Everything it starts it ends; the folder is kept if a
promise is broken. Exit code 0 if every promise held, those about time included.
"""

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, NamedTuple, NoReturn, get_args

from examples.ha.brokers import Broker
from examples.ha.database import Database
from examples.ha.processes import until

from taskqueue.core.task import Status
from taskqueue.server.logs import set_up_logs
from tests.chaos import books as chaos_books
from tests.chaos.checker import check
from tests.chaos.history import Args, History, read_histories
from tests.chaos.report import table
from tests.chaos.run import OPEN, listed
from tests.ha import books
from tests.ha.gate import Gate, Shut
from tests.ha.load import HONEST, ROGUE, SUBMITTING, Crew, Probe

LEASE_SECONDS: Final = 5.0
BROKERS: Final = ("b1", "b2", "b3")
LONGEST: Final = 90.0
"""Seconds after which the drill no longer waits for anything to come back."""

CUT_SECONDS: Final = 8.0
DRAIN_SECONDS: Final = 180.0
ACKS_BETWEEN: Final = 20
"""Writes that each broker acknowledges before the next fault."""


Fault = Literal["postgres", "leader", "cut", "standby", "node"]
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)


class Measured(NamedTuple):
    """What a fault cost. Times in seconds; `promised` covers `all_write`."""

    number: int
    fault: str
    first_write: float
    all_write: float
    promised: float
    more: str = ""

    @property
    def is_late(self) -> bool:
        """Whether it took longer than promised."""
        return self.all_write > self.promised


class Result(NamedTuple):
    """How a drill ended."""

    measured: list[Measured]
    wrong: list[str]
    """Each broken promise that is not about time."""
    told: str


class BrokerDied(RuntimeError):
    """A broker ended that nobody had told to."""


class Drill:
    """The processes, and what is done to them."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder = folder
        self._chance = random.Random(seed)
        self.database = Database(folder)
        nodes = [node.address for node in self.database.nodes]
        self._gates = {name: Gate(nodes) for name in BROKERS}
        self._brokers = {
            name: Broker(
                name, folder / name, self.database.dsn(gate.addresses), lease_seconds=LEASE_SECONDS
            )
            for name, gate in self._gates.items()
        }
        self._probes = {
            name: Probe(name, folder, broker.http, seed + number)
            for number, (name, broker) in enumerate(self._brokers.items())
        }
        self._crew = Crew(folder, [broker.native for broker in self._brokers.values()], seed)
        self._history = History(folder, "parent")
        self.measured: list[Measured] = []

    def start(self) -> None:
        """Start everything; returns once each broker has taken writes."""
        self.database.start()
        for broker in self._brokers.values():
            broker.start()
        self._crew.start()
        for probe in self._probes.values():
            probe.start()

    def run(self, rounds: int, faults: Sequence[Fault]) -> None:
        """Carry out each of these faults once in each round."""
        carry_out: dict[Fault, Callable[[int], Measured]] = {
            "postgres": self._kill_postgres,
            "leader": self._kill_leader,
            "cut": self._cut_a_broker,
            "standby": self._kill_standby,
            "node": self._kill_node,
        }
        for number in range(1, rounds + 1):
            for fault in faults:
                self._settle()
                measured = carry_out[fault](number)
                self.measured.append(measured)
                print(as_row(measured), flush=True)
        self._settle()

    def wind_down(self) -> list[str]:
        """Let the queue drain and end the clients; what went wrong."""
        until("the database to be whole", self.database.is_whole, LONGEST)
        for broker in self._brokers.values():
            if not broker.process.is_alive:
                broker.start()
        for probe in self._probes.values():
            probe.stop()
        wrong = self._crew.died()
        self._crew.end(*SUBMITTING)
        self._crew.end(ROGUE, number=signal.SIGKILL)
        http = self._brokers["b1"].http
        try:
            until("the queue to drain", lambda: _is_drained(http), DRAIN_SECONDS)
        except TimeoutError as error:
            wrong.append(str(error))
        self._crew.end(*HONEST)
        for broker in self._brokers.values():
            broker.process.end()
        return wrong

    def stop(self) -> None:
        """End everything, whatever state it is in."""
        self._history.close()
        self._crew.end_all()
        for broker in self._brokers.values():
            broker.process.kill()
        for gate in self._gates.values():
            gate.close()
        self.database.stop()

    def _settle(self) -> None:
        """Wait until nothing is amiss any more, and there is load on every broker."""
        until("the database to be whole", self.database.is_whole, LONGEST)
        brokers = self._brokers.values()
        until(
            "every broker to be well",
            lambda: self._are_alive(BROKERS) and all(broker.is_well() for broker in brokers),
            LONGEST,
        )
        probes = self._probes.values()
        for probe in probes:
            probe.forget()
        until(
            "writes at every broker",
            lambda: all(len(probe.acks_since(0)) >= ACKS_BETWEEN for probe in probes),
            LONGEST,
        )

    def _kill_postgres(self, number: int) -> Measured:
        with self._noted("PostgreSQL of the primary killed"):
            self.database.primary().kill_postgres()
        first, every = self._seconds_until_writes(*BROKERS)
        return Measured(number, "primary's PostgreSQL killed", first, every, 10)

    def _kill_node(self, number: int) -> Measured:
        node = self.database.primary()
        with self._noted("the primary's node killed"):
            node.kill()
        first, every = self._seconds_until_writes(*BROKERS)
        node.start()
        return Measured(number, "primary's whole node killed", first, every, 30)

    def _kill_standby(self, number: int) -> Measured:
        node = self.database.synchronous_standby()
        with self._noted("the synchronous standby's node killed"):
            node.kill()
        first, every = self._seconds_until_writes(*BROKERS)
        node.start()
        return Measured(number, "synchronous standby killed", first, every, 10)

    def _kill_leader(self, number: int) -> Measured:
        leader = self._leader()
        others = [broker for broker in self._brokers.values() if broker is not leader]
        with self._noted("the broker that leads killed"):
            leader.process.kill()
        begun = time.monotonic()
        until("another leader", lambda: any(other.leads() for other in others), LONGEST)
        took_over = time.monotonic() - begun
        first, every = self._seconds_until_writes(*(other.name for other in others))
        leader.start()
        more = f"next leader after {took_over:.2f} s"
        return Measured(number, "leading broker killed", first, max(every, took_over), 3, more)

    def _cut_a_broker(self, number: int) -> Measured:
        how: Shut = "refused" if number % 2 else "silent"
        cut = self._leader() if number % 3 else self._chance.choice(list(self._brokers.values()))
        others = [name for name in BROKERS if name != cut.name]
        gate, probe = self._gates[cut.name], self._probes[cut.name]
        with self._noted(f"a broker cut from the database, {how}"):
            gate.shut(how)
        first, every = self._seconds_until_writes(*others)
        time.sleep(max(0.0, CUT_SECONDS - every))
        slowest = probe.slowest
        with self._noted("the broker's way opened again"):
            gate.open()
        _, back = self._seconds_until_writes(cut.name)
        more = f"{cut.name} back after {back:.2f} s, its slowest answer took {slowest:.2f} s"
        return Measured(number, f"a broker cut off ({how})", first, every, 3, more)

    def _leader(self) -> Broker:
        until("a leader", lambda: any(one.leads() for one in self._brokers.values()), LONGEST)
        return next(one for one in self._brokers.values() if one.leads())

    def _seconds_until_writes(self, *names: str) -> tuple[float, float]:
        """When the first, and when each of these brokers has acknowledged a write sent since."""
        since = self._fault_ns
        probes = [self._probes[name] for name in names]
        until(
            f"writes by way of {' and '.join(names)}",
            lambda: self._are_alive(names) and all(probe.acks_since(since) for probe in probes),
            LONGEST,
        )
        firsts = [(probe.acks_since(since)[0] - since) / 1e9 for probe in probes]
        return min(firsts), max(firsts)

    def _are_alive(self, names: Sequence[str]) -> bool:
        for name in names:
            broker = self._brokers[name]
            if not broker.process.is_alive:
                raise BrokerDied(f"broker {name} ended by itself: {broker.last_words()}")
        return True

    @contextmanager
    def _noted(self, fault: str) -> Iterator[None]:
        sent_ns = time.monotonic_ns()
        yield
        self._fault_ns = time.monotonic_ns()
        self._history.note("fault", Args(fault=fault), sent_ns)


def drill(folder: Path, seed: int, rounds: int, faults: Sequence[Fault] = FAULTS) -> Result:
    """Run a drill in a folder from start to end, and hold the histories against the books."""
    one = Drill(folder, seed)
    wrong: list[str] = []
    try:
        one.start()
        with _told_to(wrong):
            one.run(rounds, faults)
        with _told_to(wrong):
            wrong += one.wind_down()
        kept, audit = asyncio.run(books.read(folder / "reader", one.database.dsn()))
    finally:
        one.stop()
    lines = read_histories(folder)
    violations = check(lines, kept)
    done = Counter(task.detail.task.status for task in kept.values())[Status.COMPLETED]
    if not done:
        wrong.append("no task was completed: nothing is shown by this")
    wrong += [*audit, *listed(violations)]
    return Result(one.measured, wrong, table(lines, kept, violations))


@contextmanager
def _told_to(wrong: list[str]) -> Iterator[None]:
    """Note what keeps a part of the drill from its end; the next part follows all the same."""
    try:
        yield
    except (LookupError, TimeoutError, RuntimeError) as error:
        wrong.append(str(error))


def as_row(measured: Measured) -> str:
    """A line of the table."""
    number, fault, first, every, promised, more = measured
    mark = "LATE" if measured.is_late else ""
    return f"{number:>5}  {fault:<30}{first:>8.2f} s{every:>8.2f} s{promised:>6.0f} s  {mark}{more}"


def head() -> str:
    """The head of the table."""
    return f"round  {'what happened':<30}{'1st write':>10}{'all write':>10}{'promised':>9}"


def _is_drained(http: str) -> bool:
    totals = chaos_books.totals(http)
    return not any(totals[status] for status in OPEN)


def main() -> int:
    """Parse the command line, run, judge."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.ha.drill", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each fault happens")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--folder", type=Path, help="where data and histories go; it is kept")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    folder = (options.folder or Path(tempfile.mkdtemp(prefix="tq-ha-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)
    set_up_logs("error", "text")
    print(f"seed {options.seed}, histories, logs and data in {folder}\n{head()}", flush=True)
    result = drill(folder, options.seed, options.rounds)
    print(f"\n{head()}", *map(as_row, result.measured), sep="\n")
    print(f"\n{result.told}")
    late = [one for one in result.measured if one.is_late]
    wrong = [*result.wrong, *(f"later than promised: {as_row(one)}" for one in late)]
    print(*wrong, sep="\n")
    print("BROKEN" if wrong else "every promise held")
    if not wrong and options.folder is None:
        shutil.rmtree(folder)
    return 1 if wrong else 0


def _leave(_number: int, _frame: object) -> NoReturn:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # what has begun to stop is not left half-way
    sys.exit(1)  # by way of every `finally`


if __name__ == "__main__":
    sys.exit(main())
