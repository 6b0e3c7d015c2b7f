"""The handlers of the crash test's workers: they note that they ran, and hash their payload."""

import asyncio
import os
import random
from pathlib import Path

from taskqueue import App, Context
from tests.chaos.history import History, digest_of

app = App()
_history = History(Path(os.environ["TQ_CHAOS_FOLDER"]), f"worker-{os.getpid()}")


@app.raw("chaos")
async def chaos(ctx: Context, payload: bytes) -> bytes:
    """Work for a moment."""
    _history.note("run", ctx.task_id, "ok", token=ctx.token, digest=digest_of(payload))
    await asyncio.sleep(random.uniform(0, 0.05))
    return digest_of(payload).encode()


@app.raw("chaos-thread")
def chaos_thread(ctx: Context, payload: bytes) -> bytes:
    """The same in a thread."""
    _history.note("run", ctx.task_id, "ok", token=ctx.token, digest=digest_of(payload))
    return digest_of(payload).encode()
