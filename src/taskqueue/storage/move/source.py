"""The data folder that tasks are moved from: read, never written, in short looks."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import apsw
import msgspec

from taskqueue.core.errors import BrokerUnavailable, StorageRefused
from taskqueue.storage.migrations import newest_of
from taskqueue.storage.move.rows import (
    PART_COLUMNS,
    PERMISSIONS,
    SIDE_TABLES,
    TASK_COLUMNS,
    Row,
    Whole,
    writable,
)
from taskqueue.storage.sqlite import moved
from taskqueue.storage.sqlite import statements as sql
from taskqueue.storage.sqlite.folder import DATABASE_NAME, DataFolder, FolderInUse
from taskqueue.storage.sqlite.mark import CommitMark
from taskqueue.storage.sqlite.reader import Reader
from taskqueue.storage.sqlite.schema import MIGRATIONS, known_commit

MOST_ROWS: Final = 1_000
MOST_BYTES: Final = 8 * 2**20
"""What one look takes at most; a single task may be larger."""

BUSY_MS: Final = 5_000

# SQLite tells the length of a blob without reading it.
TASKS: Final = f"""
    SELECT {", ".join(TASK_COLUMNS)}, ready,
        coalesce((SELECT length(data) FROM payloads WHERE payloads.seq = tasks.seq), 0),
        coalesce((SELECT length(data) FROM results WHERE results.seq = tasks.seq), 0)
    FROM tasks WHERE seq > ? ORDER BY seq LIMIT ?"""
PART: Final = {
    part: f"SELECT {', '.join(f'{part}.{name}' for name in columns)} "
    f"FROM json_each(?) AS wanted CROSS JOIN {part} ON {part}.seq = wanted.value "
    f"ORDER BY {part}.rowid"
    for part, columns in PART_COLUMNS.items()
}
# The rows of type '' are sums over the others; PostgreSQL has none, it adds them up.
SIDES: Final = {
    table: f"SELECT {', '.join(columns)} FROM {table}"
    + " WHERE task_type <> ''" * (table == "counters")
    for table, columns in SIDE_TABLES.items()
}
LAST_AUDIT: Final = """
    SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'audit'), 0)"""


class Source:
    """A data folder, which a broker may be using until `take` has it."""

    def __init__(self, folder: Path) -> None:
        """Look into a folder. Raises StorageRefused if there is nothing that could be moved."""
        self.folder = folder.absolute()
        self._database = self.folder / DATABASE_NAME
        self._lock: DataFolder | None = None
        if not self._database.is_file():
            raise StorageRefused(
                f"there is no {DATABASE_NAME} in {self.folder}: name the data folder of a broker"
            )
        self._connection = self._open()
        self._require_known()

    def take(self) -> bool:
        """Keep brokers from the folder from now on; whether that was possible.

        Raises StorageRefused where acknowledged commits are missing from it.
        """
        if self._lock is None:
            try:
                self._lock = DataFolder(self.folder)
            except FolderInUse:
                return False
            # What the broker did last, a change of the files among it, is seen from here on.
            self._connection.close()
            self._connection = self._open()
            self._require_known()
            mark = CommitMark(self.folder)
            try:
                mark.require(known_commit(self._connection))
            finally:
                mark.close()
        return True

    def close(self) -> None:
        """Let brokers have the folder again."""
        with suppress(apsw.Error):
            self._connection.close()
        if self._lock is not None:
            self._lock.close()

    @property
    def note(self) -> moved.Note | None:
        """What an earlier move left behind."""
        return moved.read_note(self.folder)

    def leave_note(self, note: moved.Note) -> None:
        """Say what is done with the tasks. Raises StorageRefused."""
        try:
            moved.write_note(self.folder, note)
        except OSError as error:
            raise StorageRefused(
                f"the folder {self.folder} cannot be written: {error.strerror}; the move is noted "
                "in it, so that its tasks are not done twice"
            ) from error

    @contextmanager
    def look(self) -> Iterator[None]:
        """For the block, everything is read as it is now; keep it short while a broker runs."""
        try:
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.execute("ROLLBACK")
        except apsw.Error as error:
            raise BrokerUnavailable(f"{self._database} cannot be read: {error}") from error

    def tasks(self, after: int) -> tuple[list[Row], dict[int, int]]:
        """The next tasks, not too much at once, and how many bytes the payload of each has."""
        found: list[Row] = []
        weights: dict[int, int] = {}
        room = MOST_BYTES
        for *task, weight, result in self._rows(TASKS, (after, MOST_ROWS)):
            if found and weight + result > room:
                break
            room -= weight + result
            found.append(writable(task))
            weights[task[0]] = weight
        return found, weights

    def whole(self, tasks: list[Row]) -> Whole:
        """Tasks with all that belongs to them."""
        numbers = (sql.as_json_numbers(task[0] for task in tasks),)
        parts = {
            part: [writable(row) for row in self._rows(statement, numbers)]
            for part, statement in PART.items()
        }
        return Whole(tasks, **parts)

    def side(self, table: str) -> Iterator[Row]:
        """The rows of a table beside the tasks, in any order."""
        for row in self._connection.execute(SIDES[table]):
            yield writable(_with_list(row) if table == "keys" else row)

    def size(self, table: str) -> int:
        """How many rows a table has."""
        condition = " WHERE task_type <> ''" * (table == "counters")
        return int(self._rows(f"SELECT count(*) FROM {table}{condition}")[0][0])

    def statuses(self) -> list[Row]:
        """How many tasks there are in each status."""
        return self._rows("SELECT status, count(*) FROM tasks GROUP BY status ORDER BY status")

    def last_audit_number(self) -> int:
        """The highest number that an entry of the audit log ever had."""
        return int(self._rows(LAST_AUDIT)[0][0])

    def audit(self) -> list[str]:
        """What the engine itself finds wrong with the folder."""
        reader = Reader(self._database, 1)
        try:
            return reader.audit()
        finally:
            reader.close()

    def _rows(self, statement: str, bindings: Sequence[Any] = ()) -> list[Row]:
        return sql.rows_of(self._connection, statement, bindings)

    def _open(self) -> apsw.Connection:
        try:
            connection = apsw.Connection(str(self._database), apsw.SQLITE_OPEN_READONLY)
            connection.set_busy_timeout(BUSY_MS)
        except apsw.Error as error:
            raise StorageRefused(f"{self._database} cannot be opened: {error}") from error
        return connection

    def _require_known(self) -> None:
        try:
            version = int(self._rows("PRAGMA user_version")[0][0])
        except apsw.Error as error:
            raise StorageRefused(f"{self._database} cannot be read: {error}") from error
        if version != newest_of(MIGRATIONS):
            raise StorageRefused(
                f"{self._database} has schema {version}, this release knows "
                f"{newest_of(MIGRATIONS)}; start a broker of this release on the folder once, or "
                "move it with the release that last used it"
            )


def _with_list(row: Sequence[Any]) -> Row:
    permissions = msgspec.json.decode(row[PERMISSIONS])
    return (*row[:PERMISSIONS], permissions, *row[PERMISSIONS + 1 :])
