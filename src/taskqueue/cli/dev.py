"""`tq dev`: broker and worker in one command, the worker anew whenever its code changes."""

import asyncio
import contextlib
import os
import sys
import tempfile
from typing import Annotated, Final

import uvloop
from cyclopts import Parameter

from taskqueue.cli.broker import greet
from taskqueue.cli.reloading import keep_worker
from taskqueue.client.aio import AsyncClient
from taskqueue.client.task import Task
from taskqueue.server.logs import set_up_logs
from taskqueue.server.server import STOP_SIGNALS, Endpoints, running
from taskqueue.settings.sources import Loaded, load_settings
from taskqueue.worker.entry import load_app

SAMPLES: Final = "taskqueue.cli.samples:app"
WORKER_SHUTDOWN_SECONDS: Final = 2
PATIENCE_SECONDS: Final = 30.0


def dev(
    app: Annotated[str, Parameter(help="where your app is: module:name")] = SAMPLES,
    *,
    http: Annotated[str | None, Parameter(help="HOST:PORT of the REST door")] = None,
    native: Annotated[str | None, Parameter(help="HOST:PORT of the native door")] = None,
    grpc: Annotated[str | None, Parameter(help="HOST:PORT of the gRPC door")] = None,
    data: Annotated[str | None, Parameter(help="folder in which tasks are kept")] = None,
    concurrency: Annotated[int, Parameter(help="tasks at once")] = 10,
) -> None:
    """Run a broker and a worker, the worker anew when its code changes.

    Without an app it runs sample handlers and one task of theirs.
    """
    load_app(app)  # a wrong name is told before anything starts
    flags = {"http.listen": http, "native.listen": native, "grpc.listen": grpc, "data.folder": data}
    flags["tls.cert"] = ""  # nothing leaves this machine
    loaded = load_settings(flags, os.environ)
    if loaded.settings.access.bootstrap_key is not None:
        os.environ.setdefault("TQ_API_KEY", loaded.settings.access.bootstrap_key)
    set_up_logs("warning", "auto")
    uvloop.run(_run(app, loaded, concurrency))


def demo(
    *,
    http: Annotated[str | None, Parameter(help="HOST:PORT of the REST door")] = None,
    native: Annotated[str | None, Parameter(help="HOST:PORT of the native door")] = None,
    grpc: Annotated[str | None, Parameter(help="HOST:PORT of the gRPC door")] = None,
) -> None:
    """Run a broker and sample handlers on tasks that are gone when it stops."""
    with tempfile.TemporaryDirectory(prefix="tq-demo-") as folder:
        dev(http=http, native=native, grpc=grpc, data=folder)


async def _run(app: str, loaded: Loaded, concurrency: int) -> None:
    stop = asyncio.Event()
    for number in STOP_SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running(loaded.settings) as endpoints:
        greet(endpoints, loaded)
        options = [
            *(app, "--url", str(endpoints.native), "--concurrency", str(concurrency)),
            *("--shutdown", str(WORKER_SHUTDOWN_SECONDS), "--log-level", "warning"),
        ]
        keeping = asyncio.create_task(keep_worker(options))
        showing = asyncio.create_task(_show(endpoints)) if app == SAMPLES else None
        stopping = asyncio.create_task(stop.wait())
        await asyncio.wait([keeping, stopping], return_when=asyncio.FIRST_COMPLETED)
        for task in (keeping, stopping, showing):
            if task is not None:
                task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
    print("stopped; the tasks are kept for the next start", file=sys.stderr)


async def _show(endpoints: Endpoints) -> None:
    """Run one sample task and say what to try next."""
    async with AsyncClient(str(endpoints.native)) as client:
        task_id = await client.submit_task(Task("hello", b'{"name": "world"}'))
        result = await client.wait_for_result(task_id, timeout=PATIENCE_SECONDS)
    print(
        f"""
sample task {task_id} completed: {result.decode()}

Try next, in another terminal:
  curl -X POST http://{endpoints.http}/api/v1/tasks -H 'Content-Type: application/json' \\
    -d '{{"task_type": "hello", "payload": "eyJuYW1lIjogIkFkYSJ9"}}'
  grpcurl -plaintext -d '{{"task_type": "hello", "payload": "eyJuYW1lIjogIkxpbiJ9"}}' \\
    {endpoints.grpc} taskqueue.TaskQueue/SubmitTask
  redis-cli -p {endpoints.native.port} TQ.SUBMIT hello '{{"name": "Grace"}}'
  .venv/bin/tq submit count '{{"to": 5}}' --wait
  open http://{endpoints.http}/docs

Sample task types: hello, add, count, fail, reverse. Your own: tq dev module:app
Ctrl-C stops broker and worker.""",
        flush=True,
    )
