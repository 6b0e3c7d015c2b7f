"""What a handler's context tells the broker and knows of its attempt, wherever the handler runs."""

import asyncio
import json
import threading
from typing import Any

import pytest

from taskqueue import Context, LeaseLost, Task
from taskqueue.worker.context import MOST_UNSENT
from tests.support.door import until
from tests.unit.worker import process_app
from tests.unit.worker.conftest import Bench, a_worker

EVERYWHERE = (
    "take_notes",
    "take_notes_async",
    "take_notes_in_a_thread",
    "take_notes_on_the_loop",
)


@pytest.mark.parametrize("task_type", EVERYWHERE)
async def test_notes_of_an_attempt_are_kept_for_people_and_for_the_next_one(
    bench: Bench, task_type: str
) -> None:
    client = bench.app.client
    async with a_worker(process_app.app, bench.door, concurrency=1):
        task = Task(task_type, b"{}", timeout=300, metadata={"for": "ada"})
        task_id = await client.submit_task(task)
        result = await client.wait_for_result(task_id)
    assert json.loads(result) == [{"page": 2}, {"for": "ada"}, True, True]
    assert [(line.attempt, line.level, line.message) for line in await client.logs(task_id)] == [
        (1, "info", "begun ?"),
        (2, "warning", "about to end"),
    ]


async def test_a_log_keeps_its_order_and_says_what_it_had_to_drop(bench: Bench) -> None:
    @bench.app.task
    async def talk(ctx: Context) -> None:
        for number in range(MOST_UNSENT + 7):
            ctx.log(f"{number}")
        await ctx.lines_told()
        ctx.log("more")

    await bench.work()
    handle = await talk.submit()
    assert (await bench.ended(handle)).status == "completed"
    lines = [line.message for line in await bench.app.client.logs(handle.task_id)]
    assert lines == [*map(str, range(MOST_UNSENT)), "[7 lines were dropped] more"]


async def test_a_checkpoint_has_a_bound_and_may_be_bytes(bench: Bench) -> None:
    @bench.app.task(retries=1)
    async def save(ctx: Context) -> str:
        if ctx.saved is not None:
            return f"{len(ctx.saved)} bytes from {ctx.saved[:2].hex()}"
        await ctx.checkpoint(b"\x00\xff" * 32 * 1024)
        await ctx.checkpoint(b"x" * (64 * 1024 + 1))
        return "not to be reached"

    await bench.work()
    handle = await save.submit()
    failed = await bench.failed(handle.task_id)
    assert "at most" in failed.failures[0].error
    bench.door.clock.advance(10)  # type: ignore[attr-defined]
    await bench.door.broker.upkeep.promote()
    assert await handle.result() == "65536 bytes from 00ff"


@pytest.mark.parametrize("how", ["cancelled", "out of time", "told to stop"])
async def test_a_thread_sees_that_it_is_to_end(bench: Bench, how: str) -> None:
    seen: list[Any] = []
    begun = threading.Event()

    @bench.app.task(timeout=1 if how == "out of time" else 300, retries=0)
    def look(ctx: Context) -> None:
        begun.set()
        seen.append(ctx.cancelled.wait_sync(60))

    async with a_worker(bench.app, bench.door):
        handle = await look.submit()
        await until(begun.is_set)
        if how == "cancelled":
            await bench.app.client.cancel(handle.task_id, running=True)
        if how != "told to stop":
            await until(lambda: bool(seen))
    await until(lambda: bool(seen))
    assert seen == [True]


async def test_a_coroutine_may_wait_for_its_end_beside_its_work(bench: Bench) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    @bench.app.task(retries=0)
    async def serve(ctx: Context) -> None:
        begun.set()
        try:
            await ctx.cancelled.wait()
        finally:
            assert ctx.cancelled.is_set()
            ended.set()

    await bench.work()
    handle = await serve.submit()
    await begun.wait()
    await bench.app.client.cancel(handle.task_id, running=True)
    await ended.wait()


async def test_an_attempt_that_is_over_cannot_extend_or_keep_anything(bench: Bench) -> None:
    told: list[type[BaseException]] = []
    begun = threading.Event()

    @bench.app.task(retries=3)
    def linger(ctx: Context) -> None:
        if ctx.attempt > 1:
            return
        begun.set()
        ctx.cancelled.wait_sync(60)
        for speak in (ctx.extend_sync, ctx.checkpoint_sync):
            try:
                speak(10)
            except LeaseLost as error:
                told.append(type(error))
        ctx.log("nobody asks for it")

    await bench.work(concurrency=2)
    handle = await linger.submit()
    await until(begun.is_set)
    await bench.take_back(handle.task_id)
    assert (await bench.ended(handle)).status == "completed"
    await until(lambda: len(told) == 2)
    assert await bench.app.client.logs(handle.task_id) == []
