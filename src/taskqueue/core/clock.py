"""Time, asked for in this one place. All times are whole microseconds since 1970-01-01 UTC.

Two readings, because two questions are asked of a clock:

`wall`    what the calendar says; it follows corrections of the system's time forwards and never
          goes backwards, so `updated_at` and the order of tasks do not either.
`steady`  how long something has lasted; it starts at the wall's reading, advances with the
          monotonic clock whatever is done to the system's time, and leaves out the time in which
          the whole process stood still. Leases and deadlines are measured on it.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

SECOND: Final = 1_000_000
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Clock(Protocol):
    """What the broker asks of time."""

    def wall(self) -> int:
        """The present moment; never less than an earlier answer."""
        ...

    def steady(self) -> int:
        """A reading for measuring durations; jumps of the wall clock do not show in it."""
        ...

    def forgive(self, microseconds: int) -> None:
        """Take a stall of the process out of the steady time."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def __init__(self, offset: int = 0) -> None:
        """`offset` in microseconds is by how much a clock that is shared with others is ahead."""
        self._offset = offset
        self._latest_wall = 0
        self._anchor = self._system() - time.monotonic_ns() // 1_000

    def wall(self) -> int:
        self._latest_wall = max(self._latest_wall, self._system())
        return self._latest_wall

    def steady(self) -> int:
        return self._anchor + time.monotonic_ns() // 1_000

    def forgive(self, microseconds: int) -> None:
        self._anchor -= microseconds

    def _system(self) -> int:
        return time.time_ns() // 1_000 + self._offset


class ManualClock:
    """A clock that stands still until it is moved: for tests."""

    def __init__(self, start: int = 1_700_000_000 * SECOND) -> None:
        self._wall = start
        self._steady = start

    def wall(self) -> int:
        return self._wall

    def steady(self) -> int:
        return self._steady

    def forgive(self, microseconds: int) -> None:
        self._steady -= microseconds

    def advance(self, seconds: float) -> None:
        """Let time pass on both readings."""
        self._wall += round(seconds * SECOND)
        self._steady += round(seconds * SECOND)


def moment(microseconds: int) -> datetime:
    """The UTC date of a reading."""
    return EPOCH + timedelta(microseconds=microseconds)


def microseconds(date: datetime) -> int:
    """The reading for a date; one without an offset is taken as UTC.

    Raises OverflowError where the date has no UTC form between the years 1 and 9999.
    """
    aware = date if date.tzinfo is not None else date.replace(tzinfo=UTC)
    return (aware.astimezone(UTC) - EPOCH) // timedelta(microseconds=1)
