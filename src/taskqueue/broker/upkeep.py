"""Housekeeping: what must happen to tasks without anybody asking for it.

Promotes tasks whose time has come, takes back those of lost workers and those past their deadline,
cancels those that have expired, deletes what is past retention. Each chore works in small slices,
through the same ledger as everybody else, and a bad round never stops the next.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import structlog

from taskqueue.broker.ledger import Ledger
from taskqueue.broker.workers import Workers
from taskqueue.core.batch import Applied, Batch
from taskqueue.core.clock import SECOND, Clock
from taskqueue.core.commands import MOST_LOSSES, Expire, Promote, Purge, TakeBack
from taskqueue.core.errors import TaskQueueError
from taskqueue.core.task import Event, Task
from taskqueue.storage.port import Storage

ROUND: Final = 1.0
"""Seconds between two rounds of housekeeping."""

LONGEST_HICCUP: Final = 2 * SECOND
"""A round later than this means that the process stood still; leases are not to suffer for it."""

ADOPTION_ROUNDS: Final = 10
"""In each so many-th round it is looked for holders of tasks that nobody has heard of."""

PROMOTE_SLICE: Final = 500
PURGE_SLICE: Final = 200
TAKE_BACK_SLICE: Final = 500
EXPIRE_SLICE: Final = 500

AUDIT_KEPT: Final = 365 * 86_400 * SECOND
"""How long entries of the audit log are kept."""

log = structlog.get_logger(component="upkeep")


class Upkeep:
    """The chores of one broker."""

    def __init__(
        self,
        storage: Storage,
        ledger: Ledger,
        workers: Workers,
        clock: Clock,
        retention: int,
        most_losses: int = MOST_LOSSES,
    ) -> None:
        self._storage = storage
        self._ledger = ledger
        self._workers = workers
        self._clock = clock
        self._retention = retention
        self._most_losses = most_losses
        self._random = random.Random()  # noqa: S311  jitter, not a secret
        self._next_due: int | None = None
        self._due_timer: asyncio.TimerHandle | None = None
        self._promoting: asyncio.Task[None] | None = None
        self.chores: list[Callable[[], Awaitable[None]]] = []
        """What others want done in each round."""
        self.on_silent: Callable[[list[str]], None] = lambda _worker_ids: None
        """Called with the workers whose heartbeats have stopped, before their tasks are taken."""
        self._latest_round = clock.steady()
        self._shared_until = clock.steady()
        self._rounds = 0
        self._was_leader = False

    async def run(self) -> None:
        """Do the chores for ever."""
        while True:
            try:
                await self.round()
            except TaskQueueError as error:
                log.warning("housekeeping failed, next round follows", error=error.message)
            await asyncio.sleep(ROUND)

    async def round(self) -> None:
        """One round of all chores."""
        self._forgive_stall()
        if not self._ledger.is_writable:
            await self._ledger.prove()
        await self._share_beats()
        if silent := self._workers.fallen_silent():
            self.on_silent(silent)
        if self._storage.cluster.is_leader:
            await self._lead()
        else:
            self._workers.forget_silent(self._workers.lease)
        self._was_leader = self._storage.cluster.is_leader
        for chore in self.chores:
            await chore()

    async def _lead(self) -> None:
        """The chores that one broker does for all."""
        if not self._was_leader:
            self._rounds = 0
            self._next_due = await self._storage.next_due()
        self._set_due_timer()
        if self._rounds % ADOPTION_ROUNDS == 0:
            await self._adopt_unknown_holders()
        self._rounds += 1
        await self._take_back_lost()
        await self._take_back_overdue()
        await self._expire()
        await self._purge()

    def note(self, _batch: Batch, applied: Applied) -> None:
        """Remember the earliest moment at which a waiting task becomes claimable."""
        self.note_due(applied.next_due)

    def note_due(self, due: int | None) -> None:
        """A task becomes claimable at this moment."""
        if due is not None and (self._next_due is None or due < self._next_due):
            self._next_due = due
            self._set_due_timer()

    async def promote(self) -> None:
        """Make claimable whatever is due."""
        promoted = PROMOTE_SLICE
        while promoted == PROMOTE_SLICE:
            self._next_due = None  # the commit names the earliest one that is left
            try:
                promoted = await self._ledger.record(Promote(PROMOTE_SLICE))
            except TaskQueueError as error:
                self._next_due = self._clock.wall() + SECOND
                log.warning("due tasks could not be promoted yet", error=error.message)
                return

    def close(self) -> None:
        """Stop the timer."""
        if self._due_timer is not None:
            self._due_timer.cancel()

    def _forgive_stall(self) -> None:
        now = self._clock.steady()
        late = now - self._latest_round - round(ROUND * SECOND)
        if late > LONGEST_HICCUP:
            # The heartbeats of that time wait unread in the sockets; nobody may be called lost
            # before they have been read.
            self._clock.forgive(late)
            log.warning("the broker stood still; leases are extended", seconds=late / SECOND)
        self._latest_round = self._clock.steady()

    def _set_due_timer(self) -> None:
        if self._due_timer is not None:
            self._due_timer.cancel()
            self._due_timer = None
        if self._next_due is not None:
            wait = max(0, self._next_due - self._clock.wall()) / SECOND
            loop = asyncio.get_running_loop()
            # Never far ahead: the wall clock may be set meanwhile. Each round sets it anew.
            self._due_timer = loop.call_later(min(wait, 2 * ROUND), self._promote_if_due)

    def _promote_if_due(self) -> None:
        due = self._next_due is not None and self._next_due <= self._clock.wall()
        if not self._storage.cluster.is_leader:
            return  # whoever leads next asks the storage
        if due and (self._promoting is None or self._promoting.done()):
            self._promoting = asyncio.get_running_loop().create_task(self._promote_all())
        elif not due:
            self._set_due_timer()

    async def _promote_all(self) -> None:
        await self.promote()
        self._set_due_timer()

    async def _share_beats(self) -> None:
        """Let the brokers know which workers live: a worker may talk to any of them."""
        since, self._shared_until = self._shared_until, self._clock.steady()
        self._workers.note(await self._storage.cluster.exchange(self._workers.heard(since)))

    async def _adopt_unknown_holders(self) -> None:
        # After a restart the leases are not known: each holder gets one whole lease to come back.
        for worker_id in await self._storage.holders():
            if worker_id not in self._workers:
                self._workers.renew(worker_id)

    async def _take_back_lost(self) -> None:
        silent = self._workers.silent()
        if not silent:
            return
        held = await self._storage.held(silent)
        # Its beat may have come in while the storage was read.
        still_silent = set(self._workers.silent())
        lost = [task for task in held if task.worker_id in still_silent]
        for start in range(0, len(lost), TAKE_BACK_SLICE):
            await self.take_back(
                lost[start : start + TAKE_BACK_SLICE], Event.LOSE, "the worker fell silent"
            )
        for worker_id in still_silent.intersection(self._workers.silent()):
            self._workers.forget(worker_id)
            log.warning("worker lost", worker_id=worker_id)

    async def _take_back_overdue(self) -> None:
        overdue = await self._storage.overdue(self._clock.steady(), TAKE_BACK_SLICE)
        await self.take_back(overdue, Event.TIME_OUT, "the attempt passed its deadline")

    async def _expire(self) -> None:
        expired = await self._storage.expired(self._clock.wall(), EXPIRE_SLICE)
        for word in [self._ledger.record(Expire(task.id)) for task in expired]:
            await word

    async def take_back(
        self, tasks: Iterable[Task], why: Event, message: str, *, is_chore: bool = True
    ) -> None:
        """End the attempts of `tasks`, unless they have ended meanwhile."""
        words = [
            self._ledger.record(
                TakeBack(
                    task.id,
                    task.token,
                    why,
                    message,
                    self._random.uniform(-1, 1),
                    is_chore=is_chore,
                    most_losses=self._most_losses,
                )
            )
            for task in tasks
        ]
        for word in asyncio.as_completed(words):
            await word

    async def _purge(self) -> None:
        now = self._clock.wall()
        purge = Purge(now - self._retention, PURGE_SLICE, now - AUDIT_KEPT)
        while await self._ledger.record(purge) == PURGE_SLICE:
            pass
