"""Declares and submits tasks as a user does; both type checkers find nothing to say here."""

from datetime import UTC, datetime
from typing import assert_type

from msgspec import Struct

from taskqueue import App, Context, Handle, TaskStatus


class Order(Struct):
    """What a task may take and return."""

    number: int
    note: str | None = None


app = App("127.0.0.1:6379", api_key="key")


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


def elsewhere() -> None:
    handle = add.submit_sync(1)
    assert_type(handle, Handle[int])
    assert_type(handle.result_sync(timeout=10), int)
    assert_type(handle.status_sync(), TaskStatus)
    handle.cancel_sync()
    assert_type(upper(b"x"), bytes)
