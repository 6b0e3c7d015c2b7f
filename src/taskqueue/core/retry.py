"""How long a failed task waits before its next attempt."""

from typing import Final

from taskqueue.core.clock import SECOND

FIRST_DELAY: Final = 5 * SECOND
LONGEST_DELAY: Final = 3600 * SECOND
JITTER: Final = 0.1


def delay_before(retry: int, spread: float) -> int:
    """Microseconds to wait before retry number `retry` (from 1): 5 s, doubling, at most an hour.

    `spread` between -1 and 1 places the delay within ±10 % of that, so that tasks that failed
    together do not come back together.
    """
    # Past ten doublings the delay is capped anyway; the bound keeps the shift small for any count.
    base = min(LONGEST_DELAY, FIRST_DELAY << min(retry - 1, 10))
    return round(base * (1 + JITTER * spread))
