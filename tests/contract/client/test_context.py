"""What a handler's context promises, seen from a client: in a coroutine, a thread, a process."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from taskqueue import (
    App,
    AsyncClient,
    Backoff,
    Context,
    Fail,
    Retry,
    Snooze,
    Task,
    TaskStatus,
    Worker,
    WorkerSettings,
)
from taskqueue.core.clock import ManualClock
from tests.support.door import PATIENCE, NativeDoor, a_native_door

on_the_loop, in_a_thread, apart = App("127.0.0.1:1"), App("127.0.0.1:1"), App("127.0.0.1:1")
APPS = {"coroutine": on_the_loop, "thread": in_a_thread, "process": apart}
AT_ONCE = Backoff(first=0.0, jitter=0.0)
BEGUN = 0.5

everywhere = pytest.mark.parametrize("kind", APPS)


def declare(function: Callable[..., Any], **options: Any) -> None:
    """Register a handler that is not a coroutine in a thread and in a process."""
    in_a_thread.task(**options)(function)
    apart.task(isolation="process", **options)(function)


@on_the_loop.task
async def tell(ctx: Context) -> dict[str, Any]:
    return told_of(ctx)


def told_of(ctx: Context) -> dict[str, Any]:
    """What an attempt knows of itself; its deadline as the seconds from now."""
    return {
        "about": [ctx.task_id, ctx.task_type, ctx.attempt, ctx.timeout, ctx.payload.decode()],
        "metadata": dict(ctx.metadata),
        "saved": [ctx.saved is None, ctx.saved_as(int)],
        "is_cancelled": ctx.cancelled.is_set(),
        "remaining": ctx.remaining,
        "deadline": (ctx.deadline - datetime.now(UTC)) / timedelta(seconds=1),
    }


declare(told_of, name="tell")


@on_the_loop.task(weight=3)
async def wait(ctx: Context, extend: float | None = None) -> None:
    if extend is not None:
        await ctx.extend(extend)
    ctx.log(f"{ctx.remaining / 60:.0f} min are left")
    await ctx.lines_told()
    await ctx.progress(BEGUN)
    await ctx.cancelled.wait()


def wait_sync(ctx: Context, extend: float | None = None) -> None:
    if extend is not None:
        ctx.extend_sync(extend)
    ctx.log(f"{ctx.remaining / 60:.0f} min are left")
    ctx.progress_sync(BEGUN)
    ctx.cancelled.wait_sync()
    ctx.log("after the end")


declare(wait_sync, name="wait", weight=3)


def end_as(how: str) -> None:
    """Raise what a handler may raise."""
    errors: dict[str, BaseException] = {
        "worth it": ConnectionResetError("again"),
        "forbidden": PermissionError("never"),
        "unknown": ValueError("never"),
        "retry": Retry("again", delay=0),
        "fail": Fail("never"),
        "snooze": Snooze(0),
    }
    if how == "die":
        os._exit(3)
    raise errors[how]


@on_the_loop.task(retry_on=(OSError, EOFError), fail_on=PermissionError)
async def choose(ctx: Context, how: str) -> int:
    return choose_sync(ctx, how)


def choose_sync(ctx: Context, how: str) -> int:
    if ctx.token == 1:
        end_as(how)
    return ctx.token


declare(choose_sync, name="choose", retry_on=(OSError, EOFError), fail_on=PermissionError)


@on_the_loop.task
async def go_on(ctx: Context, how: str) -> Any:
    if ctx.saved is None:
        await ctx.checkpoint({"page": 7})
        if how == "be given back":
            await ctx.progress(BEGUN)
            await asyncio.Event().wait()
        end_as(how)
    return ctx.saved_as(dict)


def go_on_sync(ctx: Context, how: str) -> Any:
    if ctx.saved is None:
        ctx.checkpoint_sync({"page": 7})
        if how == "be given back":
            ctx.progress_sync(BEGUN)
            ctx.cancelled.wait_sync()
        else:
            end_as(how)
    return ctx.saved_as(dict)


declare(go_on_sync, name="go_on")


@on_the_loop.task
async def misuse(ctx: Context, number: int) -> None:
    match number:
        case 0:
            ctx.extend_sync(10)
        case 1:
            ctx.checkpoint_sync(10)
        case 2:
            await ctx.extend(0)
        case _:
            await ctx.checkpoint(object())


@on_the_loop.task
async def read_number(ctx: Context) -> int | None:
    if ctx.saved is None:
        ctx.log("x" * 9_000, "warning")
        await ctx.checkpoint("seven")
        raise Retry(delay=0)
    return ctx.saved_as(int)


MISUSES = {
    0: "RuntimeError: this would block the event loop; use `await ctx.extend(…)` here",
    1: "RuntimeError: this would block the event loop; use `await ctx.checkpoint(…)` here",
    2: "ValueError: seconds must be more than 0, got 0",
    3: "TypeError: Encoding objects of type object is unsupported",
}


class Place:
    """A broker whose clock the test moves, a client, and a worker of one kind of handlers."""

    def __init__(self, door: NativeDoor, client: AsyncClient) -> None:
        self.door = door
        self.client = client

    @asynccontextmanager
    async def work(self, app: App, **settings: Any) -> AsyncIterator[Worker]:
        """A worker with three slots, whose handlers end by themselves when they are cancelled."""
        options = {"concurrency": 3, "cancel_seconds": 60.0} | settings
        worker = Worker(app, self.door.addresses, WorkerSettings(**options))
        running = asyncio.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()
            worker.stop()
            await running

    async def submit(self, task_type: str, arguments: Any = None, **options: Any) -> str:
        """Submit a task that is tried again at once."""
        payload = json.dumps(arguments or {}).encode()
        task = Task(task_type, payload, backoff=AT_ONCE, **options)
        return await self.client.submit_task(task)

    async def end(self, task_type: str, arguments: Any = None, **options: Any) -> TaskStatus:
        """How such a task ends."""
        return await self.client.wait_for_end(await self.submit(task_type, arguments, **options))

    async def begun(self, task_id: str) -> None:
        """Return when a handler has told so."""
        async with asyncio.timeout(PATIENCE):
            while (await self.client.get_status(task_id)).progress != BEGUN:
                pass

    async def lines(self, task_id: str) -> list[str]:
        """What a handler has logged, once there is something."""
        async with asyncio.timeout(PATIENCE):
            while not (lines := await self.client.logs(task_id)):
                pass
        return [line.message for line in lines]

    async def pass_seconds(self, seconds: int) -> None:
        """Let time pass as a healthy broker sees it."""
        clock = self.door.clock
        assert isinstance(clock, ManualClock)
        for _ in range(seconds):
            clock.advance(1)
            await self.door.broker.upkeep.round()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with (
        a_native_door(tmp_path / "data", clock=ManualClock()) as door,
        AsyncClient(door.url) as client,
    ):
        yield Place(door, client)


@everywhere
async def test_a_first_attempt_knows_its_task_and_its_time(place: Place, kind: str) -> None:
    async with place.work(APPS[kind]):
        status = await place.end("tell", timeout=60, metadata={"for": "ada", "é": "ü"})
    assert status.result is not None, status
    told = json.loads(status.result)
    assert told["about"] == [status.task_id, "tell", 1, 60, "{}"]
    assert told["metadata"] == {"for": "ada", "é": "ü"}
    assert told["saved"] == [True, None]
    assert told["is_cancelled"] is False
    assert 60 - PATIENCE < told["remaining"] <= 60
    assert 60 - PATIENCE < told["deadline"] <= 60


@everywhere
async def test_an_extended_attempt_outlives_its_time_limit(place: Place, kind: str) -> None:
    async with place.work(APPS[kind]):
        task_id = await place.submit("wait", {"extend": 600}, timeout=5, max_retries=0)
        await place.begun(task_id)
        await place.pass_seconds(8)
        assert (await place.client.get_status(task_id)).status == "in_progress"
        assert await place.lines(task_id) == ["10 min are left"]
        await place.client.cancel(task_id, running=True)


@everywhere
async def test_an_attempt_that_asked_for_less_is_over_sooner(place: Place, kind: str) -> None:
    async with place.work(APPS[kind]):
        status = await place.end("wait", {"extend": 0.1}, max_retries=0)
        lines = await place.lines(status.task_id)
    assert status.status == "dead_letter"
    assert str(status.error).startswith("TimedOut: ")
    assert lines[0] == "0 min are left"  # a thread may say something more just then


@everywhere
async def test_a_cancelled_attempt_hears_it_and_leaves_its_slots(place: Place, kind: str) -> None:
    client = place.client
    async with place.work(APPS[kind]) as worker:
        heavy = await place.submit("wait")
        await place.begun(heavy)
        said = await place.lines(heavy)
        light = await place.submit("tell")
        worker._heartbeat.beat_now()
        async with asyncio.timeout(PATIENCE):
            while [one.busy for one in await client.workers()] != [3]:
                pass
        assert (await client.get_status(light)).status == "pending"
        await client.cancel(heavy, running=True)
        # In threads and processes only a handler that has heard it makes room.
        await client.wait_for_result(light, timeout=PATIENCE)
        assert (await client.get_status(heavy)).status == "cancelled"
        assert await place.lines(heavy) == said == ["5 min are left"]


@everywhere
async def test_what_is_raised_says_whether_it_is_tried_again(place: Place, kind: str) -> None:
    ends = {
        "worth it": ("completed", 1, b"2"),
        "retry": ("completed", 1, b"2"),
        "snooze": ("completed", 0, b"2"),
        "forbidden": ("dead_letter", 0, None),
        "unknown": ("dead_letter", 0, None),
        "fail": ("dead_letter", 0, None),
    }
    async with place.work(APPS[kind]):
        ids = {how: await place.submit("choose", {"how": how}) for how in ends}
        seen = {how: await place.client.wait_for_end(task_id) for how, task_id in ids.items()}
    assert {how: (one.status, one.retry_count, one.result) for how, one in seen.items()} == ends


@pytest.mark.parametrize(
    ("kind", "how"),
    [(kind, how) for kind in APPS for how in ("unknown", "snooze", "be given back")]
    + [("process", "die")],
)
async def test_the_next_attempt_goes_on_where_the_last_one_was(
    place: Place, kind: str, how: str
) -> None:
    async with place.work(APPS[kind]):
        task_id = await place.submit("go_on", {"how": how})
        if how == "be given back":
            await place.begun(task_id)
    async with place.work(APPS[kind]):
        result = await place.client.wait_for_result(task_id)
    assert json.loads(result) == {"page": 7}
    failures = [one.error for one in (await place.client.get_status(task_id)).failures]
    assert len(failures) == (how in ("unknown", "die"))


async def test_what_a_context_cannot_do_is_refused_in_the_handler(place: Place) -> None:
    async with place.work(on_the_loop):
        for number, said in MISUSES.items():
            status = await place.end("misuse", {"number": number}, max_retries=0)
            assert status.error == said


async def test_what_was_kept_must_be_what_is_asked_for(place: Place) -> None:
    async with place.work(on_the_loop):
        status = await place.end("read_number", max_retries=1)
        [line] = await place.client.logs(status.task_id)
    assert status.error == "ValidationError: Expected `int`, got `str`"
    assert len(status.failures) == 2
    assert (line.level, line.message) == ("warning", "x" * 8_192)
