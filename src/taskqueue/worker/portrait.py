"""What a worker tells of itself with its heartbeats."""

import os
import socket
import time
from collections.abc import Iterable, Sequence

from taskqueue.wire.messages import MOST_CLAIM_TYPES
from taskqueue.wire.workers import MOST_HELD, About, Order
from taskqueue.worker.memory import resident


class Portrait:
    """The parts that stay, and the measuring of those that do not."""

    def __init__(self, slots: int, task_types: Iterable[str]) -> None:
        self._slots = slots
        self._task_types = list(task_types)[:MOST_CLAIM_TYPES]
        self._host = socket.gethostname()[:255]
        self._version = ""
        self._seen = time.monotonic(), time.process_time()

    def drawn(self, busy: int, tasks: Sequence[str], order: str) -> About:
        """How the worker is now, and how busy it kept a core since the last time."""
        if not self._version:
            # Here, in the heartbeat's thread: it takes a while to import.
            from importlib.metadata import version

            self._version = version("taskqueue")
        now = time.monotonic(), time.process_time()
        passed = max(0.001, now[0] - self._seen[0])
        percent = 100 * (now[1] - self._seen[1]) / passed
        self._seen = now
        return About(
            host=self._host,
            pid=os.getpid(),
            version=self._version,
            slots=self._slots,
            busy=min(busy, self._slots),
            cpu_percent=round(max(0.0, percent), 1),
            memory_bytes=resident(),
            task_types=self._task_types,
            tasks=list(tasks)[:MOST_HELD],
            order=Order(order),
        )
