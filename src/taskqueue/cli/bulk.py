"""Does one thing to many tasks: finds them, asks first, says exactly what became of them."""

import asyncio
import re
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Annotated, Any, Final, NamedTuple

from cyclopts import Parameter

from taskqueue.cli.completion import task_types
from taskqueue.cli.labels import Labels
from taskqueue.cli.options import AS_IT_IS
from taskqueue.cli.progress import progress
from taskqueue.client.aio import AsyncClient
from taskqueue.client.sync import SyncClient, begin
from taskqueue.core.clock import SystemClock, moment
from taskqueue.core.errors import BrokerUnavailable, InvalidRequest, TaskQueueError
from taskqueue.core.task import Status
from taskqueue.wire.messages import LARGEST_PAGE

AT_ONCE: Final = 200
"""Calls that are sent before their answers are waited for."""

_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def duration(_kind: object, tokens: Sequence[Any]) -> timedelta:
    """The time that `90s`, `15m`, `6h`, `7d` or `2w` means; a bare number is seconds."""
    text = tokens[0].value
    found = re.fullmatch(r"(\d{1,9})([smhdw]?)", text)
    if found is None:
        raise ValueError(f"{text!r} is no time; write 90s, 15m, 6h, 7d or 2w")
    number, unit = found.groups()
    return timedelta(**{_UNITS[unit or "s"]: int(number)})


@Parameter(name="*")
@dataclass(frozen=True)
class Filter(Labels):
    """Which tasks are meant, instead of naming them."""

    status: Annotated[
        list[Status] | None, AS_IT_IS, Parameter(help="tasks that stand so", negative="")
    ] = None
    task_type: Annotated[
        str | None, Parameter(name="--type", help="task type", completer=task_types)
    ] = None
    older_than: Annotated[
        timedelta | None,
        Parameter(help="not changed for so long: 90s, 15m, 6h, 7d", converter=duration),
    ] = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was said."""
        return self == NO_FILTER


NO_FILTER: Final = Filter()


class Deed(NamedTuple):
    """What is done to tasks: its words, and the statuses in which a task is fit for it.

    `usual` are those that are meant if a filter names no status. What is `for_good` is asked about
    even where the tasks are named.
    """

    verb: str
    done: str
    fit: tuple[Status, ...]
    usual: tuple[Status, ...]
    act: Callable[[AsyncClient, str], Awaitable[object]]
    for_good: bool = False


class Failed(NamedTuple):
    """A task to which it could not be done, and why."""

    task_id: str
    error: TaskQueueError


class Manner(NamedTuple):
    """How to go about it: without asking, or without doing it."""

    yes: bool
    dry_run: bool


class Selection(NamedTuple):
    """The tasks that are meant, and whether they were named one by one."""

    ids: list[str]
    is_named: bool


def select(client: SyncClient, deed: Deed, named: Sequence[str], wanted: Filter) -> Selection:
    """The tasks that are named, or those that the filter finds.

    Raises InvalidRequest if neither or both are given, or if a status is not fit for the deed.
    """
    if bool(named) != wanted.is_empty:
        raise InvalidRequest(
            f"name the tasks to {deed.verb}, or say which with --status, --type, --older-than, "
            f"--tag, --meta{'; not both' if named else ''}"
        )
    if named:
        return Selection(list(dict.fromkeys(named)), is_named=True)
    return Selection(find(client, deed, wanted), is_named=False)


def carry_out(client: SyncClient, deed: Deed, selected: Selection, manner: Manner) -> None:
    """Do it to tasks, having asked about those that nobody named, or if it is for good.

    Raises InvalidRequest if nobody can be asked; the error of the only task, or SystemExit, if it
    could not be done to all of them.
    """
    ids, is_named = selected
    if manner.dry_run:
        print(f"{len(ids)}\twould be {deed.done}")
        return
    if (deed.for_good or not is_named) and ids and not manner.yes:
        ask(f"{deed.verb} {_counted(len(ids))}?")
    _report(deed, selected, do_all(client, deed, ids))


def find(client: SyncClient, deed: Deed, wanted: Filter) -> list[str]:
    """The ids of the tasks that a filter means. Raises InvalidRequest for a status unfit for it."""
    statuses = wanted.status or deed.usual
    unfit = [status for status in statuses if status not in deed.fit]
    if unfit:
        raise InvalidRequest(
            f"tq {deed.verb} is not for tasks that are {unfit[0]}; --status may be "
            f"{' or '.join(deed.fit)}",
            field="status",
        )
    latest = moment(SystemClock().wall()) - (wanted.older_than or timedelta())
    found: list[str] = []
    for status in statuses:
        cursor: str | None = None
        while True:
            page = client.list_tasks(
                status=status,
                task_type=wanted.task_type,
                limit=LARGEST_PAGE,
                cursor=cursor,
                tags=wanted.tags,
                metadata=wanted.metadata,
            )
            found += [
                task.task_id
                for task in page.tasks
                if wanted.older_than is None or task.updated_at <= latest
            ]
            cursor = page.next_cursor
            if cursor is None:
                break
    return list(dict.fromkeys(found))


def do_all(client: SyncClient, deed: Deed, ids: Sequence[str]) -> list[Failed]:
    """Do it to all of them, many calls under way at once; those that it could not be done to.

    Stops when the broker is gone: the rest then failed as well.
    """
    failed: list[Failed] = []
    with progress(f"{deed.verb} tasks", len(ids)) as advance:
        for first in range(0, len(ids), AT_ONCE):
            some = ids[first : first + AT_ONCE]
            outcomes = begin(client, partial(_do_some, deed=deed, ids=some)).result()
            failed += [
                Failed(task_id, error)
                for task_id, error in zip(some, outcomes, strict=True)
                if error is not None
            ]
            advance(len(some))
            gone = next((e for e in outcomes if isinstance(e, BrokerUnavailable)), None)
            if gone is not None:
                failed += [Failed(task_id, gone) for task_id in ids[first + AT_ONCE :]]
                break
    return failed


async def _do_some(
    client: AsyncClient, deed: Deed, ids: Sequence[str]
) -> list[TaskQueueError | None]:
    async def do(task_id: str) -> TaskQueueError | None:
        try:
            await deed.act(client, task_id)
        except TaskQueueError as error:
            return error
        return None

    return await asyncio.gather(*(do(task_id) for task_id in ids))


def _report(deed: Deed, selected: Selection, failed: Sequence[Failed]) -> None:
    ids, is_named = selected
    not_done = {entry.task_id for entry in failed}
    if is_named:
        for task_id in ids:
            if task_id not in not_done:
                print(f"{task_id}\t{deed.done}")
    else:
        print(f"{len(ids) - len(failed)}\t{deed.done}")
    if len(ids) == 1 and failed:
        raise failed[0].error
    for task_id, error in failed:
        print(f"tq: {task_id}: {error.code}: {error.message}", file=sys.stderr)
    if failed:
        print(f"tq: {len(failed)} of {_counted(len(ids))} not {deed.done}", file=sys.stderr)
        raise SystemExit(7 if any(isinstance(e.error, BrokerUnavailable) for e in failed) else 1)


def ask(question: str) -> None:
    """Go on only if somebody at a terminal says yes.

    Raises InvalidRequest if there is nobody to ask, SystemExit if the answer is no.
    """
    if not sys.stdin.isatty():
        raise InvalidRequest(f"{question} nobody can be asked here; say --yes")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        print("nothing was changed", file=sys.stderr)
        raise SystemExit(1)


def _counted(number: int) -> str:
    return f"{number} task" if number == 1 else f"{number} tasks"
