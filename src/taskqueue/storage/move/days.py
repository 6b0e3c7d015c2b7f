"""Which numbers the tasks get: those they had, put into the day of their submit.

The new engine finds a task's partition by its number, and orders tasks by it. So a task that had
the number n gets the first number of its day plus n: the order stays, no two are the same, and
what it was can be told from what it is. What was decided for a task once is kept.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import Final

from taskqueue.storage.postgres.days import bounds_of, day_of

SPAN: Final = bounds_of(0)[1]
"""How many numbers a day has; no embedded engine comes near that many tasks."""

DAYS_BACK: Final = 31
"""Days older than that get no partition of their own; the one for the rest has their tasks."""


class Days:
    """The day of each task."""

    def __init__(self, boundaries: Iterable[Sequence[int]], reached: int) -> None:
        """`boundaries` has the first task of each day; `reached` is the last one decided on."""
        self.boundaries = [(first, day) for first, day in boundaries]
        self.reached = reached

    def place(self, seq: int, created_at: int, today: int) -> int:
        """The number that a task gets. They must come in the order of their old ones."""
        if seq > self.reached:
            day = min(day_of(created_at), today)
            if not self.boundaries or day > self.boundaries[-1][1]:
                self.boundaries.append((seq, day))
            self.reached = seq
        index = bisect_right(self.boundaries, (seq, SPAN))
        return self.boundaries[max(0, index - 1)][1] * SPAN + seq

    def recent(self, today: int) -> list[int]:
        """The days that are to have a partition, today among them."""
        days = {day for _, day in self.boundaries if day > today - DAYS_BACK}
        return sorted(days | {today})


def old_number(place: int) -> int:
    """The number that the task in a place had."""
    return place % SPAN
