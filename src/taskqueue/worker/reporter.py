"""Tells the broker how attempts ended, and goes on telling until it has an answer."""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from taskqueue.client.connection import Connection, ConnectionLost
from taskqueue.client.link import Backoff, Link
from taskqueue.core.errors import BrokerUnavailable, LeaseLost, TaskNotFound, TaskQueueError
from taskqueue.worker.attempt import Attempt

log = logging.getLogger("taskqueue.worker")

Done = Callable[[Attempt], None]


class Reporter:
    """Sends reports pipelined; one that got no answer is repeated with the same token."""

    def __init__(self, link: Link, worker_id: str, on_done: Done) -> None:
        self._link = link
        self._worker_id = worker_id
        self._on_done = on_done
        self._connection: Connection | None = None
        self._unsent: list[tuple[Attempt, list[bytes]]] = []
        self._resending: asyncio.Task[None] | None = None
        self._failure: Exception | None = None
        self._backoff: Backoff | None = None
        self._is_closed = False

    def report(self, attempt: Attempt, words: list[bytes]) -> None:
        """Send a report; `on_done` is called when the broker has taken or refused it."""
        connection = self._connection
        if connection is None or not connection.is_open:
            self._send_later(attempt, words)
            return
        answer = connection.send(*words)
        answer.add_done_callback(partial(self._answered, attempt, words, connection))

    async def ask(self, *words: bytes) -> Any:
        """Send a command that is not a report and return its answer."""
        return await (await self._connected()).send(*words)

    def close(self) -> None:
        """Stop repeating."""
        self._is_closed = True
        if self._resending is not None:
            self._resending.cancel()

    def _answered(
        self,
        attempt: Attempt,
        words: list[bytes],
        connection: Connection,
        answer: asyncio.Future[Any],
    ) -> None:
        if answer.cancelled():
            return
        error = answer.exception()
        if isinstance(error, ConnectionLost | BrokerUnavailable):
            self._link.blame(connection, error)
            self._failure = error
            self._send_later(attempt, words)
            return
        self._failure = self._backoff = None
        about = {"task_id": attempt.claim.task_id, "worker_id": self._worker_id}
        if isinstance(error, LeaseLost | TaskNotFound):
            log.warning("the claim was lost; its result is dropped", extra=about)
        elif isinstance(error, Exception) and words[0] == b"TQ.COMPLETE":
            self.report(attempt, attempt.refused(error))
            return
        elif error is not None:
            log.error("a report was refused: %s", error, extra=about)
        self._on_done(attempt)

    def _send_later(self, attempt: Attempt, words: list[bytes]) -> None:
        self._unsent.append((attempt, words))
        if not self._is_closed and (self._resending is None or self._resending.done()):
            self._resending = asyncio.get_running_loop().create_task(self._send_unsent())

    async def _send_unsent(self) -> None:
        while self._unsent:
            if self._failure is not None:
                self._backoff = self._backoff or self._link.backoff()
                await asyncio.sleep(self._backoff.next_pause(self._failure))
            try:
                await self._connected()
            except TaskQueueError as error:
                log.warning("cannot report: %s", error, extra={"worker_id": self._worker_id})
                self._failure = error
                continue
            unsent, self._unsent = self._unsent, []
            for attempt, words in unsent:
                self.report(attempt, words)

    async def _connected(self) -> Connection:
        self._connection = await self._link.shared()
        return self._connection
