"""Group commit: the one road by which changes reach the storage.

While one transaction is being synced, everything that arrives is collected; it becomes the next
one. The cost per command falls as load rises, and an idle broker commits at once. Nobody is told
an outcome before the transaction that holds it is durable.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

import structlog

from taskqueue.broker.metrics import Metrics
from taskqueue.core.batch import Applied, Batch
from taskqueue.core.clock import SECOND, Clock
from taskqueue.core.commands import Command, Complete, Promote, Submit
from taskqueue.core.errors import BrokerUnavailable, InternalError, TaskQueueError
from taskqueue.storage.port import Storage

LARGEST_BATCH: Final = 1_000
"""Commands in one transaction: some 10 ms of work, so that nobody waits long for the next one."""

LARGEST_BATCH_BYTES: Final = 32 * 1024 * 1024
MOST_QUEUED_BYTES: Final = 256 * 1024 * 1024
MOST_QUEUED: Final = 200_000


log = structlog.get_logger(component="ledger")


class Receiver(Protocol):
    """Who is told the outcome of a command; a future is one."""

    def done(self) -> bool:
        """Whether nothing more is to be told."""
        ...

    def set_result(self, result: Any, /) -> None:
        """The command was carried out."""
        ...

    def set_exception(self, exception: Any, /) -> None:
        """It was refused, failed, or nobody can say."""
        ...


Companions = Callable[[list[Command]], list[tuple[Command, Receiver]]]
"""Given the commands of a transaction, those to carry out with it: claims it may satisfy."""


class Ledger:
    """Collects commands into transactions and tells each caller its outcome."""

    def __init__(self, storage: Storage, clock: Clock, metrics: Metrics) -> None:
        self.is_writable = True
        """Whether the latest transaction could be written."""
        self.companions: Companions = lambda _commands: []
        self.on_commit: Callable[[Batch, Applied], None] = lambda _batch, _applied: None
        self._storage = storage
        self._clock = clock
        self._metrics = metrics
        self._commands: list[Command] = []
        self._receivers: list[Receiver] = []
        self._queued_bytes = 0
        self._committing: asyncio.Task[None] | None = None
        self._closed = False

    def record(self, command: Command) -> asyncio.Future[Any]:
        """Queue a command; the future is done once it is durable, or refused."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.post(command, future)
        return future

    def post(self, command: Command, receiver: Receiver) -> None:
        """Queue a command whose outcome goes to `receiver`.

        Raises BrokerUnavailable when too much is queued already, or at shutdown.
        """
        if self._closed:
            raise BrokerUnavailable("The broker is shutting down; try again shortly")
        if self._queued_bytes > MOST_QUEUED_BYTES or len(self._commands) > MOST_QUEUED:
            raise BrokerUnavailable(
                "The broker has more unwritten work than it can hold; try again in a second",
                retry_after=1.0,
            )
        self._queued_bytes += _weight(command)
        self._commands.append(command)
        self._receivers.append(receiver)
        if self._committing is None:
            self._committing = asyncio.get_running_loop().create_task(self._commit_all())

    async def prove(self) -> None:
        """Find out whether anything can be written again."""
        with suppress(BrokerUnavailable):  # its outcome is not what is asked for
            await self.record(Promote(0))

    async def close(self) -> None:
        """Take nothing more, and return once all that was taken is settled."""
        self._closed = True
        while self._committing is not None:
            await asyncio.wait([self._committing])

    async def _commit_all(self) -> None:
        try:
            while self._commands:
                await self._commit(*self._cut())
        finally:
            self._committing = None

    def _cut(self) -> tuple[list[Command], list[Receiver]]:
        end, weight = 0, 0
        for command in self._commands[:LARGEST_BATCH]:
            weight += _weight(command)
            end += 1
            if weight >= LARGEST_BATCH_BYTES:
                break
        self._queued_bytes -= weight
        commands, receivers = self._commands[:end], self._receivers[:end]
        del self._commands[:end], self._receivers[:end]
        for command, receiver in self.companions(commands):
            commands.append(command)
            receivers.append(receiver)
        return commands, receivers

    async def _commit(self, commands: list[Command], receivers: list[Receiver]) -> None:
        batch = Batch(commands, self._clock.wall(), self._clock.steady())
        try:
            applied = await self._storage.apply(batch)
        except TaskQueueError as error:
            self.is_writable = not isinstance(error, BrokerUnavailable)
            _refuse(receivers, error)
            return
        except Exception:
            log.exception("a transaction met a fault of the broker")
            _refuse(receivers, InternalError("The broker failed; its log says how"))
            return
        self.is_writable = True
        self._metrics.committed(len(commands), (self._clock.steady() - batch.steady) / SECOND)
        for receiver, outcome in zip(receivers, applied.outcomes, strict=True):
            if receiver.done():
                continue
            if isinstance(outcome, TaskQueueError):
                receiver.set_exception(outcome)
            else:
                receiver.set_result(outcome)
        # Afterwards: a claim of this batch may be parked by now and is to be woken like any other.
        self.on_commit(batch, applied)


def _refuse(receivers: list[Receiver], error: TaskQueueError) -> None:
    for receiver in receivers:
        if not receiver.done():
            receiver.set_exception(error)


def _weight(command: Command) -> int:
    if isinstance(command, Submit):
        return len(command.payload)
    return len(command.result) if isinstance(command, Complete) else 0
