"""`tq dlq`: the tasks that have failed for good, by what they failed of."""

import asyncio
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Annotated, Final, NamedTuple

from cyclopts import Parameter
from msgspec import Struct

from taskqueue.cli.bulk import AT_ONCE, Deed, Filter, Manner, Selection, carry_out, find
from taskqueue.cli.completion import task_ids, task_types
from taskqueue.cli.options import HERE, ONCE, DryRun, LiveForm, Target, Yes
from taskqueue.cli.output import PLAIN, Form, as_row, is_for_programs, print_record, print_rows
from taskqueue.cli.progress import progress
from taskqueue.cli.tasks import PURGE, RETRY
from taskqueue.cli.watching import shown
from taskqueue.client.aio import AsyncClient
from taskqueue.client.sync import SyncClient, begin
from taskqueue.client.task import TaskStatus
from taskqueue.core.errors import InvalidRequest, InvalidStatus, TaskNotFound
from taskqueue.core.task import Status
from taskqueue.wire.messages import LARGEST_PAGE

COLUMNS: Final = ("count", "task_type", "error", "first", "last", "task_id")
LONGEST_ERROR: Final = 200

TaskId = Annotated[str, Parameter(completer=task_ids)]
TaskType = Annotated[str | None, Parameter(name="--type", help="task type", completer=task_types)]
ErrorText = Annotated[
    str | None, Parameter(name="--error", help="only those whose last error has this text in it")
]


Every = Annotated[bool, Parameter(name="--all", negative="", help="all the dead tasks there are")]


class Meant(NamedTuple):
    """Which dead tasks are meant."""

    named: tuple[str, ...]
    task_type: str | None
    error: str | None
    every: bool


class Group(Struct):
    """Tasks of one type that have failed of the same; `task_id` is the one that did so last."""

    count: int
    task_type: str
    error: str
    first: datetime
    last: datetime
    task_id: str


def list_groups(
    *,
    task_type: TaskType = None,
    error: ErrorText = None,
    limit: Annotated[int, Parameter(help="how many of the newest tasks to look at")] = 1_000,
    form: LiveForm = ONCE,
    broker: Target = HERE,
) -> None:
    """List dead tasks, grouped by type and error; with -o id the id of each of them."""

    def show() -> None:
        ids, total = _newest(client, task_type, limit)
        tasks = [task for task in _read(client, ids) if _failed_of(task, error)]
        if form.output == "id":
            print_rows([as_row(task) for task in tasks], form, ("task_id",))
        else:
            print_rows([as_row(group) for group in grouped(tasks)], form, COLUMNS)
        if total > len(ids):
            print(
                f"looked at the newest {len(ids)} of {total} tasks; --limit says how many",
                file=sys.stderr,
            )

    with broker.connect() as client:
        shown(form, show)


def show(task_id: TaskId, *, form: Form = PLAIN, broker: Target = HERE) -> None:
    """Show a dead task and every failure of it, with tracebacks."""
    with broker.connect() as client:
        task = client.get_status(task_id)
    if task.status is not Status.DEAD_LETTER:
        raise InvalidStatus(f"task {task_id} is {task.status}, not dead; see tq status {task_id}")
    row = as_row(task)
    if is_for_programs(form) or form.fields:
        print_record(row, form)
        return
    failures = row.pop("failures")
    print_record(row, form)
    for failure in failures:
        print(f"\nattempt {failure['attempt']} at {failure['at']}, worker {failure['worker_id']}")
        print(_printable(failure["traceback"] or failure["error"]).rstrip())


def retry(
    *task_ids: TaskId,
    task_type: TaskType = None,
    error: ErrorText = None,
    every: Every = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    broker: Target = HERE,
) -> None:
    """Put dead tasks back in the queue: those that are named, of a type, or of an error."""
    _carry_out(RETRY, broker, Meant(task_ids, task_type, error, every), Manner(yes, dry_run))


