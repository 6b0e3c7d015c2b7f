"""The broker: one method per operation, in the order of the API reference, workers' ones last.

Every method takes the request and whoever asks; that they may is settled before, in `operations`.
Methods that come down to one command return the ledger's future as it is, so that a door pays for
nothing it does not need; the others are coroutines. Doors find them through `operations`.
"""

import asyncio
import random
from collections.abc import Awaitable
from typing import Annotated, Final

from msgspec import Meta, Struct

from taskqueue.broker.access import ANYBODY, Access, AccessSettings, Caller
from taskqueue.broker.crew import Crew
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
from taskqueue.core.clock import SECOND, Clock
from taskqueue.core.commands import (
    MOST_LOSSES,
    Audited,
    Cancel,
    Change,
    Checkpoint,
    Claim,
    Complete,
    Delete,
    Extend,
    Fail,
    Log,
    Progress,
    Release,
    Retry,
    Submit,
)
from taskqueue.core.errors import (
    InvalidRequest,
    QueueDepthExceeded,
    TaskNotFound,
    TaskQueueError,
)
from taskqueue.core.ids import canonical_task_id
from taskqueue.core.repeats import Repeat
from taskqueue.core.task import ClaimedTask, Event, LogLine, Status, Task, TaskDetail, Tier
from taskqueue.storage.cluster import ClusterView
from taskqueue.storage.port import Count, Storage, TaskQuery, Totals
from taskqueue.wire import figures
from taskqueue.wire import messages as m
from taskqueue.wire import workers as w
from taskqueue.wire.submission import start_of, submission

HOUR: Final = 3600 * SECOND

MOST_READS: Final = 8
"""Tasks read with their results at a time: each may have ten megabytes."""

CLAIM_KEPT: Final = HOUR
"""How long the answer to a worker's latest claim is kept, in case it repeats it."""


class BrokerSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the broker keeps its queue."""

    lease_seconds: Annotated[float, Meta(ge=1, le=3600)] = 30.0
    """How long a silent worker keeps its tasks."""

    reconnect_seconds: Annotated[float, Meta(ge=0, le=3600)] = 10.0
    """How long a worker keeps its tasks that beat and has closed all its connections."""

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
        self.workers = Workers(
            clock,
            round(settings.lease_seconds * SECOND),
            round(settings.reconnect_seconds * SECOND),
        )
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
        self.upkeep.on_silent = self._claims.end
        self.crew = Crew(storage, self._ledger, self.upkeep, self.access, self.workers)
        self._random = random.Random()  # noqa: S311  jitter, not a secret
        self._pending = 0
        self._reading = asyncio.Semaphore(MOST_READS)
        self._ledger.companions = self._claims.companions
        self._ledger.on_commit = self._on_commit
        self._neighbours = Neighbours(
            storage, self.upkeep, self._claims, self._watch, self.updates, self.crew.notices
        )

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
        self.crew.notices.close()
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
        query = TaskQuery(
            request.status,
            request.task_type,
            request.limit,
            request.offset,
            before,
            tuple(request.tags),
            tuple(request.metadata.items()),
        )
        tasks = await self._storage.find(query)
        if query.is_labelled:
            total = await self._storage.number(query)
        else:
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

    def change(self, request: m.ChangeRequest, caller: Caller = ANYBODY) -> asyncio.Future[Task]:
        """Give a task that waits another priority or time. Raises TaskNotFound, InvalidStatus."""
        run_at = start_of(request, self.clock.wall())
        if request.priority is None and run_at is None:
            raise InvalidRequest("nothing is to be changed; give priority, schedule_at or delay")
        command = Change(_known_form(request.task_id), request.priority, run_at, caller.scope)
        return self._ledger.record(Audited(command, "change", caller.actor))

    def purge(self, request: m.TaskRequest, caller: Caller = ANYBODY) -> asyncio.Future[Task]:
        """Delete a task that has ended. Raises TaskNotFound, InvalidStatus."""
        command = Delete(_known_form(request.task_id), caller.scope)
        return self._ledger.record(Audited(command, "purge", caller.actor))

    async def logs(self, request: m.TaskRequest, caller: Caller = ANYBODY) -> list[LogLine]:
        """The log of a task. Raises TaskNotFound."""
        task_id = _known_form(request.task_id)
        if caller.scope:
            await self._detail(task_id, caller)
        lines = await self._storage.logs(task_id)
        if lines is None:
            raise TaskNotFound("Task not found")
        return lines

    async def stats(self, _request: m.NoRequest, caller: Caller = ANYBODY) -> figures.StatsReply:
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
        return figures.StatsReply(
            pending_count=by_status[Status.PENDING],
            in_progress_count=by_status[Status.IN_PROGRESS],
            completed_last_hour=recent.completed,
            failed_last_hour=recent.failed,
            worker_count=len(self.workers),
            avg_processing_time_ms=round(mean, 3),
            queue_depth_by_priority=depth,
        )

    async def health(self, _request: m.NoRequest, _caller: Caller = ANYBODY) -> figures.HealthReply:
        """Whether the broker can do its work: whether what it writes would be confirmed."""
        cluster = self._storage.cluster
        is_healthy = self._ledger.is_writable and cluster.complaint is None
        return figures.HealthReply(
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
                process_died=request.process_died,
                most_losses=self._settings.max_worker_losses,
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

    def log(self, request: w.LogRequest, caller: Caller = ANYBODY) -> asyncio.Future[Task]:
        """An attempt puts a line in the task's log. Raises TaskNotFound, LeaseLost."""
        task_id = _known_form(request.task_id)
        return self._ledger.record(
            Log(task_id, request.token, request.level, request.message, caller.scope)
        )

    def checkpoint(
        self, request: w.CheckpointRequest, caller: Caller = ANYBODY
    ) -> asyncio.Future[Task]:
        """An attempt keeps something for the next one. Raises TaskNotFound, LeaseLost."""
        task_id = _known_form(request.task_id)
        return self._ledger.record(Checkpoint(task_id, request.token, request.data, caller.scope))

    def extend(self, request: w.ExtendRequest, caller: Caller = ANYBODY) -> asyncio.Future[Task]:
        """An attempt asks for more time. Raises TaskNotFound, LeaseLost."""
        task_id = _known_form(request.task_id)
        time = request.seconds * SECOND
        return self._ledger.record(Extend(task_id, request.token, time, caller.scope))

    def release(self, request: m.ReleaseRequest, caller: Caller = ANYBODY) -> asyncio.Future[Task]:
        """A worker gives a task back unfinished. Raises TaskNotFound, LeaseLost."""
        task_id = _known_form(request.task_id)
        delay = round(request.delay_seconds * SECOND)
        return self._ledger.record(Release(task_id, request.token, caller.scope, delay))

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
        self.crew.notices.stopped(applied.stopped())
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
        key_kept = round(self._settings.idempotency_seconds * SECOND)
        return submission(request, self.clock.wall(), key_kept)

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


def _known_form(task_id: str) -> str:
    canonical = canonical_task_id(task_id)
    if canonical is None:
        raise TaskNotFound("Task not found")
    return canonical
