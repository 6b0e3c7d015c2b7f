"""Submits and cancels until told to stop: `python -m tests.chaos.producer FOLDER ADDRESS SEED`."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from taskqueue import AsyncClient, OutcomeUnknown, Task, TaskQueueError
from taskqueue.core.ids import new_task_id
from tests.chaos.history import History, Outcome, digest_of

LANES = 6


async def produce(client: AsyncClient, history: History, chance: random.Random) -> None:
    """Submit one task after the other; cancel some of them at once."""
    while True:
        payload = chance.randbytes(chance.choice([0, 20, 500, 20_000]))
        task = Task(
            chance.choice(["chaos", "chaos-thread"]),
            payload,
            priority=chance.randrange(256),
            max_retries=1_000,
            delay=chance.choice([None, None, None, 0.3]),
            task_id=new_task_id(),
        )
        task_id = task.task_id or ""
        outcome: Outcome = "unknown"
        try:
            outcome = await attempt(client.submit_task(task))
        finally:
            history.note("submit", task_id, outcome, digest=digest_of(payload))
        if outcome == "ok" and chance.random() < 0.05:
            history.note("cancel", task_id, await attempt(client.cancel(task_id)))
        await asyncio.sleep(chance.uniform(0, 0.05))


async def attempt(request: Coroutine[Any, Any, object]) -> Outcome:
    """What became of a request."""
    try:
        await request
    except OutcomeUnknown:
        return "unknown"
    except TaskQueueError:
        return "fail"
    return "ok"


async def main(folder: Path, address: str, seed: int) -> None:
    """Run some lanes until SIGTERM."""
    history = History(folder, f"producer-{os.getpid()}")
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    # Alternately patient, so that submits are repeated, and not, so that some stay unknown.
    clients = [AsyncClient(address, timeout=60.0 if lane % 2 else 0.2) for lane in range(LANES)]
    lanes = [
        asyncio.create_task(produce(client, history, random.Random(seed * LANES + lane)))
        for lane, client in enumerate(clients)
    ]
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait([stopping, *lanes], return_when=asyncio.FIRST_COMPLETED)
    for lane in lanes:
        lane.cancel()
    await asyncio.gather(*lanes, return_exceptions=True)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
