"""Commands about tasks: submit, status, result, wait, list, cancel, retry, change, purge."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

from cyclopts import Parameter

from taskqueue.cli.bulk import (
    NO_FILTER,
    Deed,
    Filter,
    Manner,
    carry_out,
    duration,
    select,
)
from taskqueue.cli.completion import task_ids, task_types
from taskqueue.cli.labels import NO_LABELS, Labels
from taskqueue.cli.options import AS_IT_IS, HERE, ONCE, DryRun, LiveForm, Target, Yes
from taskqueue.cli.output import PLAIN, Form, as_row, print_record, print_rows
from taskqueue.cli.watching import shown
from taskqueue.client.aio import AsyncClient
from taskqueue.client.errors import TaskFailed, WaitTimeout
from taskqueue.client.sync import begin
from taskqueue.client.task import PRIORITIES, Backoff, Task, TaskStatus, UniqueWhile
from taskqueue.core.errors import InvalidRequest, TaskQueueError
from taskqueue.core.task import Status

LIST_COLUMNS: Final = ("task_id", "status", "task_type", "priority", "created_at", "updated_at")
WAIT_COLUMNS: Final = ("task_id", "status", "error")

TaskId = Annotated[str, Parameter(completer=task_ids)]


class Span(NamedTuple):
    """How long a unique key holds: while a task is pending, until it has ended, or for a period."""

    name: UniqueWhile
    seconds: float | None = None


RUNNING: Final = Span("running")


def span(_kind: object, tokens: Sequence[Any]) -> Span:
    """What `pending`, `running`, or a time such as `15m` means."""
    text = tokens[0].value
    if text in ("pending", "running"):
        return Span(text)
    try:
        return Span("period", duration(_kind, tokens).total_seconds())
    except ValueError:
        raise ValueError(f"{text!r} is neither pending nor running, nor a time as 15m") from None


def priority_of(_kind: object, tokens: Sequence[Any]) -> int:
    """The number that `low`, `normal`, `high`, `critical` or a number means."""
    text = tokens[0].value
    if text in PRIORITIES:
        return PRIORITIES[text]
    try:
        return int(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is no priority; give 0 to 255, or {', '.join(PRIORITIES)}"
        ) from None


PRIORITY: Final = Parameter(
    help="0 to 255, 255 first; or low (50), normal, high (200), critical (255)",
    converter=priority_of,
    completer=lambda _context: PRIORITIES,
)
DELAY: Final = Parameter(help="seconds to wait before it may start")
AT: Final = Parameter(help="moment before which it may not start")


def submit(
    task_type: Annotated[str, Parameter(completer=task_types)],
    payload: Annotated[
        str,
        Parameter(help="JSON or other text; @file, or - for stdin", allow_leading_hyphen=True),
    ] = "{}",
    *,
    priority: Annotated[int, PRIORITY] = 100,
    delay: Annotated[float | None, DELAY] = None,
    at: Annotated[datetime | None, AT] = None,
    timeout: Annotated[int, Parameter(help="seconds one attempt may take")] = 300,
    retries: Annotated[int, Parameter(help="executions after the first that failed")] = 3,
    key: Annotated[str | None, Parameter(help="idempotency key: one such task in a day")] = None,
    labels: Labels = NO_LABELS,
    expires: Annotated[float | None, Parameter(help="seconds after which it is not begun")] = None,
    unique: Annotated[
        str | None, Parameter(help="key of which there is one such task until it has ended")
    ] = None,
    unique_while: Annotated[
        Span, Parameter(help="or while it is pending; or for so long: 90s, 15m", converter=span)
    ] = RUNNING,
    replace: Annotated[
        bool, Parameter(negative="", help="take the place of the one that waits")
    ] = False,
    backoff: Annotated[
        float | None,
        Parameter(help="seconds before the first retry, twice as many before each later one"),
    ] = None,
    keep: Annotated[
        timedelta | None,
        Parameter(help="how long to keep it after its end: 0, 15m, 7d", converter=duration),
    ] = None,
    wait: Annotated[bool, Parameter(negative="", help="wait for the result")] = False,
    wait_seconds: Annotated[float, Parameter(help="how long to wait at most")] = 60.0,
    broker: Target = HERE,
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
        tags=labels.tags,
        metadata=labels.metadata,
        expires_in=expires,
        unique_key=unique,
        unique_while=unique_while.name,
        unique_seconds=unique_while.seconds,
        backoff=None if backoff is None else Backoff(first=backoff),
        retention=None if keep is None else keep.total_seconds(),
        replace=replace,
    )
    with broker.connect() as client:
        task_id = client.submit_task(task)
        if wait:
            print(task_id, file=sys.stderr)
            _print_bytes(client.wait_for_result(task_id, wait_seconds))
        else:
            print(task_id)


def status(task_id: TaskId, *, form: Form = PLAIN, broker: Target = HERE) -> None:
    """Show how a task stands."""
    with broker.connect() as client:
        print_record(as_row(client.get_status(task_id)), form)


def result(
    task_id: TaskId,
    *,
    wait: Annotated[float, Parameter(help="seconds to wait for it")] = 0.0,
    broker: Target = HERE,
) -> None:
    """Print a task's result, its bytes as they are."""
    with broker.connect() as client:
        _print_bytes(client.wait_for_result(task_id, wait))


