"""`tq workers` and `tq logs`: who works, and what attempts have said."""

import sys
import time
from typing import Annotated, Any, Final

from cyclopts import Parameter

from taskqueue.cli.bulk import ask
from taskqueue.cli.completion import task_ids, worker_ids
from taskqueue.cli.options import HERE, ONCE, LiveForm, Target
from taskqueue.cli.output import PLAIN, Form, as_row, print_line, print_rows
from taskqueue.cli.watching import shown
from taskqueue.client.sync import SyncClient
from taskqueue.core.errors import BrokerUnavailable, InvalidRequest, TaskQueueError
from taskqueue.core.task import TERMINAL
from taskqueue.wire.workers import OrderName, WorkerReply

COLUMNS: Final = ("worker_id", "order", "slots", "cpu_percent", "memory_mb", "host", "last_seen")
LINES: Final = ("at", "attempt", "level", "message")

FOLLOW_SECONDS: Final = 0.5
"""Between two looks for new lines."""


def workers(
    order: Annotated[OrderName | None, Parameter(help="what the workers named are to do")] = None,
    *names: Annotated[str, Parameter(help="the ids of the workers to tell", completer=worker_ids)],
    yes: Annotated[bool, Parameter(negative="", help="do not ask before they stop")] = False,
    form: LiveForm = ONCE,
    broker: Target = HERE,
) -> None:
    """List the workers that are alive, or tell some to be quiet, to work again or to stop."""
    with broker.connect() as client:
        if order is None:
            shown(form, lambda: print_rows([_row(one) for one in client.workers()], form, COLUMNS))
            return
        if not names:
            raise InvalidRequest(f"no worker is named; write tq workers {order} ID")
        if order == "stop" and not yes:
            ask(f"stop {len(names)} workers?")
        first: TaskQueueError | None = None
        for worker_id in names:
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
    follow: Annotated[
        bool, Parameter(name=["--follow", "-f"], negative="", help="and those to come, to its end")
    ] = False,
    form: Form = PLAIN,
    broker: Target = HERE,
) -> None:
    """Print the lines that a task's attempts have logged, oldest first."""
    with broker.connect() as client:
        if follow:
            _follow(client, task_id, form)
        else:
            print_rows([as_row(line) for line in client.logs(task_id)], form, LINES)


def _follow(client: SyncClient, task_id: str, form: Form) -> None:
    """Print lines as they come; goes on when a broker that was away is back."""
    printed, has_ended, has_looked, is_lost = 0, False, False, False
    while not has_ended:
        try:
            has_ended = client.get_status(task_id).status in TERMINAL
            lines = client.logs(task_id)  # afterwards: none can come once it has ended
        except BrokerUnavailable as error:
            if not has_looked:
                raise
            if not is_lost:
                print(f"tq: {error.code}: {error.message}; trying again", file=sys.stderr)
            is_lost, has_ended = True, False
        else:
            for line in lines[printed:]:
                print_line(as_row(line), form, LINES)
            printed, has_looked, is_lost = len(lines), True, False
        if not has_ended:
            time.sleep(FOLLOW_SECONDS)


def _row(worker: WorkerReply) -> dict[str, Any]:
    row = as_row(worker)
    row["memory_mb"] = round(worker.memory_bytes / 2**20, 1)
    row["slots"] = f"{worker.busy}/{worker.slots}"
    return row
