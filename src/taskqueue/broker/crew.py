"""What workers say of themselves, and what is asked and ordered of them."""

import asyncio

import msgspec

from taskqueue.broker.access import ANYBODY, Access, Caller
from taskqueue.broker.ledger import Ledger
from taskqueue.broker.notices import Notices
from taskqueue.broker.upkeep import Upkeep
from taskqueue.broker.workers import Worker, Workers
from taskqueue.core.clock import Clock, moment
from taskqueue.core.commands import Release
from taskqueue.core.errors import BrokerUnavailable
from taskqueue.core.task import Event, Task
from taskqueue.storage.port import Storage
from taskqueue.wire import messages as m
from taskqueue.wire import workers as w

_ABOUT = msgspec.json.Decoder(w.About)


class Crew:
    """The operations that are about workers. `lease_seconds` is what a heartbeat grants."""

    def __init__(
        self, storage: Storage, ledger: Ledger, upkeep: Upkeep, access: Access, workers: Workers
    ) -> None:
        self.notices = Notices()
        self._storage = storage
        self._ledger = ledger
        self._upkeep = upkeep
        self._access = access
        self._workers = workers
        self._clock: Clock = workers.clock

    async def beat(self, request: w.BeatRequest, caller: Caller = ANYBODY) -> w.BeatReply:
        """Renew a worker's lease, tell it what it has lost, take back what it does not know of."""
        order = self._workers.beat(request.worker_id)
        return w.BeatReply(
            lost=await self._reconcile(request, caller),
            lease_seconds=self._workers.lease / 1_000_000,
            shared=self._storage.cluster.is_shared,
            order=None if order is None else w.Order(order),
        )

    async def leave(self, request: w.LeaveRequest, caller: Caller = ANYBODY) -> w.LeaveReply:
        """A worker says goodbye: put back what it still holds."""
        held = await self._storage.held([request.worker_id])
        words = [self._ledger.record(Release(task.id, task.token, caller.scope)) for task in held]
        outcomes = await asyncio.gather(*words, return_exceptions=True)
        self._workers.forget(request.worker_id)
        self.notices.forget(request.worker_id)
        return w.LeaveReply(released=sum(isinstance(outcome, Task) for outcome in outcomes))

    async def tell(self, request: w.AboutRequest, _caller: Caller = ANYBODY) -> None:
        """Keep what a worker tells of itself. It is a sign of life."""
        self._workers.tell(request.worker_id, msgspec.json.encode(request.about).decode())

    async def notice(self, request: w.NoticeRequest, _caller: Caller = ANYBODY) -> w.NoticeReply:
        """Tell a worker what it is to stop and to do, as soon as there is something."""
        lost = await self.notices.wait(request.worker_id, request.wait_ms / 1000)
        order = self._workers.order_of(request.worker_id)
        return w.NoticeReply(
            lost=[w.HeldClaim(*claim) for claim in lost],
            order=None if order is None else w.Order(order),
        )

    async def order(self, request: w.OrderRequest, caller: Caller = ANYBODY) -> None:
        """Have a worker do something. Raises WorkerNotFound, PermissionDenied."""
        self._access.require_whole_reach(caller)
        self._workers.order(request.worker_id, request.order)
        self.notices.ordered(request.worker_id)

    async def list_all(self, _request: m.NoRequest, caller: Caller = ANYBODY) -> w.WorkersReply:
        """The workers that are alive. Raises PermissionDenied."""
        self._access.require_whole_reach(caller)
        return w.WorkersReply(
            workers=[
                self._described(worker_id, worker)
                for worker_id, worker in self._workers.all().items()
            ]
        )

    def _described(self, worker_id: str, worker: Worker) -> w.WorkerReply:
        about = _ABOUT.decode(worker.about) if worker.about else w.About()
        steady, wall = self._clock.steady(), self._clock.wall()
        return w.WorkerReply(
            worker_id=worker_id,
            since=moment(wall - (steady - worker.since)),
            last_seen=moment(wall - (steady - worker.heard_at(self._workers.lease))),
            order=w.Order(worker.order) if worker.order is not None else about.order,
            host=about.host,
            pid=about.pid,
            version=about.version,
            slots=about.slots,
            busy=about.busy,
            cpu_percent=about.cpu_percent,
            memory_bytes=about.memory_bytes,
            task_types=about.task_types,
            tasks=about.tasks,
        )

    async def _reconcile(self, request: w.BeatRequest, caller: Caller) -> list[str]:
        try:
            held = await self._storage.held([request.worker_id])
        except BrokerUnavailable:
            return []  # a beat needs no storage; what was lost is told with a later one
        tokens = {task.id: task.token for task in held}
        named = {claim.task_id.lower(): claim.token for claim in request.held}
        # A claim younger than a lease may still be on its way to the worker.
        settled = self._clock.steady() - self._workers.lease
        unknown = [
            task
            for task in held
            if task.id not in named
            and (task.claimed_at or 0) < settled
            and task.task_type.startswith(caller.scope)
        ]
        if unknown:
            await self._upkeep.take_back(
                unknown, Event.LOSE, "the worker does not know of this claim", is_chore=False
            )
        return [task_id for task_id, token in named.items() if tokens.get(task_id) != token]
