"""The leases of workers: how long each one may stay silent before its tasks are taken back."""

from collections.abc import Mapping

from msgspec import Struct

from taskqueue.core.clock import Clock


class Worker(Struct):
    """What is known of a worker: when it was first heard of, and until when its lease runs.

    Both are microseconds on the steady clock.
    """

    since: int
    lease_until: int


class Workers:
    """The workers that are alive, as far as this broker knows."""

    def __init__(self, clock: Clock, lease: int) -> None:
        self.lease = lease
        self._clock = clock
        self._workers: dict[str, Worker] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, worker_id: object) -> bool:
        return worker_id in self._workers

    def renew(self, worker_id: str) -> None:
        """Give a worker a whole lease from now; it has been heard of."""
        now = self._clock.steady()
        worker = self._workers.get(worker_id)
        if worker is None:
            self._workers[worker_id] = Worker(since=now, lease_until=now + self.lease)
        else:
            worker.lease_until = now + self.lease

    def forget(self, worker_id: str) -> None:
        """Drop a worker that left or whose tasks have been taken back."""
        self._workers.pop(worker_id, None)

    def heard(self, since: int) -> dict[str, int]:
        """The workers heard of since a moment, and how many microseconds ago that was."""
        now = self._clock.steady()
        return {
            worker_id: now - heard
            for worker_id, worker in self._workers.items()
            if (heard := worker.lease_until - self.lease) >= since
        }

    def note(self, ages: Mapping[str, int]) -> None:
        """Others have heard of these workers, so many microseconds ago."""
        now = self._clock.steady()
        for worker_id, age in ages.items():
            lease_until = now - age + self.lease
            worker = self._workers.get(worker_id)
            if worker is not None:
                worker.lease_until = max(worker.lease_until, lease_until)
            elif lease_until > now:
                self._workers[worker_id] = Worker(since=now - age, lease_until=lease_until)

    def forget_silent(self, margin: int) -> None:
        """Drop the workers whose lease ran out so long ago: another broker has seen to them."""
        limit = self._clock.steady() - margin
        for worker_id in [
            name for name, worker in self._workers.items() if worker.lease_until <= limit
        ]:
            del self._workers[worker_id]

    def silent(self) -> list[str]:
        """The workers whose lease has run out."""
        now = self._clock.steady()
        return [
            worker_id for worker_id, worker in self._workers.items() if worker.lease_until <= now
        ]
