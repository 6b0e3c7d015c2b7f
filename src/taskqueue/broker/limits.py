"""How many requests each caller may send: a token bucket for each, kept as one number.

The generic cell rate algorithm (ITU-T I.371): of each caller only the moment is kept at which its
bucket will be full again. Callers whose bucket is full need not be kept at all.
"""

from ipaddress import IPv6Address, ip_address
from typing import Final

from msgspec import Struct

from taskqueue.core.clock import SECOND, Clock

MOST_CALLERS: Final = 50_000
"""Callers kept at a time; beyond that the one heard of least lately begins anew."""


class Allowance(Struct, frozen=True):
    """What a caller may still send. Times are microseconds on the wall clock.

    `retry_after`, in seconds, is how long to wait before the next request is let in; 0 where this
    one was.
    """

    limit: int
    remaining: int
    full_at: int
    retry_after: float


class RateLimiter:
    """Counts requests of callers against a rate and a burst."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._full_at: dict[str, int] = {}

    def take(self, caller: str, rate: int, burst: int, cost: int = 1) -> Allowance:
        """Let a request in, if `caller` has not sent too many; `cost` 0 only asks.

        `rate` is requests per second, `burst` how many may come at once; both at least 1.
        """
        interval = SECOND // rate
        most = interval * burst
        now = self._clock.steady()
        debt = max(0, self._full_at.pop(caller, now) - now)
        due = debt + cost * interval
        is_refused = due > most
        if not is_refused:
            debt = due
        if debt:
            self._full_at[caller] = now + debt
            if len(self._full_at) > MOST_CALLERS:
                del self._full_at[next(iter(self._full_at))]
        return Allowance(
            limit=rate,
            remaining=(most - debt) // interval,
            full_at=self._clock.wall() + debt,
            retry_after=(due - most) / SECOND if is_refused else 0.0,
        )

    def penalty(self, caller: str, rate: int, burst: int, longest: float) -> float:
        """Seconds to hold up somebody who did wrong: none at first, then more, up to `longest`."""
        interval = SECOND // rate
        now = self._clock.steady()
        debt = max(0, self._full_at.pop(caller, now) - now)
        limit = interval * burst + round(longest * SECOND)
        self._full_at[caller] = now + min(debt + interval, limit)
        if len(self._full_at) > MOST_CALLERS:
            del self._full_at[next(iter(self._full_at))]
        return max(0, min(debt + interval, limit) - interval * burst) / SECOND


def caller_of(address: str) -> str:
    """What an address is counted as: all of one IPv6 network of 64 bits are one caller."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return f"{IPv6Address(int(parsed) >> 64 << 64)}/64"
