"""`tq worker`: a process that runs an app's handlers."""

import os
import sys
from typing import Annotated

from cyclopts import Parameter

from taskqueue.cli.options import HERE, LogFormat, LogLevel, Target
from taskqueue.server.logs import set_up_logs
from taskqueue.worker.entry import load_app, run_worker
from taskqueue.worker.runner import Worker, WorkerSettings


def worker(
    app: Annotated[str, Parameter(help="where the app is: module:name")],
    *,
    concurrency: Annotated[int, Parameter(help="tasks at once, 1 to 500")] = 10,
    shutdown: Annotated[float, Parameter(help="seconds to finish when told to stop")] = 60.0,
    child_tasks: Annotated[int, Parameter(help="tasks per process of handlers, 0: any")] = 1_000,
    child_memory_mb: Annotated[
        int, Parameter(help="memory above which such a process is replaced, 0: any")
    ] = 0,
    stall: Annotated[float, Parameter(help="seconds of a blocked loop to log, 0: none")] = 1.0,
    log_level: Annotated[LogLevel, Parameter(help="the least that is logged")] = "info",
    log_format: Annotated[LogFormat, Parameter(help="json, text or auto")] = "auto",
    broker: Target = HERE,
) -> None:
    """Run the handlers of an app until told to stop."""
    set_up_logs(log_level, log_format)
    settings = WorkerSettings(
        concurrency=concurrency,
        shutdown_seconds=shutdown,
        child_tasks=child_tasks,
        child_memory_mb=child_memory_mb,
        stall_seconds=stall,
    )
    chosen = broker.chosen()
    if chosen.api_key is not None:
        # So that the clients in its handlers, and their processes, have it, too.
        os.environ["TQ_API_KEY"] = chosen.api_key
    run_worker(load_app(app), chosen.url, settings, _greet)


def _greet(worker: Worker) -> None:
    print(f"worker {worker.worker_id} started", file=sys.stderr, flush=True)
