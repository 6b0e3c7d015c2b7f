"""Sends what is in the outbox to the broker, each task once."""

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from taskqueue.client.aio import AsyncClient
from taskqueue.client.link import Backoff
from taskqueue.client.task import Task
from taskqueue.core.errors import (
    IdempotencyConflict,
    InvalidRequest,
    PayloadTooLarge,
    PermissionDenied,
    TaskQueueError,
)
from taskqueue.outbox.table import CHANNEL, DELETE, REFUSE, TAKE

if TYPE_CHECKING:
    import asyncpg

LARGEST_BATCH: Final = 16 * 1024 * 1024
"""Bytes of payloads after which a batch is full."""

PREFETCHED: Final = 10
BROKER_SECONDS: Final = 10.0
"""How long a batch waits for the broker before its transaction is given up."""

CONNECT_SECONDS: Final = 10.0

NAME: Final = "taskqueue outbox"
"""What the relay's sessions are called in pg_stat_activity."""

_REFUSALS: Final = (InvalidRequest, PayloadTooLarge, IdempotencyConflict, PermissionDenied)
"""What a broker says of one task, and would say again."""

log = logging.getLogger("taskqueue.outbox")


class Relay:
    """Sends the outbox of the database at `dsn` to the broker at `url`, oldest first.

    `url` and `api_key` are those of a client. A batch of up to `batch` tasks is locked, sent under
    the ids in its rows, and deleted, in one transaction: what breaks off is sent again under the
    same ids, which makes no second task. Any number of relays may run; each takes what no other
    holds. It looks every `poll_seconds`, and when it is notified.
    """

    def __init__(
        self,
        dsn: str,
        url: str | None = None,
        *,
        api_key: str | None = None,
        batch: int = 500,
        poll_seconds: float = 1.0,
    ) -> None:
        self._dsn = dsn
        self._client = AsyncClient(url, api_key=api_key, timeout=BROKER_SECONDS)
        self._batch = batch
        self._poll_seconds = poll_seconds
        self._backoff = Backoff()
        self._stopping = asyncio.Event()
        self._wake = asyncio.Event()

    def stop(self) -> None:
        """Finish the batch under way, and no more."""
        self._stopping.set()
        self._wake.set()

    async def run(self) -> None:
        """Send until told to stop, also after the broker or the database have been away.

        Raises what PostgreSQL says of a table or a database that is not there, or of a password.
        """
        asyncpg = _asyncpg()
        away = _errors_while_away(asyncpg)
        try:
            while not self._stopping.is_set():
                connection: Any = None
                try:
                    connection = await asyncpg.connect(
                        self._dsn,
                        timeout=CONNECT_SECONDS,
                        server_settings={"application_name": NAME},
                    )
                    await self._relay_over(connection)
                except Exception as error:
                    # One that was cut off says many things, of what it was about to do.
                    is_cut_off = connection is not None and connection.is_closed()
                    if not is_cut_off and not isinstance(error, away):
                        raise
                    log.warning("the database is away: %s", error)
                    await _passed(self._stopping, self._backoff.next_pause(error))
                finally:
                    if connection is not None:
                        connection.terminate()
        finally:
            await self._client.close()

    async def _relay_over(self, connection: "asyncpg.Connection[Any]") -> None:
        await connection.add_listener(CHANNEL, self._notified)
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                number = await self._pass_on(connection)
            except TaskQueueError as error:
                log.warning("the broker takes no tasks: %s", error)
                pause = error.retry_after or self._backoff.next_pause(error)
                await _passed(self._stopping, pause)
                continue
            self._backoff = Backoff()
            if number == 0 and not self._stopping.is_set():
                await _passed(self._wake, self._poll_seconds)

    def _notified(self, *_about: object) -> None:
        self._wake.set()

    async def _pass_on(self, connection: "asyncpg.Connection[Any]") -> int:
        """Send one batch; how many rows it had. Raises TaskQueueError if none is to be sent now."""
        async with connection.transaction():
            tasks: list[tuple[int, Task]] = []
            size = 0
            async for row in connection.cursor(TAKE, self._batch, prefetch=PREFETCHED):
                tasks.append(_task(row))
                size += len(row["payload"])
                if size >= LARGEST_BATCH:
                    break
            if not tasks:
                return 0
            refusals = await self._send(tasks)
            for seq, error in refusals.items():
                log.error("the broker refuses the task of row %s: %s", seq, error)
                await connection.execute(REFUSE, seq, f"{error.code}: {error.message}")
            await connection.execute(DELETE, [seq for seq, _ in tasks if seq not in refusals])
        return len(tasks)

    async def _send(self, tasks: list[tuple[int, Task]]) -> dict[int, TaskQueueError]:
        """Submit tasks; the refusals of single ones, by row."""
        try:
            await self._client.submit_many(task for _, task in tasks)
        except _REFUSALS:
            pass  # of one of them, or more: which?
        else:
            return {}
        refusals: dict[int, TaskQueueError] = {}
        for seq, task in tasks:
            try:
                await self._client.submit_task(task)
            except _REFUSALS as error:
                refusals[seq] = error
        return refusals


async def relay(dsn: str, url: str | None = None, *, api_key: str | None = None) -> None:
    """Send the outbox of a database to the broker until cancelled; see Relay."""
    await Relay(dsn, url, api_key=api_key).run()


async def _passed(event: asyncio.Event, seconds: float) -> None:
    """Wait for an event, so long at most."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()


def _task(row: "asyncpg.Record") -> tuple[int, Task]:
    return row["seq"], Task(
        row["task_type"],
        row["payload"],
        priority=row["priority"],
        timeout=row["timeout"],
        max_retries=row["max_retries"],
        schedule_at=row["schedule_at"],
        task_id=str(row["task_id"]),
    )


def _asyncpg() -> Any:
    try:
        import asyncpg
    except ImportError as error:
        raise RuntimeError("the relay needs more: pip install 'taskqueue[outbox]'") from error
    return asyncpg


def _errors_while_away(asyncpg: Any) -> tuple[type[Exception], ...]:
    """What a database says, or what comes instead, that will be back."""
    return (
        OSError,
        asyncpg.InterfaceError,
        asyncpg.PostgresConnectionError,
        asyncpg.OperatorInterventionError,
        asyncpg.InsufficientResourcesError,
        asyncpg.TransactionRollbackError,
        asyncpg.ReadOnlySQLTransactionError,  # a standby, until it is promoted
    )
