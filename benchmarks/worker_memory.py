"""`python -m benchmarks.worker_memory`: what a worker has after so many tasks, and while idle."""

import argparse
import asyncio
import gc
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from benchmarks.brokers import measured_broker
from taskqueue import App, SyncClient, Task
from taskqueue.worker.memory import MEGABYTE, resident

IDLE_LIMIT: Final = 60 * MEGABYTE
"""An idle worker stays below."""

SLACK: Final = 6 * MEGABYTE
"""What may come and go: arenas that are half empty, and stacks of threads."""

BULK: Final = 5_000
SLOTS: Final = 20
ROUNDS: Final = 30
CHILD_TASKS: Final = 50
TASKS_OF_CHILD: Final = 3
OBJECTS_OF_CHILD: Final = 150
PROC: Final = Path("/proc/self")

app = App()


class Census(Struct, frozen=True):
    """What there is in a worker while it runs nothing but the count; `resident` in bytes.

    Tasks, threads and descriptors are those besides its pool of threads and what each of its
    `children` takes as long as it lives.
    """

    children: int
    resident: int
    objects: int
    asyncio_tasks: int
    threads: int
    descriptors: int


@app.task(name="noop.loop")
async def noop() -> None:
    """Do nothing."""


@app.task(name="noop.thread")
def noop_in_thread() -> None:
    """Do nothing, in a thread."""


@app.task(name="noop.process", isolation="process")
def noop_in_process() -> None:
    """Do nothing, in a process."""


@app.task(name="noop.failing", retries=0)
async def failing() -> None:
    """Fail."""
    raise ValueError("on purpose")


@app.task
async def census() -> Census:
    """Count what there is in this worker."""
    gc.collect()
    names = [thread.name for thread in threading.enumerate()]
    pool = sum(name.startswith("tq-handler") for name in names)
    children = sum(len(tasks.read_text().split()) for tasks in PROC.glob("task/*/children"))
    return Census(
        children=children,
        resident=resident(),
        objects=len(gc.get_objects()),
        asyncio_tasks=len(asyncio.all_tasks()) - TASKS_OF_CHILD * children,
        threads=len(names) - min(pool, SLOTS) - children,
        descriptors=len([*(PROC / "fd").iterdir()]) - children,
    )


def main() -> int:
    """Parse the command line, measure, and say whether anything grew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.worker_memory", description=__doc__)
    parser.add_argument("--tasks", type=int, default=100_000, help="tasks to run")
    options = parser.parse_args()
    with (
        measured_broker() as broker,
        a_worker(broker.native),
        SyncClient(broker.native) as client,
    ):
        idle = counted(client)
        print(f"idle: {idle.resident / MEGABYTE:.1f} MB", flush=True)
        seen = []
        began_at = time.monotonic()
        for done, found in soak(client, options.tasks):
            seen.append(found)
            print(line(done, found, time.monotonic() - began_at), flush=True)
    complaints = grown(seen)
    if idle.resident >= IDLE_LIMIT:
        complaints.append("the idle worker is too large")
    print("\n".join(complaints) or "nothing has grown")
    return len(complaints)


@contextmanager
def a_worker(url: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `tq worker` on this module's tasks, whose processes are replaced often."""
    command = [
        *(sys.executable, "-m", "taskqueue.cli.main", "worker", "benchmarks.worker_memory:app"),
        *("--url", url, "--concurrency", str(SLOTS), "--child-tasks", str(CHILD_TASKS)),
        *("--log-level", "error"),
    ]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)


def counted(client: SyncClient) -> Census:
    """What there is in the worker now."""
    task_id = client.submit_task(Task("census", b"{}"))
    return msgspec.json.decode(client.wait_for_result(task_id), type=Census)


def soak(client: SyncClient, number: int, rounds: int = ROUNDS) -> Iterator[tuple[int, Census]]:
    """Have so many tasks run; tells, time and again, how many have been and what there is."""
    for step in range(1, rounds + 1):
        begun, ends = number * (step - 1) // rounds, number * step // rounds
        for first in range(begun, ends, BULK):
            run(client, range(first, min(first + BULK, ends)))
        yield ends, counted(client)


def run(client: SyncClient, numbers: range) -> None:
    """Run one task for each number, and return when they have ended."""
    tasks = [Task(kind(number), b"{}", max_retries=0) for number in numbers]
    ids = client.submit_many(tasks)
    client.wait_for_end(ids[-1], timeout=600)
    while True:
        stats = client.stats()
        if not stats.pending_count + stats.in_progress_count:
            return
        time.sleep(0.02)


def kind(number: int) -> str:
    """Which task it is: most run on the loop, some in threads, some fail, a few in processes."""
    if number % 100 == 0:
        return "noop.process"
    if number % 50 == 1:
        return "noop.failing"
    return "noop.thread" if number % 5 == 2 else "noop.loop"


def grown(seen: list[Census]) -> list[str]:
    """What is more at the end than after a third, beyond what comes and goes."""
    early, late = seen[len(seen) // 3 - 1], seen[-1]
    more_children = max(0, late.children - early.children)
    may_grow = {
        "resident": SLACK,
        "objects": early.objects // 50 + OBJECTS_OF_CHILD * more_children,
        # A process that starts or ends in that moment has some of these.
        "asyncio_tasks": 6,
        "threads": 4,
        "descriptors": 6,
    }
    return [
        f"{name} grew from {getattr(early, name)} to {getattr(late, name)}"
        for name, slack in may_grow.items()
        if getattr(late, name) > getattr(early, name) + slack
    ]


def line(done: int, found: Census, seconds: float) -> str:
    """What there is, on one line."""
    return (
        f"{done:>9,} tasks, {seconds:6.0f} s: {found.resident / MEGABYTE:6.1f} MB, "
        f"{found.objects:,} objects, {found.asyncio_tasks} asyncio tasks, "
        f"{found.threads} threads, {found.descriptors} descriptors, {found.children} processes"
    )


if __name__ == "__main__":
    sys.exit(main())
