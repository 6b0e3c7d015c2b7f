"""Submits, reads and cancels through the SDK: `python -m tests.chaos.producer FOLDER ADDRESS SEED`.

Ends with SIGTERM; what is then under way stays unknown in its history.
"""

import asyncio
import random
import sys
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from taskqueue import AsyncClient, OutcomeUnknown, Task, TaskQueueError
from taskqueue.core.ids import new_task_id
from tests.chaos.history import Args, Call, History, digest_of

LANES = 5
PAUSE = 0.08
"""Seconds between two submits of a lane, at most."""

AHEAD = timedelta(seconds=0.5)
LEAST_AHEAD = 0.3
"""How far ahead a `schedule_at` is chosen, and seconds that are left of it even if a busy machine
takes its time to send the submit."""


def a_task(chance: random.Random) -> Task:
    """One of all sorts: now or later, small or large, with many retries or, rarely, with few."""
    task = Task(
        chance.choice(["chaos", "chaos-thread"]),
        chance.randbytes(chance.choice([0, 20, 500, 20_000])),
        priority=chance.randrange(256),
        max_retries=chance.randrange(3) if chance.random() < 0.05 else 1_000,
        task_id=new_task_id(),
    )
    match chance.randrange(8):
        case 0:
            return task.with_delay(0.3)
        case 1:
            return task.with_schedule_at(datetime.now(UTC) + AHEAD)
        case _:
            return task


async def produce(client: AsyncClient, history: History, chance: random.Random) -> None:
    """Submit one task after the other; ask for some of them, cancel others."""
    while True:
        task = a_task(chance)
        task_id = task.task_id or ""
        delay = task.delay or (LEAST_AHEAD if task.schedule_at else 0.0)
        args = Args(task_id=task_id, payload=digest_of(task.payload), delay=delay)
        is_there = await attempt(history.begin("submit", args), client.submit_task(task))
        if is_there:
            await follow_up(client, history, chance, task_id)
        await asyncio.sleep(chance.uniform(0, PAUSE))


async def follow_up(
    client: AsyncClient, history: History, chance: random.Random, task_id: str
) -> None:
    """Something that one does with a task that was submitted, or mostly nothing."""
    args = Args(task_id=task_id)
    match chance.randrange(20):
        case 0:
            await attempt(history.begin("cancel", args), client.cancel(task_id))
        case 1:
            await attempt(history.begin("get", args), status_of(client, task_id))
        case 2:
            await attempt(history.begin("result", args), result_of(client, task_id))


async def status_of(client: AsyncClient, task_id: str) -> str:
    """A task's status."""
    return str((await client.get_status(task_id)).status)


async def result_of(client: AsyncClient, task_id: str) -> str:
    """What stands for a task's result."""
    return digest_of(await client.wait_for_result(task_id, timeout=5))


async def attempt(call: Call, request: Coroutine[Any, Any, object]) -> bool:
    """Note what becomes of a request; whether it was carried out."""
    try:
        answer = await request
    except OutcomeUnknown as error:
        call.ended("unknown", f"{error.code} {error}")
        return False
    except TaskQueueError as error:
        call.ended("fail", f"{error.code} {error}")
        return False
    call.ended("ok", str(answer or ""))
    return True


async def main(folder: Path, address: str, seed: int) -> None:
    """Run some lanes for ever."""
    history = History(folder, "producer")
    # Alternately patient, so that submits are repeated, and not, so that some stay unknown.
    clients = [AsyncClient(address, timeout=60.0 if lane % 2 else 0.3) for lane in range(LANES)]
    async with asyncio.TaskGroup() as lanes:
        for lane, client in enumerate(clients):
            chance = random.Random(seed * LANES + lane)
            lanes.create_task(produce(client, history, chance))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
