"""The workers that are alive: their leases, what they tell of themselves, what they are to do.

A worker may be heard of by several brokers; they exchange what each knows, once a second.
"""

from collections import Counter
from collections.abc import Mapping

from msgspec import Struct

from taskqueue.core.clock import Clock
from taskqueue.core.errors import WorkerNotFound
from taskqueue.storage.cluster import Sighting


class Worker(Struct):
    """What is known of a worker.

    It was first heard of at `since`, and its lease runs until `lease_until`: both microseconds on
    the steady clock. `beats` says that it keeps its lease by heartbeats; `about` is what it tells
    of itself, as JSON. `changed_at` is when something came up here that others do not know.
    """

    since: int
    lease_until: int
    changed_at: int
    beats: bool = False
    is_gone: bool = False
    about: str = ""
    order: str | None = None
    ordered_at: int = 0

    def heard_at(self, lease: int) -> int:
        """When it was last heard of, given how long a lease is."""
        return self.lease_until - lease


class Workers:
    """The workers that are alive, as far as this broker knows.

    Times are microseconds. `lease` is how long a silent worker keeps its tasks; `grace` how long
    one does that beats and has closed all its connections.
    """

    def __init__(self, clock: Clock, lease: int, grace: int | None = None) -> None:
        self.lease = lease
        self._grace = lease if grace is None else min(grace, lease)
        self.clock = clock
        self._workers: dict[str, Worker] = {}
        self._connections: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._workers)

    def __contains__(self, worker_id: object) -> bool:
        return worker_id in self._workers

    def renew(self, worker_id: str) -> Worker:
        """Give a worker a whole lease from now; it has been heard of."""
        now = self.clock.steady()
        worker = self._workers.get(worker_id)
        if worker is None:
            worker = Worker(since=now, lease_until=now + self.lease, changed_at=now)
            self._workers[worker_id] = worker
        else:
            worker.lease_until = now + self.lease
            worker.changed_at = now
            worker.is_gone = False
        return worker

    def beat(self, worker_id: str) -> str | None:
        """A heartbeat of a worker has come; what the worker is ordered to do, if anything."""
        worker = self.renew(worker_id)
        worker.beats = True
        return worker.order

    def connect(self, worker_id: str) -> None:
        """A worker uses one more connection."""
        self._connections[worker_id] += 1

    def disconnect(self, worker_id: str) -> None:
        """A connection that a worker used is closed: if it was the last one, its grace begins."""
        self._connections[worker_id] -= 1
        if self._connections[worker_id] > 0:
            return
        del self._connections[worker_id]
        worker = self._workers.get(worker_id)
        if worker is not None and worker.beats:
            now = self.clock.steady()
            worker.lease_until = min(worker.lease_until, now + self._grace)
            worker.changed_at = now
            worker.is_gone = True

    def tell(self, worker_id: str, about: str) -> None:
        """Keep what a worker tells of itself."""
        self.renew(worker_id).about = about

    def order(self, worker_id: str, order: str) -> None:
        """Have a worker do something, once it beats. Raises WorkerNotFound."""
        worker = self._workers.get(worker_id)
        if worker is None:
            raise WorkerNotFound("No worker with this id is alive")
        worker.order = order
        worker.ordered_at = self.clock.wall()
        worker.changed_at = self.clock.steady()

    def order_of(self, worker_id: str) -> str | None:
        """What a worker is ordered to do, if anything."""
        worker = self._workers.get(worker_id)
        return None if worker is None else worker.order

    def all(self) -> dict[str, Worker]:
        """Every worker, by its id."""
        return dict(sorted(self._workers.items()))

    def forget(self, worker_id: str) -> None:
        """Drop a worker that left or whose tasks have been taken back."""
        self._workers.pop(worker_id, None)

    def heard(self, since: int) -> dict[str, Sighting]:
        """What has come up here since a moment, for the other brokers."""
        now = self.clock.steady()
        return {
            worker_id: Sighting(
                age=now - worker.heard_at(self.lease),
                is_gone=worker.is_gone,
                about=worker.about,
                order=worker.order,
                ordered_at=worker.ordered_at,
            )
            for worker_id, worker in self._workers.items()
            if worker.changed_at >= since
        }

    def note(self, sightings: Mapping[str, Sighting]) -> None:
        """Take over what the brokers know together."""
        now = self.clock.steady()
        for worker_id, seen in sightings.items():
            lease_until = now - seen.age + self.lease
            worker = self._workers.get(worker_id)
            if worker is not None:
                self._update(worker_id, worker, seen, lease_until)
            elif lease_until > now:
                self._workers[worker_id] = Worker(
                    since=now - seen.age,
                    lease_until=lease_until,
                    changed_at=0,
                    about=seen.about,
                    order=seen.order,
                    ordered_at=seen.ordered_at,
                )

    def forget_silent(self, margin: int) -> None:
        """Drop the workers whose lease ran out so long ago: another broker has seen to them."""
        limit = self.clock.steady() - margin
        for worker_id in [
            name for name, worker in self._workers.items() if worker.lease_until <= limit
        ]:
            del self._workers[worker_id]

    def silent(self) -> list[str]:
        """The workers whose lease has run out."""
        now = self.clock.steady()
        return [
            worker_id for worker_id, worker in self._workers.items() if worker.lease_until <= now
        ]

    def fallen_silent(self) -> list[str]:
        """Those of the silent workers that used to beat: nobody is to wait for their claims."""
        return [worker_id for worker_id in self.silent() if self._workers[worker_id].beats]

    def _update(self, worker_id: str, worker: Worker, seen: Sighting, lease_until: int) -> None:
        if seen.ordered_at > worker.ordered_at:
            worker.order, worker.ordered_at = seen.order, seen.ordered_at
        if self._connections[worker_id] > 0:
            worker.lease_until = max(worker.lease_until, lease_until)
        else:
            # Whoever has it connected knows best, also that it has gone.
            worker.lease_until = lease_until
            worker.about = seen.about or worker.about


class Carried:
    """The workers that speak over one connection: its end says something of them."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._ids: set[str] = set()

    def add(self, worker_id: str) -> None:
        """A worker has spoken."""
        if worker_id not in self._ids:
            self._ids.add(worker_id)
            self._workers.connect(worker_id)

    def close(self) -> None:
        """The connection is closed."""
        for worker_id in self._ids:
            self._workers.disconnect(worker_id)
        self._ids.clear()
