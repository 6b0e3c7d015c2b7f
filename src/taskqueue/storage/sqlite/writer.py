"""The one writer: owns the write connection, commits batches, and mends itself after a failure.

Every method runs on the writer thread except `checkpoint_aside`, which has a connection of its
own. An error before COMMIT is rolled back: nothing happened. An error of COMMIT itself leaves the
outcome unknown (a failed sync may have reached the disk); the connection is closed, and before the
next batch the database is opened anew and everything kept in memory is read again.

A log that was there before is never continued: after a failed sync the kernel may hold pages of it
as clean that the disk does not have, and no later sync would write them. So whatever is opened has
its log brought into the database and begun anew first.
"""

import contextlib
from typing import Final

import apsw
import structlog

from taskqueue.core.batch import Applied, Batch
from taskqueue.core.errors import BrokerUnavailable, DataDamaged, OutcomeUnknown, StorageRefused
from taskqueue.storage.sqlite import statements as sql
from taskqueue.storage.sqlite.folder import DataFolder, FileIdentity, identity
from taskqueue.storage.sqlite.mark import CommitMark
from taskqueue.storage.sqlite.schema import known_commit, migrate
from taskqueue.storage.sqlite.tables import SqliteTables
from taskqueue.storage.transaction import Transaction, carried_out

PAGE: Final = 4096
CHECKPOINT_PAGES: Final = 8 * 1024 * 1024 // PAGE
"""From here on a checkpoint is made beside the writer."""

MOST_WAL_PAGES: Final = 64 * 1024 * 1024 // PAGE
"""From here on the writer makes it itself, which lets the log start over."""

WARN_WAL_PAGES: Final = 4 * MOST_WAL_PAGES
"""A log as long as this cannot start over because somebody keeps reading an old state."""

BUSY_MS: Final = 2_000
CACHE_KIB: Final = 32 * 1024

_FAULTS_OF_OURS: Final = (
    apsw.BindingsError,
    apsw.ConstraintError,
    apsw.MismatchError,
    apsw.MisuseError,
    apsw.RangeError,
    apsw.SQLError,
    apsw.TooBigError,
)

log = structlog.get_logger(component="storage")


