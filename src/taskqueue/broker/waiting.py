"""Who waits for what: claims parked until there is work, callers waiting for a task's end.

A parked claim rides in the same transaction as the submit that satisfies it. Claims are served
first come, first served; one that was tried in vain keeps its place. After each commit, tasks
that became claimable in other ways wake the claims that want them.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from taskqueue.broker.ledger import Ledger, Receiver
from taskqueue.core.batch import Applied, Batch
from taskqueue.core.commands import Claim, Command, Release, Submit
from taskqueue.core.errors import BrokerUnavailable
from taskqueue.core.task import ClaimedTask, Task

MOST_NEWS: Final = 10_000
"""Task types of which it is remembered when others made some claimable."""


class PendingClaim:
    """A claim on its way: tried, parked, tried again, until it has tasks or its time is up."""

    def __init__(self, room: "ClaimRoom", claim: Claim, ends_at: float) -> None:
        self.claim = claim
        self.answer: asyncio.Future[list[ClaimedTask]] = room.loop.create_future()
        self.is_being_tried = True
        self.is_parked = False
        self.is_superseded = False
        self.tried_at = 0
        """The number of the news that were known when it was tried last."""
        self._room = room
        self._ends_at = ends_at
        self._timer: asyncio.TimerHandle | None = None
        self.answer.add_done_callback(self._leave)

    def done(self) -> bool:
        """Never: tasks claimed for a caller that has gone must be given back."""
        return False

    def set_result(self, claimed: list[ClaimedTask], /) -> None:
        """Hand over what a transaction claimed, or go on waiting if that is nothing."""
        self.is_being_tried = False
        if self.answer.done():
            self._room.give_back(claimed)
        elif claimed or self._is_over:
            self.answer.set_result(claimed)
        elif self._room.has_news_for(self):
            self.is_being_tried = True
            self._room.try_again(self)
        elif not self.is_parked:
            self.is_parked = True
            self._room.park(self)
            self._timer = self._room.loop.call_at(self._ends_at, self._give_up)

    def set_exception(self, error: Any, /) -> None:
        """Pass on that the claim could not be carried out."""
        self.is_being_tried = False
        if not self.answer.done():
            self.answer.set_exception(error)

    def supersede(self) -> None:
        """Wait no longer: a repeat of it has come, and nobody hears the answer to this one."""
        self.is_superseded = True
        self._give_up()

    @property
    def _is_over(self) -> bool:
        is_late = self._ends_at <= self._room.loop.time()
        return is_late or self.is_superseded or self._room.is_closed

    def _give_up(self) -> None:
        # One that is being tried ends with that attempt: its tasks may be on their way.
        if not self.is_being_tried and not self.answer.done():
            self.answer.set_result([])

    def _leave(self, _answer: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.is_parked:
            self._room.unpark(self)


class ClaimRoom:
    """All claims that wait for work, by task type, in the order of their coming."""

    def __init__(self, ledger: Ledger) -> None:
        self.loop = asyncio.get_running_loop()
        self.is_closed = False
        self._ledger = ledger
        self._parked: dict[str, dict[PendingClaim, None]] = {}
        self._repeatable: dict[tuple[str, str], PendingClaim] = {}
        self._news: dict[str, int] = {}
        self._news_number = 0

    def claim(self, claim: Claim, wait: float) -> asyncio.Future[list[ClaimedTask]]:
        """Try a claim now and, where there is nothing, for up to `wait` seconds.

        A repeat of one that still waits takes its place: nobody hears the answer to that one.
        """
        pending = PendingClaim(self, claim, self.loop.time() + wait)
        earlier = self._note_repeatable(pending)
        if earlier is None:
            pending.tried_at = self._news_number
            self._ledger.post(claim, pending)
        else:
            # Its tasks, if it gets any, must be on record before the repeat asks for them.
            earlier.answer.add_done_callback(lambda _answer: self.try_again(pending))
            earlier.supersede()
        return pending.answer

    def _note_repeatable(self, pending: PendingClaim) -> PendingClaim | None:
        """Remember a claim that may be repeated; the one that it repeats, if that still waits."""
        repeat = pending.claim.repeat
        if repeat is None:
            return None
        name = pending.claim.worker_id, repeat.key
        earlier = self._repeatable.get(name)
        self._repeatable[name] = pending

        def forget(_answer: object) -> None:
            if self._repeatable.get(name) is pending:
                del self._repeatable[name]

        pending.answer.add_done_callback(forget)
        return earlier

    def companions(self, commands: list[Command]) -> list[tuple[Command, Receiver]]:
        """The parked claims that the submits among `commands` may satisfy."""
        if not self._parked:
            return []
        submitted = Counter(
            command.task.task_type
            for command in commands
            if isinstance(command, Submit) and command.task.run_at <= command.task.created_at
        )
        return [(pending.claim, pending) for pending in self._call(submitted)]

    def wake(self, ready: Mapping[str, int]) -> None:
        """Try the claims again that want what has become claimable."""
        for pending in self._call(ready):
            self.try_again(pending)

    def wake_all(self) -> None:
        """Try every parked claim again: something may have become claimable for any of them."""
        self.wake(dict.fromkeys(list(self._parked), sys.maxsize))

    def hear(self, ready: Mapping[str, int]) -> None:
        """Another broker made tasks claimable; a claim that is being tried may have missed them."""
        self._news_number += 1
        if len(self._news) > MOST_NEWS:
            self._news.clear()
        self._news.update(dict.fromkeys(ready, self._news_number))
        self.wake(ready)

    def has_news_for(self, pending: PendingClaim) -> bool:
        """Whether others made tasks claimable for it since it was tried."""
        return any(
            self._news.get(task_type, 0) > pending.tried_at
            for task_type in pending.claim.task_types
        )

    def try_again(self, pending: PendingClaim) -> None:
        """Carry a claim out with the next transaction."""
        pending.tried_at = self._news_number
        try:
            self._ledger.post(pending.claim, pending)
        except BrokerUnavailable as error:
            pending.set_exception(error)

    def park(self, pending: PendingClaim) -> None:
        """Keep a claim until there is work for it."""
        for task_type in pending.claim.task_types:
            self._parked.setdefault(task_type, {})[pending] = None

    def unpark(self, pending: PendingClaim) -> None:
        """Forget a claim that has been answered or whose caller has gone."""
        for task_type in pending.claim.task_types:
            waiting = self._parked[task_type]
            del waiting[pending]
            if not waiting:
                del self._parked[task_type]

    def give_back(self, claimed: Iterable[ClaimedTask]) -> None:
        """Release what was claimed for a caller that has gone; it costs no retry."""
        for one in claimed:
            with suppress(BrokerUnavailable):  # then its lease brings it back
                word = self._ledger.record(Release(one.task.id, one.task.token))
                word.add_done_callback(_unheeded)

    def end(self, worker_ids: Iterable[str]) -> None:
        """Answer the claims of lost workers: what they lost is not to be handed to them again."""
        lost = set(worker_ids)
        parked = {pending: None for waiting in self._parked.values() for pending in waiting}
        for pending in parked:
            if pending.claim.worker_id in lost:
                pending.supersede()

    def close(self) -> None:
        """Answer every parked claim with no task, and let none wait from now on."""
        self.is_closed = True
        parked = {pending: None for waiting in self._parked.values() for pending in waiting}
        for pending in parked:
            if not pending.is_being_tried and not pending.answer.done():
                pending.answer.set_result([])

    def _call(self, ready: Mapping[str, int]) -> list[PendingClaim]:
        called: list[PendingClaim] = []
        for task_type, number in ready.items():
            for pending in self._parked.get(task_type, ()):
                if number <= 0:
                    break
                if not pending.is_being_tried and not pending.answer.done():
                    pending.is_being_tried = True
                    called.append(pending)
                    number -= pending.claim.limit
        return called


class EndWatch:
    """Callers that wait for tasks to end."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Future[None]]] = {}
        self._is_closed = False

    @contextmanager
    def watching(self, task_id: str) -> Iterator[asyncio.Future[None]]:
        """A future that is done once the task has ended, or the broker goes."""
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._is_closed:
            ended.set_result(None)
        watchers = self._watchers.setdefault(task_id, set())
        watchers.add(ended)
        try:
            yield ended
        finally:
            watchers.discard(ended)
            if not watchers:
                self._watchers.pop(task_id, None)

    @property
    def watched(self) -> Iterable[str]:
        """The ids of the tasks that somebody waits for."""
        return self._watchers.keys()

    def tell(self, _batch: Batch, applied: Applied) -> None:
        """Wake those whose tasks a transaction has ended."""
        if self._watchers:
            self.see(applied.moved)

    def see(self, tasks: Iterable[Task]) -> None:
        """Wake those whose tasks, which stand like this, have ended."""
        for task in tasks:
            if task.is_terminal:
                self._wake(self._watchers.get(task.id, ()))

    def close(self) -> None:
        """Wake everybody, and let nobody wait from now on."""
        self._is_closed = True
        for watchers in self._watchers.values():
            self._wake(watchers)

    def _wake(self, watchers: Iterable[asyncio.Future[None]]) -> None:
        for ended in watchers:
            if not ended.done():
                ended.set_result(None)


def _unheeded(future: asyncio.Future[Any]) -> None:
    # A release that fails is mended by the lease: the error needs no further hearing.
    if not future.cancelled():
        future.exception()
