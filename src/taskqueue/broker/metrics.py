"""What the broker counts as it works: plain numbers, turned into Prometheus text by the REST door.

What the storage counts durably (tasks by status and type) is not counted here a second time.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from typing import Final

ATTEMPT_SECONDS: Final = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
    *(60.0, 300.0, 900.0, 3600.0),
)
COMMIT_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
BATCH_SIZES: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)

MOST_TYPES: Final = 1_000
"""Task types that get a histogram of their own; the rest share one called OTHER."""

OTHER: Final = "other"


class Histogram:
    """How often values fell at or below each bound; the last bucket takes all that is larger."""

    __slots__ = ("bounds", "buckets", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one value; one below 0, as where a stall was forgiven meanwhile, as 0."""
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.total += max(0.0, value)


class Metrics:
    """The numbers of one broker since it started.

    `http_requests` and `grpc_requests` count answers by operation and status. Each door puts a
    function into `connections` that says how many clients are connected to it.
    """

    def __init__(self) -> None:
        self.batch_sizes = Histogram(BATCH_SIZES)
        self.commit_seconds = Histogram(COMMIT_SECONDS)
        self.attempts: dict[str, Histogram] = {}
        self.http_requests: Counter[tuple[str, int]] = Counter()
        self.grpc_requests: Counter[tuple[str, str]] = Counter()
        self.connections: dict[str, Callable[[], int]] = {}

    def committed(self, batch_size: int, seconds: float) -> None:
        """A transaction of `batch_size` commands became durable in `seconds`."""
        self.batch_sizes.observe(batch_size)
        self.commit_seconds.observe(seconds)

    def attempt_ended(self, task_type: str, seconds: float) -> None:
        """A worker finished a task `seconds` after it had claimed it."""
        histogram = self.attempts.get(task_type)
        if histogram is None:
            name = task_type if len(self.attempts) < MOST_TYPES else OTHER
            histogram = self.attempts.setdefault(name, Histogram(ATTEMPT_SECONDS))
        histogram.observe(seconds)
