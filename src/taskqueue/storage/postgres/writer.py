"""The connection on which one broker commits, and what it does when a commit stays in doubt.

A commit is never cancelled and has no time limit: PostgreSQL confirms one whose wait for a standby
was cancelled, though no standby has it. Only the callers' wait is limited. Where a connection is
lost in a commit, the row in `batches` that the transaction has written tells afterwards: whoever
inserts that row first decides, the transaction or the broker that asks.
"""

import asyncio
import time
from typing import Any, Final

import asyncpg
import structlog

from taskqueue.core.batch import Applied, Batch
from taskqueue.core.errors import BrokerUnavailable, OutcomeUnknown
from taskqueue.storage.postgres import statements as sql
from taskqueue.storage.postgres.connections import (
    LOST,
    Connection,
    Database,
    close,
    connect,
    unavailable,
)
from taskqueue.storage.postgres.tables import Meanwhile, Memory, PostgresTables
from taskqueue.storage.transaction import Transaction

ATTEMPTS: Final = 5
"""Times that a transaction is carried out whose ids were taken by another broker meanwhile."""

PATIENCE: Final = 8.0
"""Seconds that callers wait for a transaction before they are told that it hangs."""

STUCK_SECONDS: Final = 15.0
"""After so long a transaction is looked up on another connection, if the database itself is well:
the server's process may be frozen whose network still answers."""

_AGAIN: Final = (
    asyncpg.UniqueViolationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.LockNotAvailableError,
    Meanwhile,
)

log = structlog.get_logger(component="storage")


