"""How long a failed task waits before its next attempt."""

from typing import Final

from msgspec import Struct

from taskqueue.core.clock import SECOND

MOST_DOUBLINGS: Final = 64
"""Beyond so many steps no delay grows any more; it keeps the power small for any count."""


class RetryPolicy(Struct, frozen=True, array_like=True):
    """The delays of a task that fails: `first`, each `factor` times the last, at most `longest`.

    Both are microseconds. `jitter` is the part of a delay by which it may be longer or shorter.
    """

    first: int = 5 * SECOND
    factor: float = 2.0
    longest: int = 3600 * SECOND
    jitter: float = 0.1

    def delay_before(self, retry: int, spread: float) -> int:
        """Microseconds to wait before retry number `retry` (from 1).

        `spread` between -1 and 1 places the delay within the jitter, so that tasks that failed
        together do not come back together.
        """
        grown = self.first * self.factor ** min(retry - 1, MOST_DOUBLINGS)
        return round(min(self.longest, grown) * (1 + self.jitter * spread))


USUAL: Final = RetryPolicy()
"""The policy of a task that names none."""
