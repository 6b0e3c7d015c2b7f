"""Declares and submits tasks as a user does; both type checkers find nothing to say here."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import assert_type

from msgspec import Struct

from taskqueue import (
    App,
    CallNext,
    Context,
    Fail,
    Handle,
    Retry,
    SubmitNext,
    Task,
    TaskStatus,
    WorkerSettings,
)


class Order(Struct):
    """What a task may take and return."""

    number: int
    note: str | None = None


class Database:
    """What a lifespan yields."""

    name = "orders"


@asynccontextmanager
async def lifespan(app: App) -> AsyncGenerator[Database, None]:
    yield Database()
    await app.close()


app = App("127.0.0.1:6379", api_key="key", lifespan=lifespan)


@app.middleware
async def timed(ctx: Context, call_next: CallNext) -> bytes:
    return ctx.payload + await call_next()


class Counting:
    """Middleware may be anything that can be called so."""

    async def __call__(self, ctx: Context, call_next: CallNext) -> bytes:
        return await call_next()


app.middleware(Counting())


@app.submit_middleware
async def urgent(task: Task, call_next: SubmitNext) -> str:
    return await call_next(task.with_priority(255))


@app.task(isolation="process")
async def stored(ctx: Context[Database], number: int) -> str:
    assert_type(ctx.state, Database)
    if number < 0:
        raise Fail("no such order")
    raise Retry("later", delay=1.5)


@app.raw("shout", isolation="process")
def shout(ctx: Context, payload: bytes) -> bytes:
    return payload.upper()


@app.task(name="email.send", retries=5, timeout=30, priority=200)
async def send_email(ctx: Context, to: str, subject: str = "Hello") -> str:
    await ctx.progress(0.5, "rendered")
    return f"{ctx.task_id} {ctx.attempt} {ctx.token} {to} {subject}"


@app.task
async def double(number: int) -> int:
    return 2 * number


@app.task
def add(a: int, b: int = 0) -> int:
    return a + b


@app.task()
def ship(ctx: Context, order: Order, *, express: bool = False) -> Order | None:
    return order if express and ctx.attempt == 1 else None


@app.task
def forget() -> None: ...


@app.raw("upper")
def upper(payload: bytes) -> bytes:
    return payload.upper()


@app.raw("lower")
async def lower(ctx: Context, payload: bytes) -> bytes:
    return payload.lower() + ctx.task_id.encode()


async def in_coroutines() -> None:
    handle = await send_email.submit("ada@example.org", subject="Hi")
    assert_type(handle, Handle[str])
    assert_type(await handle.result(timeout=10), str)
    assert_type(await handle.status(), TaskStatus)
    assert_type(await (await double.submit(4)).result(), int)
    assert_type(await (await forget.submit()).result(), None)
    urgent = ship.options(priority=255, delay=1.5)
    assert_type(await (await urgent.submit(Order(1), express=True)).result(), Order | None)
    await add.options(schedule_at=datetime(2130, 1, 1, tzinfo=UTC), task_id="id").submit(1, b=2)
    await handle.cancel()
    assert_type(await (await stored.submit(1)).result(), str)
    print(WorkerSettings(child_tasks=10, child_memory_mb=512, stall_seconds=0.5))


def elsewhere() -> None:
    handle = add.submit_sync(1)
    assert_type(handle, Handle[int])
    assert_type(handle.result_sync(timeout=10), int)
    assert_type(handle.status_sync(), TaskStatus)
    handle.cancel_sync()
    assert_type(upper(b"x"), bytes)
