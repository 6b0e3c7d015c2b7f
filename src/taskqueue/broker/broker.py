"""The broker: one method per operation, in the order of the API reference, workers' ones last.

Every method takes the request and whoever asks; that they may is settled before, in `operations`.
Methods that come down to one command return the ledger's future as it is, so that a door pays for
nothing it does not need; the others are coroutines. Doors find them through `operations`.
"""

import asyncio
import random
import zlib
from collections.abc import Awaitable
from typing import Annotated, Final

from msgspec import Meta, Struct

from taskqueue.broker.access import ANYBODY, Access, AccessSettings, Caller
from taskqueue.broker.cursors import read_cursor, write_cursor
from taskqueue.broker.keys import Keys
from taskqueue.broker.ledger import Ledger
from taskqueue.broker.metrics import Metrics
from taskqueue.broker.neighbours import Neighbours
from taskqueue.broker.updates import Updates
from taskqueue.broker.upkeep import Upkeep
from taskqueue.broker.waiting import ClaimRoom, EndWatch
from taskqueue.broker.workers import Workers
from taskqueue.core.batch import Applied, Batch
from taskqueue.core.clock import SECOND, Clock, microseconds
from taskqueue.core.commands import (
    MOST_LOSSES,
    Audited,
    Cancel,
    Claim,
    Complete,
    Fail,
    Progress,
    Release,
    Retry,
    Submit,
)
from taskqueue.core.errors import (
    BrokerUnavailable,
    InvalidRequest,
    QueueDepthExceeded,
    TaskNotFound,
    TaskQueueError,
)
from taskqueue.core.ids import canonical_task_id, new_task_id
from taskqueue.core.repeats import Repeat
from taskqueue.core.task import ClaimedTask, Event, Status, Task, TaskDetail, Tier
from taskqueue.storage.cluster import ClusterView
from taskqueue.storage.port import Count, Storage, TaskQuery, Totals
from taskqueue.wire import messages as m

HOUR: Final = 3600 * SECOND

MOST_READS: Final = 8
"""Tasks read with their results at a time: each may have ten megabytes."""

CLAIM_KEPT: Final = HOUR
"""How long the answer to a worker's latest claim is kept, in case it repeats it."""


class BrokerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the broker keeps its queue."""

    lease_seconds: Annotated[float, Meta(ge=1, le=3600)] = 30.0
    """How long a silent worker keeps its tasks."""

    retention_seconds: Annotated[float, Meta(ge=1, le=3_650 * 86_400)] = 7 * 86_400.0
    """How long completed and cancelled tasks are kept."""

    max_pending: Annotated[int, Meta(ge=1, le=10**12)] = 1_000_000
    """How many pending tasks the queue takes before submits are refused."""

    idempotency_seconds: Annotated[float, Meta(ge=1, le=365 * 86_400)] = 86_400.0
    """How long an idempotency key is remembered."""

    max_worker_losses: Annotated[int, Meta(ge=1, le=1000)] = MOST_LOSSES
    """How many workers a task may cost before it is set aside, whatever retries it has left."""


class Broker:
    """Everything that can be asked of the queue, in the words of `wire.messages`."""

    def __init__(
        self,
        storage: Storage,
        clock: Clock,
        settings: BrokerSettings,
        metrics: Metrics,
        access: AccessSettings | None = None,
    ) -> None:
        self.clock = clock
        self.metrics = metrics
        self.workers = Workers(clock, round(settings.lease_seconds * SECOND))
        self._settings = settings
        self._storage = storage
        self._ledger = Ledger(storage, clock, metrics)
        self.access = Access(storage, clock, access or AccessSettings())
        self.keys = Keys(storage, self._ledger, clock, self.access)
        self._claims = ClaimRoom(self._ledger)
        self._watch = EndWatch()
        self.updates = Updates(storage)
        self.upkeep = Upkeep(
            storage,
            self._ledger,
            self.workers,
            clock,
            round(settings.retention_seconds * SECOND),
            settings.max_worker_losses,
        )
        self.upkeep.chores.append(self.keys.note_uses)
        self._random = random.Random()  # noqa: S311  jitter, not a secret
        self._pending = 0
        self._reading = asyncio.Semaphore(MOST_READS)
        self._ledger.companions = self._claims.companions
        self._ledger.on_commit = self._on_commit
        self._neighbours = Neighbours(storage, self.upkeep, self._claims, self._watch, self.updates)

    async def open(self) -> None:
        """Learn how full the queue is and who has keys; call it once before any operation."""
        await self.access.open()
        self._pending = await self._storage.count(Status.PENDING, None)
        self._neighbours.listen()

    async def close(self) -> None:
        """Answer everybody who waits, settle what was taken, take nothing more."""
        self.upkeep.close()
        self._neighbours.close()
        self._claims.close()
        self._watch.close()
        self.updates.close()
        await self._ledger.close()

    def submit(self, request: m.SubmitRequest, caller: Caller = ANYBODY) -> asyncio.Future[Task]:
        """Put a task in the queue. Raises QueueDepthExceeded, InvalidRequest, PermissionDenied."""
        return self._ledger.record(self._submission(request, caller))

    async def submit_batch(
        self, request: m.SubmitBatchRequest, caller: Caller = ANYBODY
    ) -> m.SubmitBatchReply:
        """Put several tasks in the queue; each has an outcome of its own."""
        outcomes = [self._try_submit(task, caller) for task in request.tasks]
        return m.SubmitBatchReply(results=[await self._submit_outcome(one) for one in outcomes])

    async def get(self, request: m.WaitRequest, caller: Caller = ANYBODY) -> TaskDetail:
        """How a task stands: at once, or when it ends or the wait is over. Raises TaskNotFound."""
        task_id = _known_form(request.task_id)
        if not request.wait_ms:
            return await self._detail(task_id, caller)
        with self._watch.watching(task_id) as ended:
            detail = await self._detail(task_id, caller)
            if not detail.task.is_terminal:
                await asyncio.wait([ended], timeout=request.wait_ms / 1000)
                detail = await self._detail(task_id, caller)
        return detail

    async def list_tasks(self, request: m.ListRequest, caller: Caller = ANYBODY) -> m.ListReply:
        """One page of tasks, newest first, with the exact number that the filter matches."""
        if request.task_type is None:
            self.access.require_whole_reach(caller)
        else:
            caller.require_type(request.task_type)
        before = None
        if request.cursor is not None:
            if request.offset:
                raise InvalidRequest("offset cannot go with a cursor; leave it out", field="offset")
            before = read_cursor(request.cursor, request)
        tasks = await self._storage.find(
            TaskQuery(request.status, request.task_type, request.limit, request.offset, before)
        )
        total = await self._storage.count(request.status, request.task_type)
        is_full = len(tasks) == request.limit
        return m.ListReply(
            tasks=[m.task_summary(task) for task in tasks],
            total=total,
            limit=request.limit,
            offset=request.offset,
            next_cursor=write_cursor(tasks[-1].seq, request) if is_full else None,
        )

    def cancel(self, request: m.CancelRequest, caller: Caller = ANYBODY) -> asyncio.Future[Task]:
        """Take a task out of the queue. Raises TaskNotFound, InvalidStatus.

        A worker that runs it learns with its next beat that it has lost it.
        """
        command = Cancel(_known_form(request.task_id), caller.scope, request.running)
        return self._ledger.record(Audited(command, "cancel", caller.actor))

    def retry(self, request: m.TaskRequest, caller: Caller = ANYBODY) -> asyncio.Future[Task]:
        """Put a dead or cancelled task back. Raises TaskNotFound, InvalidStatus."""
        command = Retry(_known_form(request.task_id), caller.scope)
        return self._ledger.record(Audited(command, "retry", caller.actor))

    async def stats(self, _request: m.NoRequest, caller: Caller = ANYBODY) -> m.StatsReply:
        """The queue in figures."""
        self.access.require_whole_reach(caller)
        totals = await self.totals()
        by_status: dict[Status, int] = dict.fromkeys(Status, 0)
        depth = dict.fromkeys(Tier, 0)
        for count in totals.counts:
            by_status[count.key.status] += count.present
            if count.key.status is Status.PENDING:
                depth[count.key.tier] += count.present
        recent = totals.recent
        mean = recent.busy / recent.completed / 1000 if recent.completed else 0.0
        return m.StatsReply(
            pending_count=by_status[Status.PENDING],
            in_progress_count=by_status[Status.IN_PROGRESS],
            completed_last_hour=recent.completed,
            failed_last_hour=recent.failed,
            worker_count=len(self.workers),
            avg_processing_time_ms=round(mean, 3),
            queue_depth_by_priority=depth,
        )

    async def health(self, _request: m.NoRequest, _caller: Caller = ANYBODY) -> m.HealthReply:
        """Whether the broker can do its work: whether what it writes would be confirmed."""
        cluster = self._storage.cluster
        is_healthy = self._ledger.is_writable and cluster.complaint is None
        return m.HealthReply(
            status="healthy" if is_healthy else "degraded",
            is_leader=cluster.is_leader,
            connected_workers=len(self.workers),
            pending_tasks=self._pending,
            cluster_healthy=is_healthy,
        )

    async def cluster(self, _request: m.NoRequest, _caller: Caller = ANYBODY) -> ClusterView:
        """The brokers and the database under them."""
        return await self._storage.cluster.view()

    def claim(
        self, request: m.ClaimRequest, caller: Caller = ANYBODY
    ) -> asyncio.Future[list[ClaimedTask]]:
        """Give a worker tasks; where there are none, wait for some. It is a sign of life.

        Raises PermissionDenied.
        """
        if caller.scope:
            for task_type in request.task_types:
                caller.require_type(task_type)
        self.workers.renew(request.worker_id)
        repeat = None
        if request.request_id is not None:
            repeat = Repeat(request.request_id, self.clock.wall() + CLAIM_KEPT)
        types = tuple(dict.fromkeys(request.task_types))
        claim = Claim(request.worker_id, types, request.count, repeat)
        return self._claims.claim(claim, request.wait_ms / 1000)

    def take_unheard(self, outcome: object) -> None:
        """An outcome never reached its caller: tasks claimed for it go back at no cost."""
        if isinstance(outcome, list):
            self._claims.give_back(one for one in outcome if isinstance(one, ClaimedTask))

    def complete(
        self, request: m.CompleteRequest, caller: Caller = ANYBODY
    ) -> asyncio.Future[Task]:
        """An attempt succeeded. Raises TaskNotFound, LeaseLost."""
        task_id = _known_form(request.task_id)
        return self._ledger.record(Complete(task_id, request.token, request.result, caller.scope))

    def fail(self, request: m.FailRequest, caller: Caller = ANYBODY) -> asyncio.Future[Task]:
        """An attempt failed. Raises TaskNotFound, LeaseLost."""
        delay = request.delay_seconds
        return self._ledger.record(
            Fail(
                task_id=_known_form(request.task_id),
                token=request.token,
                kind=request.kind,
                message=request.message,
                traceback=request.traceback,
                retryable=request.retryable,
                delay=None if delay is None else round(delay * SECOND),
                spread=self._random.uniform(-1, 1),
                scope=caller.scope,
            )
        )

    def progress(
        self, request: m.ProgressRequest, caller: Caller = ANYBODY
    ) -> asyncio.Future[Task]:
        """An attempt says how far it is. Raises TaskNotFound, LeaseLost."""
        task_id = _known_form(request.task_id)
        return self._ledger.record(
            Progress(task_id, request.token, request.fraction, request.note, caller.scope)
        )

    def release(self, request: m.ReleaseRequest, caller: Caller = ANYBODY) -> asyncio.Future[Task]:
        """A worker gives a task back unfinished. Raises TaskNotFound, LeaseLost."""
        task_id = _known_form(request.task_id)
        delay = round(request.delay_seconds * SECOND)
        return self._ledger.record(Release(task_id, request.token, caller.scope, delay))

    async def beat(self, request: m.BeatRequest, caller: Caller = ANYBODY) -> m.BeatReply:
        """Renew a worker's lease, tell it what it has lost, take back what it does not know of."""
        self.workers.renew(request.worker_id)
        return m.BeatReply(
            lost=await self._reconcile(request, caller),
            lease_seconds=self._settings.lease_seconds,
            shared=self._storage.cluster.is_shared,
        )

    async def leave(self, request: m.LeaveRequest, caller: Caller = ANYBODY) -> m.LeaveReply:
        """A worker says goodbye: put back what it still holds."""
        held = await self._storage.held([request.worker_id])
        words = [self._ledger.record(Release(task.id, task.token, caller.scope)) for task in held]
        outcomes = await asyncio.gather(*words, return_exceptions=True)
        self.workers.forget(request.worker_id)
        return m.LeaveReply(released=sum(isinstance(outcome, Task) for outcome in outcomes))

    async def totals(self) -> Totals:
        """The counters over all task types, with the last hour."""
        return await self._storage.totals(self.clock.wall() - HOUR)

    async def counts(self) -> list[Count]:
        """The counters by task type."""
        return await self._storage.counts()

    def _on_commit(self, batch: Batch, applied: Applied) -> None:
        self._pending = applied.pending
        self.upkeep.note(batch, applied)
        self._watch.tell(batch, applied)
        self.updates.tell(batch, applied)
        for task in applied.moved:
            if task.last_event is Event.COMPLETE and task.claimed_at is not None:
                seconds = max(0, batch.steady - task.claimed_at) / SECOND
                self.metrics.attempt_ended(task.task_type, seconds)
        if applied.ready:
            self._claims.wake(applied.ready)
        self._storage.cluster.tell(applied)

    def _submission(self, request: m.SubmitRequest, caller: Caller) -> Submit:
        if caller.scope:
            caller.require_type(request.task_type)
        if self._pending >= self._settings.max_pending:
            raise QueueDepthExceeded(
                f"The queue holds {self._pending} pending tasks, as many as it may; "
                "try again when some are done",
                retry_after=1.0,
            )
        now = self.clock.wall()
        task_id = new_task_id() if request.task_id is None else _chosen_id(request.task_id)
        task = Task(
            0,
            task_id,
            request.task_type,
            request.priority,
            Status.PENDING,
            _run_at(request, now),
            request.timeout_seconds * SECOND,
            request.max_retries,
            zlib.crc32(request.payload),
            now,
            now,
        )
        return Submit(task, request.payload, self._repeat(request, task_id, now))

    def _repeat(self, request: m.SubmitRequest, task_id: str, now: int) -> Repeat | None:
        if request.idempotency_key is None:
            return None
        until = now + round(self._settings.idempotency_seconds * SECOND)
        chosen = None if request.task_id is None else task_id
        return Repeat(request.idempotency_key, until, chosen)

    def _try_submit(
        self, request: m.SubmitRequest, caller: Caller
    ) -> Awaitable[Task] | TaskQueueError:
        try:
            return self.submit(request, caller)
        except TaskQueueError as error:
            return error

    async def _submit_outcome(
        self, outcome: Awaitable[Task] | TaskQueueError
    ) -> m.SubmitReply | m.ErrorReply:
        try:
            if isinstance(outcome, TaskQueueError):
                raise outcome
            return m.submit_reply(await outcome)
        except TaskQueueError as error:
            return m.error_reply(error, self.clock.wall())

    async def _detail(self, task_id: str, caller: Caller) -> TaskDetail:
        async with self._reading:
            detail = await self._storage.get(task_id)
        if detail is None or not detail.task.task_type.startswith(caller.scope):
            raise TaskNotFound("Task not found")
        return detail

    async def _reconcile(self, request: m.BeatRequest, caller: Caller) -> list[str]:
        try:
            held = await self._storage.held([request.worker_id])
        except BrokerUnavailable:
            return []  # a beat needs no storage; what was lost is told with a later one
        tokens = {task.id: task.token for task in held}
        named = {claim.task_id.lower(): claim.token for claim in request.held}
        # A claim younger than a lease may still be on its way to the worker.
        settled = self.clock.steady() - self.workers.lease
        unknown = [
            task
            for task in held
            if task.id not in named
            and (task.claimed_at or 0) < settled
            and task.task_type.startswith(caller.scope)
        ]
        if unknown:
            await self.upkeep.take_back(
                unknown, Event.LOSE, "the worker does not know of this claim", is_chore=False
            )
        return [task_id for task_id, token in named.items() if tokens.get(task_id) != token]


def _known_form(task_id: str) -> str:
    canonical = canonical_task_id(task_id)
    if canonical is None:
        raise TaskNotFound("Task not found")
    return canonical


def _chosen_id(task_id: str) -> str:
    canonical = canonical_task_id(task_id)
    if canonical is None:
        raise InvalidRequest(
            "task_id must be a UUID such as 0192f0c1-2f8e-7cc2-98b4-1f2d3c4b5a69", field="task_id"
        )
    return canonical


def _run_at(request: m.SubmitRequest, now: int) -> int:
    if request.delay_seconds is not None:
        if request.schedule_at is not None:
            raise InvalidRequest(
                "delay_seconds cannot go with schedule_at; give one of them", field="delay_seconds"
            )
        return now + round(request.delay_seconds * SECOND)
    if request.schedule_at is None:
        return now
    try:
        return max(now, microseconds(request.schedule_at))
    except OverflowError:
        raise InvalidRequest(
            "schedule_at must lie between the years 1 and 9999 in UTC", field="schedule_at"
        ) from None
