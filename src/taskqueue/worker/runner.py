"""The worker: claims what it has free slots for, runs it, reports, and ends in good order.

A slot is taken from the claim until the broker has answered the report, so that a worker never
holds more claims than it has slots.
"""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from msgspec import Struct

from taskqueue.client.address import BrokerAddress
from taskqueue.client.connection import Connection, ConnectionLost
from taskqueue.client.link import Backoff, Link
from taskqueue.core.errors import BrokerUnavailable, InvalidRequest, TaskQueueError
from taskqueue.core.ids import new_worker_id
from taskqueue.wire.messages import LARGEST_CLAIM, MOST_CLAIM_TYPES
from taskqueue.worker.app import App
from taskqueue.worker.attempt import Attempt, Ending
from taskqueue.worker.context import Claim, Context
from taskqueue.worker.heartbeat import Heartbeat
from taskqueue.worker.reporter import Reporter

BLOCK_SECONDS: Final = 10
ANSWER_SECONDS: Final = 30
FAREWELL_SECONDS: Final = 5.0

log = logging.getLogger("taskqueue.worker")


class WorkerSettings(Struct, frozen=True, kw_only=True):
    """How a worker works: tasks at once, and seconds it may take to finish when told to stop."""

    concurrency: int = 10
    shutdown_seconds: float = 60.0


