"""The one writer: owns the write connection, commits batches, and mends itself after a failure.

Every method runs on the writer thread except `checkpoint_aside`, which has a connection of its
own. An error before COMMIT is rolled back: nothing happened. An error of COMMIT itself leaves the
outcome unknown (a failed sync may have reached the disk); the connection is closed, and before the
next batch the database is opened anew and everything kept in memory is read again.
"""

import contextlib
from typing import Final

import apsw
import structlog

from taskqueue.core.batch import Applied, Batch
from taskqueue.core.errors import BrokerUnavailable, OutcomeUnknown, StorageRefused
from taskqueue.storage.sqlite import statements as sql
from taskqueue.storage.sqlite.folder import DataFolder
from taskqueue.storage.sqlite.mark import CommitMark
from taskqueue.storage.sqlite.schema import migrate
from taskqueue.storage.sqlite.transaction import Transaction

PAGE: Final = 4096
CHECKPOINT_PAGES: Final = 8 * 1024 * 1024 // PAGE
"""From here on a checkpoint is made beside the writer."""

MOST_WAL_PAGES: Final = 64 * 1024 * 1024 // PAGE
"""From here on the writer makes it itself, which lets the log start over."""

BUSY_MS: Final = 2_000
CACHE_KIB: Final = 32 * 1024

log = structlog.get_logger(component="storage")


class Writer:
    """The write side of one database."""

    def __init__(self, folder: DataFolder, mark: CommitMark) -> None:
        self.wal_pages = 0
        self._folder = folder
        self._mark = mark
        self._connection: apsw.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._commit_number = 0
        self._next_seq = 1
        self._pending = 0
        self._must_prove = False

    def open(self) -> None:
        """Open the database, bring its schema up to date and read what is kept in memory.

        Raises StorageRefused where the database must not be used as it is.
        """
        self._folder.make_database()
        try:
            connection = open_for_writing(self._folder)
            migrate(connection)
            self._take(connection)
        except apsw.Error as error:
            raise StorageRefused(
                f"the database {self._folder.database} cannot be opened: {error}; "
                "restore it from a backup or choose another data folder"
            ) from error
        self._mark.require(self._commit_number)
        self._mark.write(self._commit_number)

    def apply(self, batch: Batch) -> Applied:
        """Commit a batch. Raises BrokerUnavailable (nothing changed) or OutcomeUnknown."""
        connection = self._healthy_connection()
        try:
            connection.execute("BEGIN IMMEDIATE")
            transaction = Transaction(connection, batch, self._next_seq)
            transaction.run()
            if not transaction.has_changed and not self._must_prove:
                connection.execute("ROLLBACK")
                return self._told(transaction)
            connection.execute(
                sql.NOTE_COMMIT, (self._commit_number + 1, transaction.work.next_seq)
            )
        except BaseException as error:
            self._roll_back(connection)
            if not isinstance(error, apsw.Error) or isinstance(error, apsw.SQLError):
                raise  # a fault of ours, not of the storage
            self._must_prove = True
            log.warning("a transaction could not be written", error=str(error))
            raise BrokerUnavailable(
                f"The storage cannot be written: {error}; nothing was changed, try again",
                retry_after=1.0,
            ) from error
        self._commit(connection, transaction)
        return self._told(transaction)

    def checkpoint(self) -> None:
        """Bring the log into the database, so that it can start over."""
        if self._connection is not None:
            _checkpoint(self._connection, self._mark)

    def close(self) -> None:
        """Close the database."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _healthy_connection(self) -> apsw.Connection:
        self._require_same_file("nothing was changed")
        if self._connection is not None:
            return self._connection
        try:
            connection = open_for_writing(self._folder)
            self._take(connection)
        except apsw.Error as error:
            raise BrokerUnavailable(
                f"The storage cannot be opened again: {error}; nothing was changed",
                retry_after=1.0,
            ) from error
        self._mark.require(self._commit_number)
        log.warning("the database was opened anew after a failed commit")
        return connection

    def _take(self, connection: apsw.Connection) -> None:
        self._commit_number, self._next_seq = sql.row_of(
            connection, "SELECT commit_number, next_seq FROM ledger"
        )
        (self._pending,) = sql.row_of(
            connection,
            "SELECT coalesce(sum(present), 0) FROM counters "
            "WHERE task_type = '' AND status = 'pending'",
        )
        connection.set_wal_hook(self._note_wal)
        self._identity = self._folder.identity()
        self._connection = connection

    def _note_wal(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self.wal_pages = pages
        return apsw.SQLITE_OK

    def _roll_back(self, connection: apsw.Connection) -> None:
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except apsw.Error:
            self._abandon()

    def _commit(self, connection: apsw.Connection, transaction: Transaction) -> None:
        try:
            connection.execute("COMMIT")
        except apsw.Error as error:
            log.error("a commit failed; its outcome is unknown", error=str(error))
            self._abandon()
            self._must_prove = True
            raise OutcomeUnknown(
                f"The commit failed ({error}): outcome unknown, repeat with the same id",
                retry_after=1.0,
            ) from error
        # A commit into a file that nobody can find again is not durable.
        try:
            self._require_same_file("outcome unknown")
        except BrokerUnavailable as error:
            raise OutcomeUnknown(error.message) from error
        self._commit_number += 1
        self._mark.write(self._commit_number)
        self._next_seq = transaction.work.next_seq
        self._pending += transaction.pending_change()
        self._must_prove = False

    def _require_same_file(self, outcome: str) -> None:
        if self._folder.identity() != self._identity:
            self._must_prove = True
            raise BrokerUnavailable(
                f"The database file {self._folder.database} was removed or replaced under the "
                f"broker: {outcome}; put the file back or restart the broker"
            )

    def _abandon(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(apsw.Error):
                connection.close()

    def _told(self, transaction: Transaction) -> Applied:
        return Applied(
            outcomes=transaction.outcomes,
            moved=transaction.work.moved,
            ready=transaction.ready(),
            next_due=transaction.next_due,
            pending=self._pending,
        )


def open_for_writing(folder: DataFolder) -> apsw.Connection:
    """A connection with full durability that leaves checkpoints to the caller."""
    connection = apsw.Connection(
        str(folder.database), apsw.SQLITE_OPEN_READWRITE, statementcachesize=200
    )
    connection.set_busy_timeout(BUSY_MS)
    for pragma in (
        "journal_mode = WAL",
        "synchronous = FULL",
        f"cache_size = -{CACHE_KIB}",
        "temp_store = MEMORY",
        "wal_autocheckpoint = 0",
        f"journal_size_limit = {MOST_WAL_PAGES * PAGE}",
    ):
        connection.execute(f"PRAGMA {pragma}").fetchall()
    return connection


def checkpoint_aside(folder: DataFolder, mark: CommitMark) -> None:
    """Bring the log into the database over a connection of its own, while writes go on."""
    try:
        connection = open_for_writing(folder)
        try:
            _checkpoint(connection, mark)
        finally:
            connection.close()
    except (apsw.Error, OSError) as error:
        log.warning("a checkpoint failed; the next one follows", error=str(error))


def _checkpoint(connection: apsw.Connection, mark: CommitMark) -> None:
    mark.sync()
    with contextlib.suppress(apsw.BusyError):  # another checkpoint is at it
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)
