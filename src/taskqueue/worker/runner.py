"""The worker: claims what it has free slots for, runs it, reports, and ends in good order.

A slot is taken from the claim until the broker has answered the report, so that a worker never
holds more claims than it has slots.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

from msgspec import Struct

from taskqueue.client.address import BrokerAddress, broker_addresses
from taskqueue.client.connection import Connection, ConnectionLost
from taskqueue.client.link import Link
from taskqueue.client.task import as_fields
from taskqueue.core.errors import BrokerUnavailable, InvalidRequest, TaskQueueError
from taskqueue.core.ids import new_task_id, new_worker_id
from taskqueue.wire.messages import LARGEST_CLAIM, MOST_CLAIM_TYPES
from taskqueue.worker.app import App
from taskqueue.worker.attempt import Attempt, Ending, Means
from taskqueue.worker.children import Children
from taskqueue.worker.context import NO_STATE, Claim, Context
from taskqueue.worker.heartbeat import Heartbeat
from taskqueue.worker.notes import EXTEND, Note
from taskqueue.worker.place import place_of, refuse_worker_while_importing
from taskqueue.worker.reporter import Reporter
from taskqueue.worker.watch import LoopWatch

BLOCK_SECONDS: Final = 10.0
FAREWELL_SECONDS: Final = 5.0

log = logging.getLogger("taskqueue.worker")


class WorkerSettings(Struct, frozen=True, kw_only=True):
    """How a worker works.

    `concurrency` tasks at once; `shutdown_seconds` to finish when told to stop. A process for
    handlers is replaced after `child_tasks` of them, and when it has more than `child_memory_mb`
    megabytes resident after one; 0 is never. A handler that keeps the event loop busy for
    `stall_seconds` is named in the log; 0 is never.
    """

    concurrency: int = 10
    shutdown_seconds: float = 60.0
    child_tasks: int = 1_000
    child_memory_mb: int = 0
    stall_seconds: float = 1.0


class Worker:
    """Runs an app's handlers on the running event loop, in a pool of threads, and in processes.

    On the app's brokers unless told other `addresses`. Raises InvalidRequest for more slots or task
    types than one worker may have, and where processes could not import the app.
    """

    def __init__(
        self,
        app: App,
        addresses: Sequence[BrokerAddress] | None = None,
        settings: WorkerSettings | None = None,
    ) -> None:
        addresses = addresses or broker_addresses(app.clients.url, app.clients.api_key)
        settings = settings or WorkerSettings()
        _check(app, settings)
        self.worker_id = new_worker_id()
        self._app = app
        self._settings = settings
        self._link = Link(addresses)
        self._claims: Connection | None = None
        self._claim_id = ""
        self._claim_words = [b"TYPES", *(name.encode() for name in app.handlers)]
        self._reporter = Reporter(self._link, self.worker_id, self._settled)
        self._held: dict[str, Attempt] = {}
        self._taken = 0
        self._threads = ThreadPoolExecutor(settings.concurrency, "tq-handler")
        self._children = _children_for(app, settings)
        self._means = Means(self._threads, self._children, app.execute_middleware)
        self._state: object = NO_STATE
        self._is_stopping = False
        self._is_hurried = False
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._heartbeat = Heartbeat(
            self._link.brokers, self.worker_id, self._claims_held, self._on_lost
        )
        self._link.brokers.on_move = self._on_move
        self._watch = LoopWatch(self._loop, settings.stall_seconds, self._claim_of)

    def stop(self) -> None:
        """Claim no more, finish what is running within the limit. Asked twice: at once."""
        if self._is_stopping:
            self._is_hurried = True
            self._stop_all(Ending.RELEASED)
        elif self._claims is not None:
            # A claim that waits is answered at once; what it was just given comes with the answer.
            self._claims.send_no_more()
            self._loop.call_later(FAREWELL_SECONDS, self._claims.close)
        self._is_stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Work until told to stop, inside the app's lifespan.

        Raises InvalidRequest if the broker will not have its claims, or if processes for handlers
        cannot be started; and what the lifespan raises.
        """
        async with AsyncExitStack() as stack:
            if self._app.lifespan is not None:
                self._state = await stack.enter_async_context(self._app.lifespan(self._app))
            if self._children is not None:
                stack.push_async_callback(self._children.close)
                await self._children.open()
            await self._work_until_stopped()

    async def _work_until_stopped(self) -> None:
        log.info("worker started", extra={"worker_id": self.worker_id})
        self._heartbeat.start()
        self._watch.start()
        try:
            await self._claim_until_stopped()
        finally:
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
            try:
                claimed = await self._claim()
            except InvalidRequest:
                raise  # it would be refused each time
            except (TaskQueueError, ConnectionLost) as error:
                if not self._is_stopping:
                    log.warning("cannot claim: %s", error, extra={"worker_id": self.worker_id})
                    self._blame_for_claims(error)
                    await self._sleep(backoff.next_pause(error))
                continue
            backoff = self._link.backoff()
            for claim in claimed:
                self._start(claim)
            while self._taken >= self._settings.concurrency and not self._is_stopping:
                await self._sleep()

    async def _claim(self) -> list[Claim]:
        if self._claims is None or not self._claims.is_open:
            self._claims = await self._link.open()
        if self._is_stopping:
            return []
        # Kept until it is answered: a claim whose answer was lost is repeated, not made anew.
        self._claim_id = self._claim_id or new_task_id()
        answer = await self._claims.send(
            b"TQ.CLAIM",
            self.worker_id.encode(),
            b"ID",
            self._claim_id.encode(),
            b"COUNT",
            b"%d" % (self._settings.concurrency - self._taken),
            b"BLOCK",
            b"%d" % round(BLOCK_SECONDS * 1000),
            *self._claim_words,
        )
        self._claim_id = ""
        return [claim_in(words) for words in answer]

    def _blame_for_claims(self, error: Exception) -> None:
        if self._claims is not None:
            self._link.blame(self._claims, error)
            self._hang_up_claims_elsewhere()

    def _on_move(self) -> None:
        # Called in any thread, also in the heartbeat's while a handler keeps the loop busy.
        self._heartbeat.beat_now()
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._follow)

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
        self._taken += 1
        attempt.task = self._loop.create_task(self._work(attempt))
        self._set_timer(attempt, claim.timeout)
        if self._is_stopping:
            attempt.stop(Ending.RELEASED)

    async def _work(self, attempt: Attempt) -> None:
        claim = attempt.claim
        context: Context[Any] = Context(claim, self._loop, self._tell, self._state)
        report = await attempt.run(self._app.handlers[claim.task_type], context, self._means)
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
            thread.add_done_callback(self._free_slot)
        else:
            self._free_slot()

    def _free_slot(self, _thread: object = None) -> None:
        self._taken -= 1
        self._wake.set()

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

    def _drop(self, claims: list[tuple[str, int]]) -> None:
        for task_id, token in claims:
            attempt = self._held.get(task_id)
            # The task may have been claimed anew since the heartbeat that named the old claim.
            is_meant = attempt is not None and attempt.claim.token == token
            if attempt is not None and is_meant and attempt.stop(Ending.LOST):
                log.warning("the claim was lost", extra=self._about(attempt.claim))

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


