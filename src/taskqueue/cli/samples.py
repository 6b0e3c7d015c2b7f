"""The handlers that `tq dev` runs when it is given no app."""

import asyncio

from taskqueue import App, Context

app = App()


@app.task
async def hello(name: str = "world") -> str:
    """Greet somebody."""
    return f"Hello, {name}!"


@app.task(retries=2)
def add(a: float, b: float) -> float:
    """Add two numbers, in a thread."""
    return a + b


@app.task
async def count(ctx: Context, to: int = 5) -> int:
    """Count slowly, and tell how far it is."""
    for number in range(1, to + 1):
        await asyncio.sleep(1)
        await ctx.progress(number / to, f"at {number}")
        ctx.log(f"counted to {number}")
    return to


@app.task(retries=1)
def fail(message: str = "as asked") -> None:
    """Fail, to see what becomes of it."""
    raise RuntimeError(message)


@app.raw("reverse")
def reverse(payload: bytes) -> bytes:
    """Give the bytes back in the other order."""
    return payload[::-1]
