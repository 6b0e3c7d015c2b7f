"""Handlers to run with `tq worker tasks:app`, from this folder."""

from taskqueue import App, Context

app = App()


@app.task(retries=5, timeout=30)
async def send_email(ctx: Context, to: str, subject: str = "Hello") -> str:
    """Pretend to send an e-mail, and say how far that is."""
    await ctx.progress(0.5, "rendered")
    return f"sent to {to}"


@app.task
def add(a: int, b: int) -> int:
    """Add two numbers, in a thread: handlers need not be coroutines."""
    return a + b