def claim_in(words: Sequence[Any]) -> Claim:
    """The claim that the broker's words stand for."""
    task_id, token, task_type, payload, attempt, timeout, _priority, _created_at, *more = words
    claim = Claim(task_id.decode(), token, task_type.decode(), payload, attempt, timeout)
    if not more:
        return claim
    metadata, saved = more
    return claim._replace(metadata=as_fields(metadata), saved=saved)


def _check(app: App, settings: WorkerSettings) -> None:
    refuse_worker_while_importing()
    if not 1 <= settings.concurrency <= LARGEST_CLAIM:
        raise InvalidRequest(
            f"concurrency must be between 1 and {LARGEST_CLAIM}, got {settings.concurrency}; "
            "start more workers for more",
            field="concurrency",
        )
    for name in ("child_tasks", "child_memory_mb", "stall_seconds"):
        value = getattr(settings, name)
        if not value >= 0:
            raise InvalidRequest(f"{name} must be 0 or more, got {value}", field=name)
    if not 1 <= len(app.handlers) <= MOST_CLAIM_TYPES:
        raise InvalidRequest(
            f"a worker takes 1 to {MOST_CLAIM_TYPES} handlers, the app has {len(app.handlers)}"
        )


def _children_for(app: App, settings: WorkerSettings) -> Children | None:
    if all(handler.isolation is None for handler in app.handlers.values()):
        return None
    return Children(
        place_of(app), settings.concurrency, settings.child_tasks, settings.child_memory_mb
    )
