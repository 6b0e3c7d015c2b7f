"""`python -m benchmarks.cluster`: brokers on a PostgreSQL server that is started for it."""

import argparse
import asyncio
import statistics
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg

from benchmarks import scenarios
from benchmarks.__main__ import filled_and_drained, machine_line
from benchmarks.brokers import MeasuredBroker, a_worker, measured_broker
from benchmarks.hot_table import Load, filled_by_sql
from benchmarks.scenarios import Figures
from taskqueue import AsyncClient, Task
from tests.support.postgres import PostgresServer, a_database, a_server

SETTINGS: Final = ("shared_buffers = 512MB", "max_wal_size = 4GB", "log_lock_waits = on")

Scenario = Callable[[str, argparse.Namespace], Awaitable[Figures]]


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cluster", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each load")
    parser.add_argument("--drain", type=int, default=100_000, help="tasks to drain")
    parser.add_argument("--held", type=float, default=600.0, help="seconds to hold a snapshot")
    parser.add_argument("--archived", type=int, default=10_000_000, help="ended tasks in `deep`")
    parser.add_argument("--pending", type=int, default=1_000_000, help="pending tasks in `deep`")
    parser.add_argument("--through", type=int, default=2_000_000, help="tasks in `bounded`")
    parser.add_argument("--release", default="18", help="of PostgreSQL: 15, 16 or 18")
    parser.add_argument("--only", help="run the scenarios whose name contains this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tq-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)  # the server may have to run as somebody else
        with a_server(options.release, folder / "postgresql", *SETTINGS) as server:
            asyncio.run(measure(server, options))
            deadlocks = server.log.count("deadlock detected")
    print(f"\ndeadlocks in the server's log: {deadlocks}")


async def measure(server: PostgresServer, options: argparse.Namespace) -> None:
    """Run the scenarios one after the other, each on a database of its own."""
    print(f"PostgreSQL {options.release}, fsync on, on the same cores\n{machine_line()}\n")
    for name, scenario in PLAN.items():
        if options.only is None or options.only in name:
            async with a_database(server) as dsn:
                for label, value in (await scenario(dsn, options)).items():
                    print(f"{label:<58} {value:>12,.2f}", flush=True)


async def pipelined(dsn: str, options: argparse.Namespace) -> Figures:
    """Submits through one broker."""
    with measured_broker(dsn) as broker:
        return await scenarios.submits_pipelined(broker, options.seconds)


async def drained(dsn: str, options: argparse.Namespace) -> Figures:
    """One async worker through one broker."""
    with measured_broker(dsn) as broker:
        return await filled_and_drained(broker, options.drain)


async def two_brokers(dsn: str, options: argparse.Namespace) -> Figures:
    """Two workers, first through one broker, then each through a broker of its own."""
    figures: Figures = {}
    for label, number in (("one broker", 1), ("two brokers", 2)):
        with _brokers(dsn, number) as brokers:
            await scenarios.fill(brokers[0], options.drain)
            with a_worker(brokers[-1], scenarios.CONCURRENCY):
                measured = await scenarios.drain(brokers[0], options.drain, seconds=120)
            figures[f"tasks/s, two workers, {label}"] = next(iter(measured.values()))
    return figures


async def across(dsn: str, options: argparse.Namespace) -> Figures:
    """Milliseconds from a submit at one broker to the handler of a worker at the other."""
    with _brokers(dsn, 2) as (here, there), a_worker(there, 50):
        await asyncio.sleep(2)
        async with AsyncClient(here.native) as client:
            ids: list[str] = []
            started = time.perf_counter()
            for index in range(round(options.seconds * 100)):
                await asyncio.sleep(max(0, started + index / 100 - time.perf_counter()))
                payload = struct.pack("<q", time.perf_counter_ns())
                ids.append(await client.submit_task(Task("clocked", payload)))
            results = [await client.wait_for_result(one, timeout=30) for one in ids]
    waits = sorted(struct.unpack("<q", result)[0] / 1e6 for result in results)
    cuts = statistics.quantiles(waits, n=100)
    return {
        "submit at A to start at B, ms, p50": cuts[49],
        "submit at A to start at B, ms, p99": cuts[98],
    }


async def held(dsn: str, options: argparse.Namespace) -> Figures:
    """Tasks through the engine, first freely, then while somebody holds an old snapshot."""
    async with _load(dsn) as load:
        await load.run(options.seconds)
        free = await load.run(options.seconds)
        holder = await asyncpg.connect(dsn)
        await holder.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
        await holder.fetchval("SELECT count(*) FROM taskqueue.lanes")
        rates = [await load.run(30) for _ in range(max(1, round(options.held / 30)))]
        await holder.close()
    return {
        "tasks/s through the engine": free,
        f"tasks/s in {options.held:g} s with a held snapshot": statistics.mean(rates),
        "ratio, with a held snapshot": statistics.mean(rates) / free,
        "ratio in its last 30 s": rates[-1] / free,
    }


async def deep(dsn: str, options: argparse.Namespace) -> Figures:
    """Tasks through the engine when it is empty, and with many tasks in it."""
    async with _load(dsn) as load:
        await load.run(options.seconds)
        empty = await load.run(options.seconds)
    await filled_by_sql(dsn, options.archived, options.pending)
    async with _load(dsn) as load:
        await load.run(options.seconds)
        full = await load.run(options.seconds)
    return {
        "tasks/s, empty": empty,
        f"tasks/s with {options.archived:,} ended, {options.pending:,} pending": full,
        "ratio, deep": full / empty,
    }


async def bounded(dsn: str, options: argparse.Namespace) -> Figures:
    """Megabytes of the hot table and its indexes after many tasks have passed through it."""
    figures: Figures = {}
    async with _load(dsn) as load:
        for part in (0.25, 0.5, 0.75, 1.0):
            while load.done < part * options.through:
                await load.run(5)
            for label, megabytes in (await load.sizes()).items():
                figures[f"MB after {load.done:,} tasks, {label}"] = megabytes
    return figures


PLAN: Final[dict[str, Scenario]] = {
    "pipelined": pipelined,
    "drain": drained,
    "two": two_brokers,
    "across": across,
    "deep": deep,
    "bounded": bounded,
    "held": held,
}


@contextmanager
def _brokers(dsn: str, number: int) -> Any:
    with measured_broker(dsn) as first:
        brokers: list[MeasuredBroker] = [first]
        if number == 1:
            yield brokers
        else:
            with measured_broker(dsn) as second:
                yield [*brokers, second]


@asynccontextmanager
async def _load(dsn: str) -> AsyncIterator[Load]:
    load = Load(dsn)
    await load.open()
    try:
        yield load
    finally:
        await load.close()


if __name__ == "__main__":
    main()