class Worker:
    """Runs an app's handlers on one event loop and a pool of threads.

    Raises InvalidRequest for more slots or task types than one worker may have.
    """

    def __init__(self, app: App, address: BrokerAddress, settings: WorkerSettings) -> None:
        if not 1 <= settings.concurrency <= LARGEST_CLAIM:
            raise InvalidRequest(
                f"concurrency must be between 1 and {LARGEST_CLAIM}, got {settings.concurrency}; "
                "start more workers for more",
                field="concurrency",
            )
        if not 1 <= len(app.handlers) <= MOST_CLAIM_TYPES:
            raise InvalidRequest(
                f"a worker takes 1 to {MOST_CLAIM_TYPES} handlers, the app has {len(app.handlers)}"
            )
        self.worker_id = new_worker_id()
        self._handlers = app.handlers
        self._settings = settings
        self._link = Link(address)
        self._reporter = Reporter(self._link, self._settled)
        self._held: dict[str, Attempt] = {}
        self._taken = 0
        self._threads = ThreadPoolExecutor(settings.concurrency, "tq-handler")
        self._stop_asked = asyncio.Event()
        self._slots_freed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._heartbeat = Heartbeat(address, self.worker_id, self._claims_held, self._on_lost)

    def stop(self) -> None:
        """Claim no more, finish what is running within the limit. Asked twice: at once."""
        if self._stop_asked.is_set():
            self._stop_all(Ending.RELEASED)
        self._stop_asked.set()

    async def run(self) -> None:
        """Work until told to stop. Raises InvalidRequest if the broker will not have its claims."""
        log.info("worker started", extra={"worker_id": self.worker_id})
        self._heartbeat.start()
        claiming = self._loop.create_task(self._claim_for_ever())
        stopping = self._loop.create_task(self._stop_asked.wait())
        try:
            await asyncio.wait([claiming, stopping], return_when=asyncio.FIRST_COMPLETED)
            if claiming.done():
                claiming.result()
        finally:
            claiming.cancel()
            stopping.cancel()
            await asyncio.wait([claiming, stopping])
            await self._finish()
            self._threads.shutdown(wait=False, cancel_futures=True)
            log.info("worker stopped", extra={"worker_id": self.worker_id})

    @property
    def busy_threads(self) -> bool:
        """Whether a handler that was given up on still runs in a thread."""
        return self._taken > 0

    async def _claim_for_ever(self) -> None:
        backoff = Backoff()
        connection: Connection | None = None
        try:
            while True:
                await self._wait_for_slots()
                try:
                    if connection is None or not connection.is_open:
                        connection = await self._link.open()
                    claimed = await self._claim(connection)
                except InvalidRequest:
                    raise  # it would be refused each time
                except (TaskQueueError, ConnectionLost, TimeoutError) as error:
                    log.warning("cannot claim: %s", error, extra={"worker_id": self.worker_id})
                    if connection is not None:
                        connection.close()
                    await asyncio.sleep(backoff.next_pause())
                    continue
                backoff = Backoff()
                for claim in claimed:
                    self._start(claim)
        finally:
            if connection is not None:
                connection.close()

    async def _wait_for_slots(self) -> None:
        while self._taken >= self._settings.concurrency:
            self._slots_freed.clear()
            await self._slots_freed.wait()

    async def _claim(self, connection: Connection) -> list[Claim]:
        # A broker that is silent for longer than a claim may block is not there any more.
        async with asyncio.timeout(BLOCK_SECONDS + ANSWER_SECONDS):
            answer = await connection.send(
                b"TQ.CLAIM",
                self.worker_id.encode(),
                b"COUNT",
                b"%d" % (self._settings.concurrency - self._taken),
                b"BLOCK",
                b"%d" % (BLOCK_SECONDS * 1000),
                b"TYPES",
                *(name.encode() for name in self._handlers),
            )
        return [
            Claim(task_id.decode(), token, task_type.decode(), payload, attempt, timeout)
            for task_id, token, task_type, payload, attempt, timeout, *_ in answer
        ]

    def _start(self, claim: Claim) -> None:
        attempt = Attempt(claim)
        self._held[claim.task_id] = attempt
        self._taken += 1
        attempt.task = self._loop.create_task(self._work(attempt))
        attempt.timer = self._loop.call_later(claim.timeout, attempt.stop, Ending.TIMED_OUT)

    async def _work(self, attempt: Attempt) -> None:
        claim = attempt.claim
        context = Context(claim, self._report_progress)
        report = await attempt.run(self._handlers[claim.task_type], context, self._threads)
        if attempt.timer is not None:
            attempt.timer.cancel()
        if report is None:
            self._settled(attempt)
        else:
            if report[0] == b"TQ.FAIL":
                log.warning("task failed: %s", report[3].decode(), extra={"task_id": claim.task_id})
            self._reporter.report(attempt, report)

    def _settled(self, attempt: Attempt) -> None:
        """Nothing more is to be said of an attempt: free its slot once its thread is free."""
        if self._held.get(attempt.claim.task_id) is attempt:
            del self._held[attempt.claim.task_id]
            self._slots_freed.set()
        thread = attempt.thread
        if thread is not None and not thread.done():
            thread.add_done_callback(self._free_slot)
        else:
            self._free_slot()

    def _free_slot(self, _thread: object = None) -> None:
        self._taken -= 1
        self._slots_freed.set()

    async def _report_progress(self, claim: Claim, fraction: float, note: str) -> None:
        try:
            await self._reporter.ask(
                b"TQ.PROGRESS",
                claim.task_id.encode(),
                b"%d" % claim.token,
                f"{fraction:.6f}".encode(),
                b"NOTE",
                note.encode(errors="replace"),
            )
        except (BrokerUnavailable, ConnectionLost) as error:
            # It is news, not work: no reason for an attempt to fail.
            log.debug("progress was not told: %s", error, extra={"task_id": claim.task_id})

    def _claims_held(self) -> list[tuple[str, int]]:
        # Called in the heartbeat's thread: copying a dict's values is one step of the interpreter.
        return [(one.claim.task_id, one.claim.token) for one in list(self._held.values())]

    def _on_lost(self, claims: list[tuple[str, int]]) -> None:
        self._loop.call_soon_threadsafe(self._drop, claims)

    def _drop(self, claims: list[tuple[str, int]]) -> None:
        for task_id, token in claims:
            attempt = self._held.get(task_id)
            # The task may have been claimed anew since the heartbeat that named the old claim.
            if attempt is not None and attempt.claim.token == token:
                log.warning("the claim was lost", extra={"task_id": task_id})
                attempt.stop(Ending.LOST)

    async def _finish(self) -> None:
        await self._wait_until_idle(self._settings.shutdown_seconds)
        self._stop_all(Ending.RELEASED)
        await self._wait_until_idle(FAREWELL_SECONDS)
        try:
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._reporter.ask(b"TQ.LEAVE", self.worker_id.encode())
        except (TaskQueueError, ConnectionLost, TimeoutError) as error:
            log.warning("could not say goodbye: %s", error, extra={"worker_id": self.worker_id})
        await asyncio.to_thread(self._heartbeat.stop)
        self._reporter.close()
        self._link.close()

    async def _wait_until_idle(self, seconds: float) -> None:
        ends_at = self._loop.time() + seconds
        while self._held and (left := ends_at - self._loop.time()) > 0:
            self._slots_freed.clear()
            waiting: Any = self._loop.create_task(self._slots_freed.wait())
            await asyncio.wait([waiting], timeout=left)
            waiting.cancel()

    def _stop_all(self, ending: Ending) -> None:
        for attempt in list(self._held.values()):
            attempt.stop(ending)