def wait(
    *task_ids: TaskId,
    timeout: Annotated[float, Parameter(help="seconds to wait at most")] = 60.0,
    form: Form = PLAIN,
    broker: Target = HERE,
) -> None:
    """Wait until tasks have ended. Exit code 3: one failed; 6: one has not ended in time."""
    if not task_ids:
        raise InvalidRequest("name the tasks to wait for")
    with broker.connect() as client:
        ends = begin(client, lambda door: _ends(door, task_ids, timeout)).result()
    ended = [end for end in ends if isinstance(end, TaskStatus)]
    rows = [{**as_row(end), "error": end.error} for end in ended]
    print_rows(rows, form, WAIT_COLUMNS)
    errors = [end for end in ends if isinstance(end, TaskQueueError)]
    errors += [
        TaskFailed(end.error or "it was cancelled", task_id=end.task_id, status=end.status)
        for end in ended
        if end.status is not Status.COMPLETED
    ]
    # What cannot be asked for is worse than what failed, and that worse than what goes on.
    errors.sort(key=lambda error: (isinstance(error, WaitTimeout), isinstance(error, TaskFailed)))
    for error in errors[1:]:
        print(f"tq: {error.code}: {error}", file=sys.stderr)
    if errors:
        raise errors[0]


def list_tasks(
    *,
    status: Annotated[Status | None, AS_IT_IS] = None,
    task_type: Annotated[
        str | None, Parameter(name="--type", help="task type", completer=task_types)
    ] = None,
    labels: Labels = NO_LABELS,
    limit: Annotated[int, Parameter(help="how many, 1 to 1000")] = 100,
    offset: Annotated[int, Parameter(help="how many to skip")] = 0,
    form: LiveForm = ONCE,
    broker: Target = HERE,
) -> None:
    """List tasks, newest first."""

    def show() -> None:
        page = client.list_tasks(
            status=status,
            task_type=task_type,
            limit=limit,
            offset=offset,
            tags=labels.tags,
            metadata=labels.metadata,
        )
        print_rows([as_row(task) for task in page.tasks], form, LIST_COLUMNS)
        if sys.stdout.isatty():
            print(f"{len(page.tasks)} of {page.total}", file=sys.stderr)

    with broker.connect() as client:
        shown(form, show)


def cancel(
    *task_ids: TaskId,
    running: Annotated[bool, Parameter(help="also tasks that are running", negative="")] = False,
    wanted: Filter = NO_FILTER,
    dry_run: DryRun = False,
    yes: Yes = False,
    broker: Target = HERE,
) -> None:
    """Cancel tasks; those that are running only with --running.

    Which ones: named, or found with --status, --type, --older-than, --tag and --meta.
    """
    waiting = (Status.PENDING, Status.FAILED)
    fit = (*waiting, Status.IN_PROGRESS) if running else waiting
    deed = Deed(
        "cancel", "cancelled", fit, fit, lambda door, task_id: door.cancel(task_id, running=running)
    )
    with broker.connect() as client:
        carry_out(client, deed, select(client, deed, task_ids, wanted), Manner(yes, dry_run))


RETRY: Final = Deed(
    "retry",
    "back in the queue",
    (Status.DEAD_LETTER, Status.CANCELLED),
    (Status.DEAD_LETTER,),
    lambda door, task_id: door.retry(task_id),
)
"""To put a task back; one that failed and has retries left is put back by the broker itself."""


def retry(
    *task_ids: TaskId,
    wanted: Filter = NO_FILTER,
    dry_run: DryRun = False,
    yes: Yes = False,
    broker: Target = HERE,
) -> None:
    """Put dead or cancelled tasks back in the queue.

    Which ones: named, or found with --status, --type, --older-than, --tag and --meta.
    """
    with broker.connect() as client:
        carry_out(client, RETRY, select(client, RETRY, task_ids, wanted), Manner(yes, dry_run))


def change(
    *task_ids: TaskId,
    priority: Annotated[int | None, PRIORITY] = None,
    delay: Annotated[float | None, DELAY] = None,
    at: Annotated[datetime | None, AT] = None,
    wanted: Filter = NO_FILTER,
    dry_run: DryRun = False,
    yes: Yes = False,
    broker: Target = HERE,
) -> None:
    """Give tasks that wait another priority, or another moment to start.

    Which ones: named, or found with --status, --type, --older-than, --tag and --meta.
    """
    if (priority, delay, at) == (None, None, None):
        raise InvalidRequest("nothing is to be changed; say --priority, --delay or --at")
    waiting = (Status.PENDING, Status.FAILED)

    async def act(door: AsyncClient, task_id: str) -> None:
        await door.change(task_id, priority=priority, delay=delay, schedule_at=at)

    deed = Deed("change", "changed", waiting, waiting, act)
    with broker.connect() as client:
        carry_out(client, deed, select(client, deed, task_ids, wanted), Manner(yes, dry_run))


async def _delete(door: AsyncClient, task_id: str) -> None:
    await door.purge(task_id)


PURGE: Final = Deed(
    "purge",
    "deleted",
    (Status.COMPLETED, Status.CANCELLED, Status.DEAD_LETTER),
    (Status.COMPLETED, Status.CANCELLED),
    _delete,
    for_good=True,
)
"""To delete a task that has ended; dead ones only where that is said."""


def purge(
    *task_ids: TaskId,
    wanted: Filter = NO_FILTER,
    dry_run: DryRun = False,
    yes: Yes = False,
    broker: Target = HERE,
) -> None:
    """Delete tasks that have ended, for good.

    Which ones: named, or found with --status, --type, --older-than, --tag and --meta; dead ones
    only if --status says so.
    """
    with broker.connect() as client:
        carry_out(client, PURGE, select(client, PURGE, task_ids, wanted), Manner(yes, dry_run))


async def _ends(
    client: AsyncClient, task_ids: Sequence[str], seconds: float
) -> list[TaskStatus | TaskQueueError]:
    async def end_of(task_id: str) -> TaskStatus | TaskQueueError:
        try:
            return await client.wait_for_end(task_id, seconds)
        except TaskQueueError as error:
            return error

    return await asyncio.gather(*(end_of(task_id) for task_id in dict.fromkeys(task_ids)))


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
