"""The Python examples, run as they stand against a running broker."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.door import NativeDoor

EXAMPLES = Path(__file__).parents[3] / "examples" / "python"


async def started(door: NativeDoor, *words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, *words),
        cwd=EXAMPLES,
        env={**os.environ, "TQ_URL": door.url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.fixture
async def worker(door: NativeDoor) -> AsyncIterator[None]:
    """`tq worker tasks:app`; it ends in good order."""
    process = await started(door, "-m", "taskqueue.cli.main", "worker", "tasks:app")
    yield
    process.send_signal(signal.SIGTERM)
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode == 0, errors.decode()


@pytest.mark.usefixtures("worker")
@pytest.mark.parametrize(
    ("program", "last_lines"),
    [
        ("producer.py", ["b'\"sent to grace@example.org\"'"]),
        ("typed_producer.py", ["sent to ada@example.org", "5"]),
    ],
)
async def test_a_producer_prints_the_workers_results(
    door: NativeDoor, program: str, last_lines: list[str]
) -> None:
    process = await started(door, program)
    printed, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    assert printed.decode().splitlines()[-len(last_lines) :] == last_lines
