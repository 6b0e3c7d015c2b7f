"""Numbers of tasks that tell the day of their submit, and so the partition that they are in.

A number has, from its highest bits down: the moment in steps of 64 µs since 2020 (45 bits, enough
until 2091), the broker (8 bits), and the place in its batch (10 bits).
"""

from typing import Final

EPOCH: Final = 1_577_836_800_000_000
"""2020-01-01 in microseconds."""

DAY: Final = 86_400_000_000
STEP_BITS: Final = 6
BROKER_BITS: Final = 8
PLACE_BITS: Final = 10
SHIFT: Final = BROKER_BITS + PLACE_BITS
MOST_IN_BATCH: Final = 1 << PLACE_BITS


def step_of(moment: int) -> int:
    """The step that a moment in microseconds falls into; 0 for any before 2020."""
    return max(0, moment - EPOCH) >> STEP_BITS


def first_seq(step: int, broker: int) -> int:
    """The first number of a broker's batch in a step."""
    return (step << SHIFT) | (broker % (1 << BROKER_BITS)) << PLACE_BITS


def day_of(moment: int) -> int:
    """The day, counted from 2020-01-01, that a moment in microseconds is in."""
    return max(0, moment - EPOCH) // DAY


def bounds_of(day: int) -> tuple[int, int]:
    """The first number of a day, and that of the next."""
    return first_seq(step_of(EPOCH + day * DAY), 0), first_seq(step_of(EPOCH + (day + 1) * DAY), 0)
