"""Who follows a task is told of every change of it, in order, once it is durable.

A follower subscribes first and then reads how the task stands: what is told meanwhile is held
against what it read, so that nothing is told twice and nothing is missed.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from msgspec import Struct

from taskqueue.core.batch import Applied, Batch, bare
from taskqueue.core.commands import Progress
from taskqueue.core.errors import BrokerUnavailable, QueueDepthExceeded, TaskQueueError
from taskqueue.core.task import Event, Status, Task, TaskDetail
from taskqueue.storage.port import Storage

MOST_BEHIND: Final = 1_000
"""Changes that a follower may have before it; one that is slower than that is cut off."""

_WITH_DETAIL: Final = frozenset({Status.COMPLETED, Status.FAILED, Status.DEAD_LETTER})
"""The statuses that come with a result or an error."""


_STAGES: Final = dict.fromkeys(Event, 1) | {
    Event.SUBMIT: 0,
    Event.CLAIM: 0,
    Event.CANCEL: 2,
    Event.STOP: 2,
    Event.EXPIRE: 2,
    Event.DAMAGE: 2,
    Event.RETRY: 3,
}
"""In which order things happen to a task between one claim and the next."""


class Update(Struct, frozen=True):
    """How a task stands after a change, with what it came to or failed of."""

    task: Task
    result: bytes | None = None
    error: str | None = None


Encode = Callable[[Update], bytes]


class Change:
    """One change of a task. What it takes to tell of it is done once for all its followers."""

    def __init__(self, task: Task, storage: Storage) -> None:
        self.task = task
        self._storage = storage
        self._encoded: bytes | None = None
        self._encoding: asyncio.Task[bytes] | None = None

    async def encoded(self, encode: Encode) -> bytes:
        """The update in the form that `encode` gives it, which must be the same for everybody.

        Raises BrokerUnavailable or DataDamaged where its result cannot be read.
        """
        if self._encoded is None and self.task.status not in _WITH_DETAIL:
            self._encoded = encode(Update(self.task))
        if self._encoded is not None:
            return self._encoded
        if self._encoding is None:
            self._encoding = asyncio.create_task(self._read_and_encode(encode))
            self._encoding.add_done_callback(_unheeded)
        return await asyncio.shield(self._encoding)

    async def _read_and_encode(self, encode: Encode) -> bytes:
        detail = await self._storage.get(self.task.id)
        return encode(update_of(self.task, detail))


class Subscription:
    """The changes that one follower has before it."""

    def __init__(self) -> None:
        self._early: list[Sequence[Change]] = []
        self._queue: deque[Change] = deque()
        self._number = 0
        self._known: Task | None = None
        self._latest: Task | None = None
        self._is_abreast = False
        self._error: TaskQueueError | None = None
        self._waiter: asyncio.Future[None] | None = None

    def begin(self, known: Task) -> None:
        """The follower knows how the task stood at some moment since it subscribed."""
        self._known = known
        self._latest = known
        early, self._early = self._early, []
        self._number = 0
        for group in early:
            self.put(group)

    def put(self, group: Sequence[Change]) -> None:
        """Take what one transaction made of the task."""
        if self._error is not None or self._is_known(group):
            return
        self._latest = group[-1].task
        if self._number + len(group) > MOST_BEHIND:
            self._cut_off()
        elif self._known is None:
            self._early.append(group)
            self._number += len(group)
        else:
            self._queue.extend(group)
            self._number += len(group)
            self._wake()

    def see(self, change: Change) -> None:
        """The task stands like this, by another broker's doing; what lay between is not known."""
        if self._latest is not None and _place(self._latest) < _place(change.task):
            self.put([change])

    async def next(self) -> Change:
        """The next change. Raises QueueDepthExceeded if too many were left, and what `end` was."""
        while not self._queue:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        self._number -= 1
        return self._queue.popleft()

    def end(self, error: TaskQueueError) -> None:
        """Nothing more will come, for this reason."""
        if self._error is None:
            self._error = error
            self._wake()

    def _is_known(self, group: Sequence[Change]) -> bool:
        # What was read is how one transaction left the task: it is the end of that one's group,
        # and all groups before are older.
        if self._known is None or self._is_abreast:
            return False
        last = group[-1].task
        if last == self._known or _place(last) < _place(self._known):
            return True
        self._is_abreast = True
        return False

    def _cut_off(self) -> None:
        self._early.clear()
        self._queue.clear()
        self.end(
            QueueDepthExceeded(
                f"more than {MOST_BEHIND} changes of the task were not read; follow it anew"
            )
        )

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Updates:
    """Everybody who follows a task."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._followers: dict[str, set[Subscription]] = {}
        self._is_closed = False

    @property
    def follower_count(self) -> int:
        """How many subscriptions there are now."""
        return sum(len(followers) for followers in self._followers.values())

    @contextmanager
    def follow(self, task_id: str) -> Iterator[Subscription]:
        """The changes of a task from now on."""
        subscription = Subscription()
        if self._is_closed:
            subscription.end(_closed())
        followers = self._followers.setdefault(task_id, set())
        followers.add(subscription)
        try:
            yield subscription
        finally:
            followers.discard(subscription)
            if not followers:
                self._followers.pop(task_id, None)

    def tell(self, batch: Batch, applied: Applied) -> None:
        """Pass on what a transaction changed."""
        if not self._followers:
            return
        groups: dict[str, list[Change]] = {}
        # Within a batch, what an attempt says of its progress comes before whatever ends the
        # attempt, and claims come last: so all progress of a task comes before all its moves.
        for task in (*_progressed(batch, applied), *applied.moved):
            if task.id in self._followers:
                groups.setdefault(task.id, []).append(Change(task, self._storage))
        for task_id, group in groups.items():
            for subscription in self._followers[task_id]:
                subscription.put(group)

    @property
    def followed(self) -> Iterable[str]:
        """The ids of the tasks that somebody follows."""
        return self._followers.keys()

    def see(self, tasks: Iterable[Task]) -> None:
        """Pass on how tasks stand that another broker may have changed."""
        for task in tasks:
            change = Change(task, self._storage)
            for subscription in self._followers.get(task.id, ()):
                subscription.see(change)

    def close(self) -> None:
        """Tell everybody that nothing more will come."""
        self._is_closed = True
        for followers in self._followers.values():
            for subscription in followers:
                subscription.end(_closed())


def update_of(task: Task, detail: TaskDetail | None) -> Update:
    """A state of a task, completed from what was read of it then or later."""
    if detail is None or task.status not in _WITH_DETAIL:
        return Update(task)
    if task.status is Status.COMPLETED:
        return Update(task, result=detail.result)
    failures = [one for one in detail.failures if one.attempt == task.token]
    return Update(task, error=str(failures[-1]) if failures else None)


def _progressed(batch: Batch, applied: Applied) -> Iterator[Task]:
    for command, outcome in zip(batch.commands, applied.outcomes, strict=True):
        if isinstance(bare(command), Progress) and isinstance(outcome, Task):
            yield outcome


def _place(task: Task) -> tuple[int, int, int, float]:
    # Where a state stands in its task's history. After the clock was set back the first part stays
    # the same for a while: then tokens count attempts, and an attempt begins, goes on, and ends.
    return task.updated_at, task.token, _STAGES[task.last_event], task.progress or 0.0


def _closed() -> BrokerUnavailable:
    return BrokerUnavailable("The broker is shutting down; follow the task again shortly")


def _unheeded(encoding: asyncio.Task[bytes]) -> None:
    # Whoever waits for it hears of its error; the others have gone.
    if not encoding.cancelled():
        encoding.exception()
