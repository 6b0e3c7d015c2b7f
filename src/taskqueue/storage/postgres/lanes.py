"""Where the last claim stopped, so that the next one need not look at what came before.

While somebody holds an old snapshot, PostgreSQL cannot drop the index entries of tasks that have
been claimed: without a place to begin at, each claim would walk over all of them. A lane is the
ready tasks of one type and priority, in the order of `run_at`; its floor is a `run_at` before
which there is nothing to claim, as far as this broker knows. Whatever becomes ready below a floor
lowers it: this broker's own work at once, that of others when they tell, and a sweep now and then
finds the rest.
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from taskqueue.core.task import Task

MARGIN: Final = 200_000
"""Microseconds that a floor keeps below what was claimed last: what is committed a little later
than its `run_at` says must not be missed."""


class Lane(NamedTuple):
    """Ready tasks of one type and priority, from `floor` on."""

    task_type: str
    priority: int
    floor: int


class Lanes:
    """What one broker knows of the lanes."""

    def __init__(self) -> None:
        self._floors: dict[str, dict[int, int]] = {}
        self._lowered: dict[tuple[str, int], int] = {}
        """To where, since a claim last looked into the lane."""

    def add(self, lanes: Iterable[tuple[str, int]]) -> None:
        """These lanes exist."""
        for task_type, priority in lanes:
            self._floors.setdefault(task_type, {}).setdefault(priority, 0)

    def unknown(self, tasks: Iterable[Task]) -> list[tuple[str, int]]:
        """The lanes of these tasks that are not known yet, in order."""
        return sorted(
            {
                (task.task_type, task.priority)
                for task in tasks
                if task.priority not in self._floors.get(task.task_type, ())
            }
        )

    def of(self, task_types: Iterable[str]) -> list[Lane]:
        """The lanes of these types."""
        return [
            Lane(task_type, priority, floor)
            for task_type in task_types
            for priority, floor in self._floors.get(task_type, {}).items()
        ]

    def all(self) -> list[Lane]:
        """Every lane."""
        return self.of(list(self._floors))

    def lower(self, task_type: str, priority: int, run_at: int) -> None:
        """Something became ready there."""
        floors = self._floors.get(task_type)
        if floors is None:
            return
        lane = task_type, priority
        self._lowered[lane] = min(run_at, self._lowered.get(lane, run_at))
        if floors.get(priority, 0) > run_at:
            floors[priority] = run_at

    def lower_all(self, task_type: str, run_at: int) -> None:
        """Something became ready in one of the lanes of a type."""
        for priority in self._floors.get(task_type, ()):
            self.lower(task_type, priority, run_at)

    def note(self, asked: Sequence[Lane], picked: Sequence[Task], limit: int, wall: int) -> None:
        """A claim looked into these lanes and got these tasks, in order, `limit` at most."""
        last = picked[-1] if len(picked) >= limit else None
        for lane in asked:
            if last is not None and lane.priority < last.priority:
                continue
            is_partly_read = last is not None and lane.priority == last.priority
            reached = min(wall, last.run_at) if last is not None and is_partly_read else wall
            floor = max(lane.floor, reached - MARGIN)
            # What was told of while the claim was under way, it may not have seen.
            floor = min(floor, self._lowered.pop((lane.task_type, lane.priority), floor))
            if lane.priority in self._floors.get(lane.task_type, ()):
                self._floors[lane.task_type][lane.priority] = floor

    def forget(self) -> None:
        """Nothing is known of the floors any more, only which lanes there are."""
        for floors in self._floors.values():
            for priority in floors:
                floors[priority] = 0
