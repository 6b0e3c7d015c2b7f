"""The worker: claims what it has free slots for, runs it, reports, and ends in good order.

A slot is taken from the claim until the broker has answered the report, so that a worker never
holds more claims than it has slots.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

from taskqueue.client.address import BrokerAddress, broker_addresses
from taskqueue.client.connection import Connection, ConnectionLost
from taskqueue.client.link import Link
from taskqueue.client.task import as_fields
from taskqueue.core.errors import BrokerUnavailable, InvalidRequest, TaskQueueError
from taskqueue.core.ids import new_task_id, new_worker_id
from taskqueue.wire.workers import About
from taskqueue.worker.app import App
from taskqueue.worker.attempt import Attempt, Ending
from taskqueue.worker.context import Claim, Context
from taskqueue.worker.heartbeat import Ears, Heartbeat
from taskqueue.worker.notes import EXTEND, Note
from taskqueue.worker.place import refuse_worker_while_importing
from taskqueue.worker.portrait import Portrait
from taskqueue.worker.repertoire import Repertoire
from taskqueue.worker.reporter import Reporter
from taskqueue.worker.settings import WorkerSettings
from taskqueue.worker.watch import LoopWatch

BLOCK_SECONDS: Final = 10.0
SHORT_BLOCK: Final = 1.0
FAREWELL_SECONDS: Final = 5.0

log = logging.getLogger("taskqueue.worker")


class Worker:
    """Runs handlers of apps on the running event loop, in a pool of threads, and in processes.

    On the first app's brokers unless told other `addresses`. Raises InvalidRequest for more slots
    or task types than one worker may have, for two handlers of one name, and where processes could
    not import an app.
    """

    def __init__(
        self,
        app: App | Sequence[App],
        addresses: Sequence[BrokerAddress] | None = None,
        settings: WorkerSettings | None = None,
    ) -> None:
        apps = [app] if isinstance(app, App) else list(app)
        addresses = addresses or broker_addresses(apps[0].clients.url, apps[0].clients.api_key)
        settings = settings or WorkerSettings()
        refuse_worker_while_importing()
        settings.check()
        self.worker_id = new_worker_id()
        self._settings = settings
        self._threads = ThreadPoolExecutor(settings.concurrency, "tq-handler")
        self._repertoire = Repertoire(apps, settings, self._threads)
        self._link = Link(addresses)
        self._claims: Connection | None = None
        self._claim_id = ""
        self._claim_words = _typed(self._repertoire.weights)
        self._reporter = Reporter(self._link, self.worker_id, self._settled)
        self._held: dict[str, Attempt] = {}
        self._taken = 0
        self._is_stopping = False
        self._is_quiet = False
        self._is_hurried = False
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._heartbeat = Heartbeat(
            self._link.brokers,
            self.worker_id,
            Ears(
                self._claims_held,
                self._on_lost,
                self._obey_soon,
                self._drawn,
                self._on_silence,
            ),
        )
        self._portrait = Portrait(settings.concurrency, self._repertoire.weights)
        self._link.brokers.on_move = self._on_move
        self._watch = LoopWatch(self._loop, settings.stall_seconds, self._claim_of)

    def stop(self) -> None:
        """Claim no more, finish what is running within the limit. Asked twice: at once."""
        if self._is_stopping:
            self._is_hurried = True
            self._stop_all(Ending.RELEASED)
        else:
            self._end_claim()
        self._is_stopping = True
        self._wake.set()

    def obey(self, order: str | None) -> None:
        """Do what somebody has ordered: "quiet" to claim nothing, "work" again, or "stop"."""
        if order == "stop" and not self._is_stopping:
            log.info("ordered to stop", extra={"worker_id": self.worker_id})
            self.stop()
        elif order in ("quiet", "work") and self._is_quiet is not (order == "quiet"):
            self._is_quiet = order == "quiet"
            log.info("ordered to %s", order, extra={"worker_id": self.worker_id})
            if self._is_quiet:
                self._end_claim()
            self._wake.set()
            self._heartbeat.beat_now()

    def _end_claim(self) -> None:
        """A claim that waits is answered at once; what it was just given comes with the answer."""
        claims = self._claims
        if claims is not None:
            claims.send_no_more()
            self._loop.call_later(FAREWELL_SECONDS, claims.close)

    async def run(self) -> None:
        """Work until told to stop, inside the app's lifespan.

        Raises InvalidRequest if the broker will not have its claims, or if processes for handlers
        cannot be started; and what the lifespan raises.
        """
        async with AsyncExitStack() as stack:
            await self._repertoire.open(stack)
            await self._work_until_stopped()

    async def _work_until_stopped(self) -> None:
        log.info("worker started", extra={"worker_id": self.worker_id})
        self._heartbeat.start()
        self._watch.start()
        listening = self._loop.create_task(self._listen())
        try:
            await self._claim_until_stopped()
        finally:
            listening.cancel()
            if self._claims is not None:
                self._claims.close()
            await self._finish()
            self._watch.stop()
            self._threads.shutdown(wait=False, cancel_futures=True)
            log.info("worker stopped", extra={"worker_id": self.worker_id})

    @property
    def busy_threads(self) -> bool:
        """Whether a handler that was given up on still runs in a thread."""
        return self._taken > 0

    async def _claim_until_stopped(self) -> None:
        backoff = self._link.backoff()
        while not self._is_stopping:
            if self._is_quiet:
                await self._sleep()
                continue
            try:
                claimed = await self._claim()
            except InvalidRequest:
                raise  # it would be refused each time
            except (TaskQueueError, ConnectionLost) as error:
                if not (self._is_stopping or self._is_quiet):
                    log.warning("cannot claim: %s", error, extra={"worker_id": self.worker_id})
                    self._blame_for_claims(error)
                    await self._sleep(backoff.next_pause(error))
                continue
            backoff = self._link.backoff()
            for claim in claimed:
                self._start(claim)
            while self._is_full and not self._is_stopping:
                await self._sleep()

    @property
    def _is_full(self) -> bool:
        free = self._settings.concurrency - self._taken
        return free < min(self._repertoire.lightest, self._settings.concurrency)

    async def _claim(self) -> list[Claim]:
        if self._claims is None or not self._claims.is_open:
            self._claims = await self._link.open()
        if self._is_stopping or self._is_quiet:
            return []
        number, seconds, types = self._what_fits()
        # Kept until it is answered: a claim whose answer was lost is repeated, not made anew.
        self._claim_id = self._claim_id or new_task_id()
        answer = await self._claims.send(
            b"TQ.CLAIM",
            self.worker_id.encode(),
            b"ID",
            self._claim_id.encode(),
            b"COUNT",
            b"%d" % number,
            b"BLOCK",
            b"%d" % round(seconds * 1000),
            *types,
        )
        self._claim_id = ""
        return [claim_in(words) for words in answer]

    def _what_fits(self) -> tuple[int, float, list[bytes]]:
        """How many tasks there is room for, how long to wait for them, and of which types."""
        slots = self._settings.concurrency
        free = slots - self._taken
        if self._repertoire.is_even:
            return free, BLOCK_SECONDS, self._claim_words
        types = self._repertoire.fitting(free, slots)
        heaviest = max(min(self._repertoire.weights[name], slots) for name in types)
        # Where heavier ones must wait for room, they are not to wait for this claim besides.
        is_partly = len(types) < len(self._repertoire.weights)
        return free // heaviest, SHORT_BLOCK if is_partly else BLOCK_SECONDS, _typed(types)

    async def _listen(self) -> None:
        """Hear at once what is to be stopped, rather than with the next heartbeat."""
        backoff = self._link.backoff()
        while True:
            try:
                async with asyncio.timeout(2 * BLOCK_SECONDS), self._link.blocking() as connection:
                    wait = b"%d" % round(BLOCK_SECONDS * 1000)
                    answer = await connection.send(b"TQ.NOTICE", self.worker_id.encode(), wait)
            except (TaskQueueError, ConnectionLost, TimeoutError) as error:
                log.debug("no notices: %s", error, extra={"worker_id": self.worker_id})
                await asyncio.sleep(backoff.next_pause(error))
                continue
            backoff = self._link.backoff()
            notice = as_fields(answer)
            cancelled = [(one["task_id"], one["token"]) for one in notice["lost"]]
            self._drop(cancelled, Ending.CANCELLED)
            self.obey(notice["order"])

    def _obey_soon(self, order: str) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self.obey, order)

    def _drawn(self) -> About:
        # Called in the heartbeat's thread.
        order = "stop" if self._is_stopping else "quiet" if self._is_quiet else "work"
        return self._portrait.drawn(self._taken, [one[0] for one in self._claims_held()], order)

    def _blame_for_claims(self, error: Exception) -> None:
        if self._claims is not None:
            self._link.blame(self._claims, error)
            self._hang_up_claims_elsewhere()

    def _on_move(self) -> None:
        # Called in any thread, also in the heartbeat's while a handler keeps the loop busy.
        self._heartbeat.beat_now()
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._follow)

    def _on_silence(self) -> None:
        # Called in the heartbeat's thread.
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._claim_anew)

    def _claim_anew(self) -> None:
        """Do not wait on a connection that may be dead: the claim is repeated by its id."""
        if self._claims is not None and not self._is_stopping:
            self._claims.close()

    def _follow(self) -> None:
        """Go on at the broker in use; the claim under way is repeated there, by its id."""
        self._link.follow()
        self._hang_up_claims_elsewhere()

    def _hang_up_claims_elsewhere(self) -> None:
        claims = self._claims
        is_left = claims is not None and claims.address != self._link.brokers.current
        if claims is not None and is_left and not self._is_stopping:
            claims.close()

    async def _sleep(self, seconds: float | None = None) -> None:
        """Wait for a slot to be freed or for `stop`, so many seconds at most."""
        self._wake.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _start(self, claim: Claim) -> None:
        attempt = Attempt(claim)
        superseded = self._held.get(claim.task_id)
        if superseded is not None:
            # The broker took the task back and gave it to this worker again: the old claim is over.
            superseded.stop(Ending.LOST)
        self._held[claim.task_id] = attempt
        self._taken += self._weight_of(attempt)
        attempt.task = self._loop.create_task(self._work(attempt))
        self._set_timer(attempt, claim.timeout)
        if self._is_stopping:
            attempt.stop(Ending.RELEASED)

    async def _work(self, attempt: Attempt) -> None:
        claim = attempt.claim
        handler, home = self._repertoire[claim.task_type]
        context: Context[Any] = Context(claim, self._loop, self._tell, home.state)
        report = await attempt.run(handler, context, home.means)
        await context.lines_told()
        if attempt.timer is not None:
            attempt.timer.cancel()
        if report is None:
            self._settled(attempt)
        else:
            if report[0] == b"TQ.FAIL":
                log.warning("task failed: %s", report[3].decode(), extra=self._about(claim))
            self._reporter.report(attempt, report)

    def _settled(self, attempt: Attempt) -> None:
        """Nothing more is to be said of an attempt: free its slot once its thread is free."""
        if self._held.get(attempt.claim.task_id) is attempt:
            del self._held[attempt.claim.task_id]
            self._wake.set()
        thread = attempt.thread
        if thread is not None and not thread.done():
            thread.add_done_callback(lambda _: self._free_slots(attempt))
        else:
            self._free_slots(attempt)

    def _free_slots(self, attempt: Attempt) -> None:
        self._taken -= self._weight_of(attempt)
        self._wake.set()

    def _weight_of(self, attempt: Attempt) -> int:
        return min(self._repertoire.weights[attempt.claim.task_type], self._settings.concurrency)

    async def _tell(self, claim: Claim, note: Note) -> None:
        try:
            await self._reporter.ask(*note.command(claim.task_id, claim.token))
        except (BrokerUnavailable, ConnectionLost) as error:
            if not note.is_news:
                raise BrokerUnavailable(f"the broker has not confirmed it: {error}") from error
            # No reason for an attempt to fail.
            log.debug("a %s was not told: %s", note.kind, error, extra=self._about(claim))
        attempt = self._held.get(claim.task_id)
        if note.kind == EXTEND and attempt is not None and attempt.claim.token == claim.token:
            self._set_timer(attempt, note.fields["seconds"])

    def _set_timer(self, attempt: Attempt, seconds: float) -> None:
        if attempt.timer is not None:
            attempt.timer.cancel()
        attempt.timer = self._loop.call_later(seconds, attempt.stop, Ending.TIMED_OUT)

    def _claims_held(self) -> list[tuple[str, int]]:
        # Called in the heartbeat's thread: copying a dict's values is one step of the interpreter.
        return [(one.claim.task_id, one.claim.token) for one in list(self._held.values())]

    def _claim_of(self, task: asyncio.Task[Any]) -> Claim | None:
        # Called in the watch's thread.
        held = list(self._held.values())
        return next((attempt.claim for attempt in held if attempt.task is task), None)

    def _on_lost(self, claims: list[tuple[str, int]]) -> None:
        self._loop.call_soon_threadsafe(self._drop, claims)

    def _drop(self, claims: list[tuple[str, int]], ending: Ending = Ending.LOST) -> None:
        for task_id, token in claims:
            attempt = self._held.get(task_id)
            # The task may have been claimed anew since the heartbeat that named the old claim.
            is_meant = attempt is not None and attempt.claim.token == token
            if attempt is not None and is_meant and attempt.stop(ending):
                why = "was cancelled" if ending is Ending.CANCELLED else "was lost"
                log.warning("the claim %s", why, extra=self._about(attempt.claim))

    async def _finish(self) -> None:
        await self._wait_until_idle(self._settings.shutdown_seconds, lambda: self._is_hurried)
        self._stop_all(Ending.RELEASED)
        await self._wait_until_idle(FAREWELL_SECONDS)
        # Before the goodbye: a heartbeat after it would make the worker known again.
        await asyncio.to_thread(self._heartbeat.stop)
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._reporter.ask(b"TQ.LEAVE", self.worker_id.encode())
        except (TaskQueueError, ConnectionLost, TimeoutError) as error:
            log.warning("could not say goodbye: %s", error, extra={"worker_id": self.worker_id})
        self._reporter.close()
        self._link.close()

    async def _wait_until_idle(
        self, seconds: float, is_enough: Callable[[], bool] = lambda: False
    ) -> None:
        ends_at = self._loop.time() + seconds
        while self._held and not is_enough() and (left := ends_at - self._loop.time()) > 0:
            await self._sleep(left)

    def _about(self, claim: Claim) -> dict[str, str]:
        return {"task_id": claim.task_id, "worker_id": self.worker_id}

    def _stop_all(self, ending: Ending) -> None:
        for attempt in list(self._held.values()):
            attempt.stop(ending)


def _typed(types: Iterable[str]) -> list[bytes]:
    return [b"TYPES", *(name.encode() for name in types)]


def claim_in(words: Sequence[Any]) -> Claim:
    """The claim that the broker's words stand for."""
    task_id, token, task_type, payload, attempt, timeout, _priority, _created_at, *more = words
    claim = Claim(task_id.decode(), token, task_type.decode(), payload, attempt, timeout)
    if not more:
        return claim
    metadata, saved = more
    return claim._replace(metadata=as_fields(metadata), saved=saved)