class Writer:
    """Commits the batches of one broker, one at a time."""

    def __init__(self, database: Database, memory: Memory) -> None:
        self.pending = 0
        """Depth of the queue, as far as it is known."""
        self.pending_changes = 0
        """By how much this broker itself has changed that depth, in all."""
        self.commands = 0
        """How many it has carried out."""
        self.doubt: str | None = None
        """Why nothing can be written just now."""
        self._database = database
        self._memory = memory
        self._connection: Connection | None = None
        self._working: asyncio.Task[Applied] | None = None
        self._since = 0.0
        self._is_closed = False
        self._must_look_up = False
        self._not_replicated = ""

    async def open(self) -> None:
        """Connect. Raises BrokerUnavailable."""
        await self._connected()

    async def close(self) -> None:
        """Let what is under way end, as far as it does, and hang up."""
        if self._working is not None:
            await asyncio.wait([self._working], timeout=PATIENCE)
            if not self._working.done():
                self._is_closed = True
                self._drop()  # to close it in good order would be to cancel the commit
                await asyncio.wait([self._working])
        await close(self._connection)

    async def apply(self, batch: Batch) -> Applied:
        """Commit a batch. Raises BrokerUnavailable (nothing changed) or OutcomeUnknown.

        To be called only while there is no known reason that commits should wait.
        """
        if self._working is not None and not self._working.done():
            if time.monotonic() - self._since > STUCK_SECONDS:
                log.error("a transaction hangs; looking it up on another connection")
                self._since = time.monotonic()
                self._drop()
            raise BrokerUnavailable(
                "The database does not confirm what was written last; nothing was changed, "
                "try again",
                retry_after=1.0,
            )
        self._since = time.monotonic()
        self._working = asyncio.create_task(self._apply(batch))
        try:
            done, _ = await asyncio.wait([self._working], timeout=PATIENCE)
        except asyncio.CancelledError:
            self._working.add_done_callback(_late)
            raise
        if done:
            return self._working.result()
        self._working.add_done_callback(_late)
        self.doubt = "the database does not confirm what was written last"
        raise OutcomeUnknown(
            f"The database has not confirmed the commit within {PATIENCE:g} s: outcome unknown, "
            "repeat with the same id",
            retry_after=1.0,
        )

    async def _apply(self, batch: Batch) -> Applied:
        try:
            applied = await self._try(batch)
        except BrokerUnavailable as error:
            self.doubt = error.message
            raise
        self.doubt = None
        return applied

    async def _try(self, batch: Batch) -> Applied:
        connection = await self._connected()
        for attempt in range(1, ATTEMPTS + 1):
            tables = PostgresTables(connection, self._memory, batch.wall, trusts_new=attempt == 1)
            transaction = Transaction(tables, batch)
            try:
                await connection.execute(sql.BEGIN)
                await transaction.run()
            except _AGAIN as error:
                self._memory.lanes.forget()
                await self._take_back(connection)
                if getattr(error, "constraint_name", None) == "batches_pkey":
                    self._memory.number += 1  # it is used, whoever used it
                if attempt == ATTEMPTS:
                    raise unavailable(self._database, error) from error
                await asyncio.sleep(0.005 * attempt)
                continue
            except BaseException as error:
                await self._roll_back(connection, error)
                raise
            if transaction.has_changed or self.doubt is not None:
                await self._commit(connection, transaction)
            else:
                await self._take_back(connection)
            self._remember(transaction, tables)
            return transaction.told(self.pending)
        raise AssertionError("the last attempt returns or raises")

    async def _take_back(self, connection: Connection) -> None:
        """End a transaction that is to change nothing. Raises BrokerUnavailable."""
        try:
            await connection.execute("ROLLBACK")
        except (*LOST, asyncpg.PostgresError) as error:
            self._drop()
            raise unavailable(self._database, error) from error

    async def _roll_back(self, connection: Connection, error: BaseException) -> None:
        self._memory.lanes.forget()
        try:
            await connection.execute("ROLLBACK")
        except (*LOST, asyncpg.PostgresError):
            self._drop()
        if isinstance(error, (*LOST, asyncpg.PostgresError)):
            log.warning("a transaction could not be written", error=str(error))
            raise unavailable(self._database, error) from error

    async def _commit(self, connection: Connection, transaction: Transaction) -> None:
        self._not_replicated = ""
        try:
            tag = await connection.execute("COMMIT")
        except (*LOST, asyncpg.PostgresError) as error:
            log.error("a commit was interrupted", error=str(error))
            self._drop()
            if not transaction.has_changed:
                raise unavailable(self._database, error) from error
            self._must_look_up = True
            await self._look_up()
            return
        if tag != "COMMIT":
            raise BrokerUnavailable("The database took the transaction back; try again")
        if self._not_replicated:
            self._memory.number += transaction.has_changed
            raise OutcomeUnknown(
                f"A standby may lack the commit ({self._not_replicated}): outcome unknown, "
                "repeat with the same id",
                retry_after=1.0,
            )

    async def _look_up(self) -> None:
        """Find out whether the latest commit took place.

        Raises BrokerUnavailable if it did not and never will, OutcomeUnknown if nobody can be
        asked yet.
        """
        self._not_replicated = ""
        try:
            connection = await self._new_connection()
            answers = await connection.fetch(
                sql.CLAIM_NUMBER, self._memory.broker, self._memory.number + 1
            )
        except (BrokerUnavailable, *LOST, asyncpg.PostgresError) as error:
            # What it says of itself would be "nothing was changed", of another try.
            cause = error.__cause__ or error
            raise OutcomeUnknown(
                f"The connection was lost in a commit ({cause}): outcome unknown, repeat with the "
                "same id",
                retry_after=1.0,
            ) from error
        self._must_look_up = False
        is_settled = bool(answers) and not self._not_replicated
        was_free = is_settled and answers[0][0]
        if was_free or not is_settled:
            self._memory.number += 1
            self._memory.lanes.forget()
        if not is_settled:
            reason = self._not_replicated or "the others have given this broker up"
            raise OutcomeUnknown(
                f"A commit may have been lost ({reason}): outcome unknown, repeat with the same id",
                retry_after=1.0,
            )
        if was_free:
            raise BrokerUnavailable(
                "The connection to the database was lost; nothing was changed, try again",
                retry_after=1.0,
            )

    async def _connected(self) -> Connection:
        """A connection on which nothing is in doubt."""
        if self._connection is None or self._connection.is_closed():
            if self._must_look_up:
                await self._settle_former()
            else:
                await self._new_connection()
        if self._connection is None:
            raise BrokerUnavailable("The database was lost again; nothing was changed, try again")
        return self._connection

    async def _settle_former(self) -> None:
        # Its callers have been told that nobody knows; now it must be one or the other, since the
        # next batch takes the next number.
        try:
            await self._look_up()
        except OutcomeUnknown as error:
            raise BrokerUnavailable(error.message, retry_after=1.0) from error
        except BrokerUnavailable:
            return
        self._memory.number += 1
        log.warning("a commit in doubt had taken place")

    async def _new_connection(self) -> Connection:
        if self._is_closed:
            raise BrokerUnavailable("This broker is stopping; nothing was changed")
        connection = await connect(self._database, "read-write", "commits")
        connection.add_log_listener(self._on_notice)
        self._connection = connection
        self._memory.lanes.forget()
        return connection

    def _on_notice(self, _connection: Any, message: Any) -> None:
        # "canceling wait for synchronous replication", in the server's language: it is committed
        # here, perhaps only here.
        if message.sqlstate == "01000":
            self._not_replicated = str(message)

    def _remember(self, transaction: Transaction, tables: PostgresTables) -> None:
        memory = self._memory
        memory.number += transaction.has_changed
        memory.lanes.add(tables.new_lanes)
        tables.leave_rest()
        memory.latest_claims |= tables.claims_kept
        if tables.due_floor is not None:
            memory.due_floor = tables.due_floor
        change = transaction.pending_change()
        self.pending += change
        self.pending_changes += change
        self.commands += len(transaction.outcomes)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
        self._connection = None


def _late(working: "asyncio.Task[Applied]") -> None:
    # Its callers have been told that nobody knows: what came of it is in the log only.
    if not working.cancelled():
        error = working.exception()
        log.warning("a late commit has ended", error=None if error is None else str(error))
