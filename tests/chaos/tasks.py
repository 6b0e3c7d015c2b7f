"""The handlers of the crash test's honest workers: they note that they ran."""

import asyncio
import os
import random
from pathlib import Path

from taskqueue import App, Context
from tests.chaos.history import Args, Call, History, digest_of

app = App()
_history = History(Path(os.environ["TQ_CHAOS_FOLDER"]), "worker")


@app.raw("chaos")
async def chaos(ctx: Context, payload: bytes) -> bytes:
    """Work for a moment; fail now and then."""
    run, result = _begun(ctx, payload)
    await asyncio.sleep(random.uniform(0, 0.05))
    return _ended(run, result)


@app.raw("chaos-thread")
def chaos_thread(ctx: Context, payload: bytes) -> bytes:
    """The same in a thread."""
    return _ended(*_begun(ctx, payload))


def _begun(ctx: Context, payload: bytes) -> tuple[Call, bytes]:
    digest = digest_of(payload)
    result = f"{digest} {ctx.token}".encode()
    args = Args(task_id=ctx.task_id, token=ctx.token, payload=digest, result=digest_of(result))
    return _history.begin("run", args), result


def _ended(run: Call, result: bytes) -> bytes:
    if random.random() < 0.01:
        run.ended("fail")
        raise RuntimeError("on purpose")
    run.ended("ok")
    return result
