"""`tq workers` and `tq logs`: who works, and what attempts have said."""

import sys
from typing import Annotated, Any, Final, Literal

from cyclopts import Parameter

from taskqueue.cli.bulk import ask
from taskqueue.cli.completion import task_ids
from taskqueue.cli.options import HERE, ONCE, LiveForm, Target
from taskqueue.cli.output import PLAIN, Form, as_row, print_rows
from taskqueue.cli.watching import shown
from taskqueue.core.errors import InvalidRequest, TaskQueueError
from taskqueue.wire.workers import WorkerReply

COLUMNS: Final = ("worker_id", "order", "slots", "cpu_percent", "memory_mb", "host", "last_seen")
LINES: Final = ("at", "attempt", "level", "message")

Order = Literal["quiet", "work", "stop"]


def workers(
    order: Annotated[Order | None, Parameter(help="what the workers named are to do")] = None,
    *worker_ids: Annotated[str, Parameter(help="the workers to tell")],
    yes: Annotated[bool, Parameter(negative="", help="do not ask before they stop")] = False,
    form: LiveForm = ONCE,
    broker: Target = HERE,
) -> None:
    """List the workers that are alive, or tell some to be quiet, to work again or to stop."""
    with broker.connect() as client:
        if order is None:
            shown(form, lambda: print_rows([_row(one) for one in client.workers()], form, COLUMNS))
            return
        if not worker_ids:
            raise InvalidRequest(f"no worker is named; write tq workers {order} ID")
        if order == "stop" and not yes:
            ask(f"stop {len(worker_ids)} workers?")
        first: TaskQueueError | None = None
        for worker_id in worker_ids:
            try:
                client.order(worker_id, order)
            except TaskQueueError as error:
                print(f"tq: {worker_id}: {error.code}: {error.message}", file=sys.stderr)
                first = first or error
            else:
                print(f"{worker_id}\t{order}")
    if first is not None:
        raise first


def logs(
    task_id: Annotated[str, Parameter(completer=task_ids)],
    *,
    form: Form = PLAIN,
    broker: Target = HERE,
) -> None:
    """Print the lines that a task's attempts have logged, oldest first."""
    with broker.connect() as client:
        print_rows([as_row(line) for line in client.logs(task_id)], form, LINES)


def _row(worker: WorkerReply) -> dict[str, Any]:
    row = as_row(worker)
    row["memory_mb"] = round(worker.memory_bytes / 2**20, 1)
    row["slots"] = f"{worker.busy}/{worker.slots}"
    return row
