"""`tq worker`: a process that runs the handlers of apps."""

import asyncio
import contextlib
import os
import signal
import sys
from typing import Annotated

from cyclopts import Parameter

from taskqueue.cli.options import HERE, LogFormat, LogLevel, Target
from taskqueue.server.logs import set_up_logs
from taskqueue.worker.entry import load_app, run_worker
from taskqueue.worker.runner import Worker
from taskqueue.worker.settings import WorkerSettings

RELOAD: str = "--reload"
Patterns = Annotated[
    list[str] | None,
    Parameter(negative="", help="task types, or patterns as in 'mail.*'; several times, or commas"),
]


def worker(
    *apps: Annotated[str, Parameter(help="where the apps are: module:name")],
    concurrency: Annotated[int, Parameter(help="slots: tasks at once, 1 to 500")] = 10,
    types: Patterns = None,
    exclude: Patterns = None,
    reload: Annotated[bool, Parameter(negative="", help="a new worker for changed code")] = False,
    shutdown: Annotated[float, Parameter(help="seconds to finish when told to stop")] = 60.0,
    child_tasks: Annotated[int, Parameter(help="tasks per process of handlers, 0: any")] = 1_000,
    child_memory_mb: Annotated[
        int, Parameter(help="memory above which such a process is replaced, 0: any")
    ] = 0,
    cancel: Annotated[
        float, Parameter(help="seconds for a cancelled handler to end before its process is killed")
    ] = 5.0,
    stall: Annotated[float, Parameter(help="seconds of a blocked loop to log, 0: none")] = 1.0,
    log_level: Annotated[LogLevel, Parameter(help="the least that is logged")] = "info",
    log_format: Annotated[LogFormat, Parameter(help="json, text or auto")] = "auto",
    broker: Target = HERE,
) -> None:
    """Run the handlers of apps until told to stop."""
    if reload:
        _run_reloading()
        return
    set_up_logs(log_level, log_format)
    settings = WorkerSettings(
        concurrency=concurrency,
        shutdown_seconds=shutdown,
        child_tasks=child_tasks,
        child_memory_mb=child_memory_mb,
        cancel_seconds=cancel,
        stall_seconds=stall,
        types=_each(types),
        exclude=_each(exclude),
    )
    chosen = broker.chosen()
    if chosen.api_key is not None:
        # So that the clients in its handlers, and their processes, have it, too.
        os.environ["TQ_API_KEY"] = chosen.api_key
    run_worker([load_app(app) for app in apps], chosen.url, settings, _greet)


def _each(patterns: list[str] | None) -> tuple[str, ...]:
    return tuple(one for text in patterns or () for one in text.split(",") if one)


def _run_reloading() -> None:
    """Run this very command without its --reload, anew for each change of the code."""
    from taskqueue.cli.reloading import keep_worker

    words = sys.argv[1:]
    options = [word for word in words[words.index("worker") + 1 :] if word != RELOAD]

    async def keep() -> None:
        keeping = asyncio.ensure_future(keep_worker(options))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, keeping.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await keeping

    asyncio.run(keep())


def _greet(worker: Worker) -> None:
    print(f"worker {worker.worker_id} started", file=sys.stderr, flush=True)
