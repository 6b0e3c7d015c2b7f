"""Commands about tasks: submit, status, result, list, cancel, retry, stats."""

import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from taskqueue.cli.options import ApiKey, Output, Url
from taskqueue.cli.output import as_row, print_record, print_rows
from taskqueue.client.sync import SyncClient
from taskqueue.client.task import Task
from taskqueue.core.errors import TaskQueueError
from taskqueue.core.task import Status

CALL_SECONDS = 10.0

LIST_COLUMNS = ("task_id", "status", "task_type", "priority", "created_at", "updated_at")


def submit(
    task_type: str,
    payload: Annotated[
        str,
        Parameter(help="JSON or other text; @file, or - for stdin", allow_leading_hyphen=True),
    ] = "{}",
    *,
    priority: Annotated[int, Parameter(help="0 to 255, 255 first")] = 100,
    delay: Annotated[float | None, Parameter(help="seconds to wait before it may start")] = None,
    at: Annotated[datetime | None, Parameter(help="moment before which it may not start")] = None,
    timeout: Annotated[int, Parameter(help="seconds one attempt may take")] = 300,
    retries: Annotated[int, Parameter(help="executions after the first that failed")] = 3,
    key: Annotated[str | None, Parameter(help="idempotency key: one such task in a day")] = None,
    wait: Annotated[bool, Parameter(negative="", help="wait for the result")] = False,
    wait_seconds: Annotated[float, Parameter(help="how long to wait at most")] = 60.0,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Submit a task and print its id, or with --wait its result."""
    task = Task(
        task_type,
        _payload(payload),
        priority=priority,
        timeout=timeout,
        max_retries=retries,
        schedule_at=at,
        delay=delay,
        idempotency_key=key,
    )
    with connected(url, api_key) as client:
        task_id = client.submit_task(task)
        if wait:
            print(task_id, file=sys.stderr)
            _print_bytes(client.wait_for_result(task_id, wait_seconds))
        else:
            print(task_id)


def status(task_id: str, *, output: Output = None, url: Url = None, api_key: ApiKey = None) -> None:
    """Show how a task stands."""
    with connected(url, api_key) as client:
        print_record(as_row(client.get_status(task_id)), output)


def result(
    task_id: str,
    *,
    wait: Annotated[float, Parameter(help="seconds to wait for it")] = 0.0,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Print a task's result, its bytes as they are."""
    with connected(url, api_key) as client:
        _print_bytes(client.wait_for_result(task_id, wait))


def list_tasks(
    *,
    status: Status | None = None,
    task_type: Annotated[str | None, Parameter(name=["--type"], help="task type")] = None,
    limit: Annotated[int, Parameter(help="how many, 1 to 1000")] = 100,
    offset: Annotated[int, Parameter(help="how many to skip")] = 0,
    output: Output = None,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """List tasks, newest first."""
    with connected(url, api_key) as client:
        page = client.list_tasks(status=status, task_type=task_type, limit=limit, offset=offset)
    print_rows([as_row(task) for task in page.tasks], output, LIST_COLUMNS)
    if sys.stdout.isatty():
        print(f"{len(page.tasks)} of {page.total}", file=sys.stderr)


def cancel(
    *task_ids: str,
    running: Annotated[bool, Parameter(help="also tasks that are running", negative="")] = False,
    url: Url = None,
    api_key: ApiKey = None,
) -> None:
    """Cancel tasks; those that are running only with --running."""
    with connected(url, api_key) as client:
        _for_each(task_ids, partial(client.cancel, running=running), "cancelled")


def retry(*task_ids: str, url: Url = None, api_key: ApiKey = None) -> None:
    """Put dead or cancelled tasks back in the queue."""
    with connected(url, api_key) as client:
        _for_each(task_ids, client.retry, "back in the queue")


def stats(*, output: Output = None, url: Url = None, api_key: ApiKey = None) -> None:
    """Show the queue in figures."""
    with connected(url, api_key) as client:
        print_record(as_row(client.stats()), output)


def connected(url: str | None, api_key: str | None) -> SyncClient:
    """A client as commands use it: one that gives up soon."""
    return SyncClient(url, api_key=api_key, timeout=CALL_SECONDS)


def _for_each(task_ids: tuple[str, ...], act: Callable[[str], None], done: str) -> None:
    first: TaskQueueError | None = None
    for task_id in task_ids:
        try:
            act(task_id)
        except TaskQueueError as error:
            print(f"tq: {task_id}: {error.code}: {error.message}", file=sys.stderr)
            first = first or error
        else:
            print(f"{task_id}\t{done}")
    if first is not None:
        raise first


def _payload(text: str) -> bytes:
    if text == "-":
        return sys.stdin.buffer.read()
    if text.startswith("@"):
        return Path(text[1:]).read_bytes()
    return text.encode()


def _print_bytes(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    if sys.stdout.isatty() or (data and not data.endswith(b"\n")):
        sys.stdout.buffer.write(b"\n")
    sys.stdout.buffer.flush()
