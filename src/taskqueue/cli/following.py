"""Follows the tasks of a broker by looking at them again and again, for `tq tail`.

The broker tells of single tasks only. So each look reads the newest tasks of every status, as far
back as there is something new, and those that are known and have not ended.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final

from taskqueue.client.aio import AsyncClient
from taskqueue.client.task import TaskPage
from taskqueue.core.clock import EPOCH
from taskqueue.core.errors import TaskNotFound
from taskqueue.core.task import TERMINAL, Status
from taskqueue.wire.messages import TaskSummary

PAGE: Final = 200
MOST_PAGES: Final = 25
"""How far back one look goes in one status; what is beyond is counted as missed."""

MOST_KNOWN: Final = 50_000
MOST_ASKED: Final = 200
"""Known tasks that one look asks for by their ids."""

State = tuple[str, datetime]


class Follower:
    """What changes in a queue from the first look on."""

    def __init__(self, client: AsyncClient, task_type: str | None) -> None:
        self.missed = 0
        """Tasks of which it is known that they ended and that this was not seen."""
        self._client = client
        self._task_type = task_type
        self._known: OrderedDict[str, State] = OrderedDict()
        self._open: OrderedDict[str, None] = OrderedDict()
        self._since: datetime | None = None
        self._ended: dict[Status, int] = {}

    async def look(self) -> list[TaskSummary]:
        """What has changed since the look before, in the order of the changes; first nothing.

        Raises BrokerUnavailable and what else a client raises.
        """
        is_first = self._since is None
        pages = await asyncio.gather(*(self._page(status, None) for status in Status))
        found: dict[str, TaskSummary] = {}
        for status, page in zip(Status, pages, strict=True):
            for task in page.tasks if is_first else await self._read_on(status, page):
                found[task.task_id] = _later(found.get(task.task_id), task)
        if not is_first:
            for task in await self._ask(self._open.keys() - found.keys()):
                found[task.task_id] = task
        changes = sorted(
            (task for task in found.values() if self._is_new(task)), key=lambda one: one.updated_at
        )
        self._keep(changes)
        self._count(pages, () if is_first else changes)
        if self._since is None:
            self._since = max((task.updated_at for task in changes), default=EPOCH)
            return []
        return changes

    async def _page(self, status: Status, cursor: str | None) -> TaskPage:
        return await self._client.list_tasks(
            status=status, task_type=self._task_type, limit=PAGE, cursor=cursor
        )

    async def _read_on(self, status: Status, page: TaskPage) -> list[TaskSummary]:
        """The tasks of one status, as many pages as begin with something new."""
        tasks = list(page.tasks)
        for _ in range(MOST_PAGES):
            if page.next_cursor is None or not any(map(self._is_new, page.tasks)):
                break
            page = await self._page(status, page.next_cursor)
            tasks += page.tasks
        return tasks

    async def _ask(self, task_ids: Iterable[str]) -> list[TaskSummary]:
        """How tasks stand that are in none of the lists: those asked for longest ago first."""
        wanted = [task_id for task_id in self._open if task_id in set(task_ids)][:MOST_ASKED]
        answers = await asyncio.gather(
            *(self._client.get_status(task_id) for task_id in wanted), return_exceptions=True
        )
        found: list[TaskSummary] = []
        for task_id, answer in zip(wanted, answers, strict=True):
            if isinstance(answer, TaskNotFound):
                self._open.pop(task_id, None)  # it is past its retention
            elif isinstance(answer, BaseException):
                raise answer
            else:
                self._open.move_to_end(task_id)
                found.append(summary_of(answer))
        return found

    def _is_new(self, task: TaskSummary) -> bool:
        if self._known.get(task.task_id) == (task.status, task.updated_at):
            return False
        # One that is older has only come up in a list because others have left it.
        return self._since is None or task.updated_at >= self._since

    def _keep(self, changes: Sequence[TaskSummary]) -> None:
        for task in changes:
            self._known[task.task_id] = (task.status, task.updated_at)
            self._known.move_to_end(task.task_id)
            if task.status in TERMINAL:
                self._open.pop(task.task_id, None)
            else:
                self._open[task.task_id] = None
        while len(self._known) > MOST_KNOWN:
            task_id, _ = self._known.popitem(last=False)
            self._open.pop(task_id, None)

    def _count(self, pages: Sequence[TaskPage], changes: Sequence[TaskSummary]) -> None:
        """Hold what was seen to end against the broker's own count, which lacks nothing."""
        for status, page in zip(Status, pages, strict=True):
            if status not in TERMINAL:
                continue
            before = self._ended.get(status)
            seen = sum(task.status == status for task in changes)
            expected = page.total if before is None else before + seen
            self.missed += max(0, page.total - expected)
            # A look takes a moment: what it sees beyond the count is part of the next one.
            self._ended[status] = page.total + min(max(0, expected - page.total), seen)


def summary_of(task: Any) -> TaskSummary:
    """A task as it stands in lists."""
    return TaskSummary(**{name: getattr(task, name) for name in TaskSummary.__struct_fields__})


def _later(one: TaskSummary | None, other: TaskSummary) -> TaskSummary:
    return other if one is None or one.updated_at <= other.updated_at else one
