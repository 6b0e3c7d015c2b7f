"""Runs a worker in a process of its own, and a new one for each change of its code."""

import asyncio
import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from watchfiles import PythonFilter, awatch


async def keep_worker(options: Sequence[str]) -> None:
    """Run `tq worker` with these options for ever; the old one finishes before the new one starts.

    Cancelled, it waits for the worker to end.
    """
    while True:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "taskqueue.cli.main", "worker", *options),
            start_new_session=True,  # Ctrl-C reaches it through us, once
        )
        try:
            await _wait_for_change()
            print("the code changed; a new worker starts", file=sys.stderr)
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await asyncio.shield(process.wait())


async def _wait_for_change() -> None:
    async for _changes in awatch(Path.cwd(), watch_filter=PythonFilter()):
        return