def delete(
    *task_ids: TaskId,
    task_type: TaskType = None,
    error: ErrorText = None,
    every: Every = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    broker: Target = HERE,
) -> None:
    """Delete dead tasks for good: those that are named, of a type, or of an error."""
    _carry_out(PURGE, broker, Meant(task_ids, task_type, error, every), Manner(yes, dry_run))


def grouped(tasks: Sequence[TaskStatus]) -> list[Group]:
    """Tasks by type and error, the largest group first.

    Numbers, ids and addresses in an error make no group of their own.
    """
    groups: dict[tuple[str, str], Group] = {}
    for task in tasks:
        error = (task.error or "").partition("\n")[0][:LONGEST_ERROR]
        at = task.updated_at
        key = (task.task_type, re.sub(r"0x[0-9a-fA-F]+|[0-9a-fA-F]{8,}|\d+", "#", error))
        group = groups.setdefault(key, Group(0, task.task_type, error, at, at, task.task_id))
        group.count += 1
        group.first = min(group.first, at)
        if at > group.last:
            group.last, group.task_id, group.error = at, task.task_id, error
    return sorted(groups.values(), key=lambda group: (-group.count, group.task_type, group.error))


def _carry_out(deed: Deed, broker: Target, meant: Meant, manner: Manner) -> None:
    ways = [bool(meant.named), meant.task_type is not None or meant.error is not None, meant.every]
    if sum(ways) != 1:
        raise InvalidRequest(f"name the tasks to {deed.verb}, or say --type, --error or --all")
    with broker.connect() as client:
        if meant.named:
            # Each is looked at first: purge would take a completed one as well.
            ids = list(dict.fromkeys(meant.named))
            _require_dead(client, ids)
        else:
            ids = find(client, deed, Filter(status=[Status.DEAD_LETTER], task_type=meant.task_type))
        if meant.error is not None:
            ids = [task.task_id for task in _read(client, ids) if _failed_of(task, meant.error)]
        carry_out(client, deed, Selection(ids, is_named=bool(meant.named)), manner)


def _require_dead(client: SyncClient, ids: Sequence[str]) -> None:
    for task_id in ids:
        status = client.get_status(task_id).status
        if status is not Status.DEAD_LETTER:
            raise InvalidStatus(f"task {task_id} is {status}, not dead; nothing was changed")


def _newest(client: SyncClient, task_type: str | None, limit: int) -> tuple[list[str], int]:
    """The ids of the newest dead tasks, and how many there are in all."""
    if limit < 1:
        raise InvalidRequest(f"limit must be 1 or more, got {limit}", field="limit")
    ids: list[str] = []
    cursor: str | None = None
    while True:
        page = client.list_tasks(
            status=Status.DEAD_LETTER,
            task_type=task_type,
            limit=min(LARGEST_PAGE, limit - len(ids)),
            cursor=cursor,
        )
        ids += [task.task_id for task in page.tasks]
        cursor = page.next_cursor
        if cursor is None or len(ids) >= limit:
            return ids, page.total


def _read(client: SyncClient, ids: Sequence[str]) -> list[TaskStatus]:
    tasks: list[TaskStatus] = []
    with progress("read failures", len(ids)) as advance:
        for first in range(0, len(ids), AT_ONCE):
            some = ids[first : first + AT_ONCE]
            tasks += begin(client, partial(_read_some, ids=some)).result()
            advance(len(some))
    return tasks


async def _read_some(client: AsyncClient, ids: Sequence[str]) -> list[TaskStatus]:
    async def read(task_id: str) -> TaskStatus | None:
        try:
            return await client.get_status(task_id)
        except TaskNotFound:
            return None  # its retention was over just now

    found = await asyncio.gather(*(read(task_id) for task_id in ids))
    return [task for task in found if task is not None and task.status is Status.DEAD_LETTER]


def _failed_of(task: TaskStatus, text: str | None) -> bool:
    return text is None or text.lower() in (task.error or "").lower()


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)
