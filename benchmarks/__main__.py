"""`python -m benchmarks`: run the measurements, print a table, write the figures as JSON."""

import argparse
import asyncio
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import apsw

from benchmarks import scenarios
from benchmarks.brokers import MeasuredBroker, measured_broker
from benchmarks.crowd import hold
from benchmarks.grpc import submits_over_grpc
from benchmarks.scenarios import Figures

Scenario = Callable[[MeasuredBroker], Coroutine[Any, Any, Figures]]


def main() -> None:
    """Parse the command line and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of each load")
    parser.add_argument("--drain", type=int, default=100_000, help="tasks to drain")
    parser.add_argument("--deep", type=int, default=1_000_000, help="tasks pending at the end")
    parser.add_argument("--only", help="run the scenarios whose name contains this")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/latest.json"))
    options = parser.parse_args()
    try:
        import uvloop

        figures = uvloop.run(measure(options))
    except ImportError:
        figures = asyncio.run(measure(options))
    report = {"machine": machine(), "durability": DURABILITY, "figures": figures}
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(report, indent=2) + "\n")
    print(f"\nwritten to {options.json}")


DURABILITY = "SQLite, WAL, synchronous=FULL: every answer after fdatasync"


async def measure(options: argparse.Namespace) -> Figures:
    """Run the scenarios one after the other, each on a broker of its own."""
    seconds = options.seconds
    plan: dict[str, Scenario] = {
        "one": lambda broker: scenarios.submits_one_at_a_time(broker, 1, seconds),
        "fifty": lambda broker: scenarios.submits_one_at_a_time(broker, 50, seconds),
        "five-hundred": lambda broker: scenarios.submits_one_at_a_time(broker, 500, seconds),
        "pipelined": lambda broker: scenarios.submits_pipelined(broker, seconds),
        "rest": lambda broker: scenarios.submits_over_rest(broker, seconds),
        "grpc": lambda broker: submits_over_grpc(broker, seconds),
        "drain": lambda broker: filled_and_drained(broker, options.drain),
        "live": lambda broker: scenarios.live(broker, seconds),
        "latency": lambda broker: scenarios.latency(broker, 4 * seconds),
        "hold": lambda broker: hold(broker, 4 * seconds),
        "deep": lambda broker: deep(broker, options.deep, seconds),
    }
    print(f"{DURABILITY}\n{machine_line()}\n")
    figures: Figures = {}
    for name, scenario in plan.items():
        if options.only is None or options.only in name:
            with measured_broker() as broker:
                measured = await scenario(broker)
            figures |= measured
            for label, value in measured.items():
                print(f"{label:<58} {value:>12,.2f}", flush=True)
    return figures


async def filled_and_drained(broker: MeasuredBroker, number: int) -> Figures:
    """Fill the queue, then drain it."""
    await scenarios.fill(broker, number)
    return await scenarios.drain(broker, number, seconds=120)


async def deep(broker: MeasuredBroker, number: int, seconds: float) -> Figures:
    """The same rates with `number` tasks pending, and the broker's memory then."""
    started = time.perf_counter()
    await scenarios.fill(broker, number)
    figures = {
        f"submits/s while filling to {number:,}": number / (time.perf_counter() - started),
        f"resident MB with {number:,} pending": broker.resident_mb(),
    }
    for measured in (
        await scenarios.submits_one_at_a_time(broker, 50, seconds),
        await scenarios.submits_pipelined(broker, seconds),
        await scenarios.drain(broker, number, seconds),
    ):
        figures |= {f"deep: {label}": value for label, value in measured.items()}
    figures["deep: resident MB at the end"] = broker.resident_mb()
    return figures


def machine() -> dict[str, object]:
    """What the figures were taken on."""
    return {
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "cpu": _cpu_name(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
    }


def machine_line() -> str:
    """The machine in one line."""
    return ", ".join(f"{key} {value}" for key, value in machine().items())


def _cpu_name() -> str:
    answer = subprocess.run(["lscpu"], capture_output=True, text=True, check=False).stdout
    names = [line.partition(":")[2].strip() for line in answer.splitlines() if "Model name" in line]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    main()