class Writer:
    """The write side of one database."""

    def __init__(self, folder: DataFolder, mark: CommitMark) -> None:
        self.wal_pages = 0
        """Length of the log after the latest commit."""

        self.restart_at = MOST_WAL_PAGES
        """The length from which the log is to be made to start over."""

        self._folder = folder
        self._mark = mark
        self._connection: apsw.Connection | None = None
        self._database: FileIdentity | None = None
        self._log: FileIdentity | None = None
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
            self._connect(is_start=True)
        except (apsw.Error, DataDamaged) as error:
            raise StorageRefused(
                f"the database {self._folder.database} cannot be opened: {error}; {_advice(error)}"
            ) from error
        self._mark.write(self._commit_number)

    def apply(self, batch: Batch) -> Applied:
        """Commit a batch. Raises BrokerUnavailable (nothing changed) or OutcomeUnknown.

        A batch that changes nothing is not written, unless writing has failed before: then it is
        the proof that writing works again.
        """
        connection = self._healthy_connection()
        try:
            connection.execute("BEGIN IMMEDIATE")
            transaction = Transaction(SqliteTables(connection, self._next_seq), batch)
            carried_out(transaction.run())
            if not transaction.has_changed and not self._must_prove:
                connection.execute("ROLLBACK")
                return transaction.told(self._pending)
            connection.execute(
                sql.NOTE_COMMIT, (self._commit_number + 1, transaction.work.next_seq)
            )
        except BaseException as error:
            self._roll_back(connection)
            if not isinstance(error, apsw.Error) or isinstance(error, _FAULTS_OF_OURS):
                raise
            self._must_prove = True
            log.warning("a transaction could not be written", error=str(error))
            raise BrokerUnavailable(
                f"The storage cannot be written: {error}; nothing was changed, try again",
                retry_after=1.0,
            ) from error
        self._commit(connection, transaction)
        return transaction.told(self._pending)

    def checkpoint(self) -> None:
        """Bring the log into the database, so that it can start over."""
        # If it cannot, because of a reader, it is tried again when the log has grown.
        self.restart_at = max(MOST_WAL_PAGES, self.wal_pages + CHECKPOINT_PAGES)
        if self.wal_pages >= WARN_WAL_PAGES:
            log.warning(
                "the write-ahead log grows: somebody keeps reading an old state of the database",
                megabytes=self.wal_pages * PAGE // 2**20,
            )
        if self._connection is not None:
            try:
                _checkpoint(self._connection, self._mark)
            except (apsw.Error, OSError) as error:
                log.warning("a checkpoint failed; another one follows", error=str(error))

    def close(self) -> None:
        """Close the database."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _healthy_connection(self) -> apsw.Connection:
        self._require_same_files("nothing was changed")
        if self._connection is not None:
            return self._connection
        try:
            connection = self._connect(is_start=False)
        except apsw.Error as error:
            raise BrokerUnavailable(
                f"The storage cannot be opened again: {error}; nothing was changed, try again",
                retry_after=1.0,
            ) from error
        log.warning("the database was opened anew after a failed commit")
        return connection

    def _connect(self, *, is_start: bool) -> apsw.Connection:
        connection = open_for_writing(self._folder)
        try:
            # Before anything is written: if commits are missing, the log may still be salvaged.
            self._mark.require(known_commit(connection))
            if is_start:
                migrate(connection)
            _start_log_over(connection, is_start=is_start)
            self._take(connection)
        except BaseException:
            _drop(connection)
            raise
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
        self._database = identity(self._folder.database)
        self._log = identity(self._folder.log)
        self._connection = connection

    def _note_wal(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self.wal_pages = pages
        if pages < CHECKPOINT_PAGES:
            self.restart_at = MOST_WAL_PAGES
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
        self._commit_number += 1
        self._next_seq = transaction.work.next_seq
        self._pending += transaction.pending_change()
        # A commit into a file that nobody can find again is not durable.
        try:
            self._require_same_files("outcome unknown, repeat with the same id")
        except BrokerUnavailable as error:
            raise OutcomeUnknown(error.message, retry_after=error.retry_after) from error
        self._mark.write(self._commit_number)
        self._must_prove = False

    def _require_same_files(self, outcome: str) -> None:
        if identity(self._folder.database) != self._database:
            missing = self._folder.database
        elif self._connection is not None and identity(self._folder.log) != self._log:
            missing = self._folder.log
            self.checkpoint()  # what only the lost log held is safe in the database then
        else:
            return
        self._must_prove = True
        raise BrokerUnavailable(
            f"The file {missing} was removed or replaced under the broker: {outcome}; "
            "put the file back or restart the broker",
            retry_after=5.0,
        )

    def _abandon(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            _drop(connection)


def open_for_writing(folder: DataFolder) -> apsw.Connection:
    """A connection with full durability that leaves checkpoints to the caller."""
    connection = apsw.Connection(
        str(folder.database), apsw.SQLITE_OPEN_READWRITE, statementcachesize=200
    )
    connection.set_busy_timeout(BUSY_MS)
    (mode,) = sql.row_of(connection, "PRAGMA journal_mode = WAL")
    if mode != "wal":
        raise StorageRefused(
            f"the file system of {folder.path} cannot hold a write-ahead log (it may be a network "
            "share); choose a data folder on a local disk"
        )
    for pragma in (
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
    except (apsw.Error, BrokerUnavailable, OSError) as error:
        log.warning("a checkpoint failed; another one follows", error=str(error))


def _checkpoint(connection: apsw.Connection, mark: CommitMark) -> None:
    mark.sync()
    with contextlib.suppress(apsw.BusyError):  # another checkpoint is at it
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)


def _start_log_over(connection: apsw.Connection, *, is_start: bool) -> None:
    try:
        connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except apsw.BusyError:
        # At a start nothing has failed: a foreign reader need not keep the broker from its work.
        if not is_start:
            raise


def _drop(connection: apsw.Connection) -> None:
    """Close a connection and leave the files as they are."""
    with contextlib.suppress(apsw.Error):
        connection.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    with contextlib.suppress(apsw.Error):
        connection.close()


def _advice(error: Exception) -> str:
    if isinstance(error, apsw.FullError | apsw.IOError | apsw.CantOpenError | apsw.ReadOnlyError):
        return "see to it that the disk works, has space and lets this user write"
    if isinstance(error, apsw.BusyError | apsw.LockedError):
        return "stop the program that uses it"
    return "restore it from a backup or choose another data folder"
