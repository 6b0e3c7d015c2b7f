"""What a broker has stored, read beside the running broker and held against itself."""

import asyncio
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from taskqueue.cli.findings import Finding, fail, ok
from taskqueue.core.errors import StorageRefused
from taskqueue.storage.migrations import newest_of

CHECKSUM_SECONDS: Final = 10.0
"""How long bytes are held against their checksums, newest first."""

MOST_TOLD: Final = 3
SLICE_ROWS: Final = 500
SLICE_BYTES: Final = 8 * 2**20
COUNTER: Final = "counter of"


class Store(Protocol):
    """Where a broker keeps its tasks. Nothing is changed there."""

    name: str

    async def require_known(self) -> None:
        """Raise StorageRefused if it has another schema than this release."""
        ...

    async def complaints(self) -> list[str]:
        """Each way in which it contradicts itself."""
        ...

    async def has(self, task_id: str) -> bool:
        """Whether a task has been committed."""
        ...

    async def durability(self) -> tuple[str, str]:
        """How commits are made durable, and what is wrong with that; empty if nothing is."""
        ...

    async def damaged(self) -> tuple[int, list[str]]:
        """How many payloads and results were read, and those that are damaged."""
        ...

    async def close(self) -> None:
        """Let go of it."""
        ...


class Folder(Store):
    """The data folder of an embedded broker, which may be running: a reader is in nobody's way."""

    def __init__(self, folder: Path) -> None:
        """Raises StorageRefused if no broker has ever used the folder."""
        from taskqueue.storage.sqlite.folder import DATABASE_NAME
        from taskqueue.storage.sqlite.reader import Reader

        self.name = f"the data folder {folder}"
        self._folder = folder
        self._database = folder / DATABASE_NAME
        if not self._database.is_file():
            raise StorageRefused(
                f"there is no {DATABASE_NAME} in {folder}; name the data folder of the broker"
            )
        self._reader = Reader(self._database, 1)

    async def require_known(self) -> None:
        from taskqueue.storage.sqlite.schema import MIGRATIONS

        connection = self._open()
        try:
            ((number,),) = connection.execute("PRAGMA user_version")
        finally:
            connection.close()
        _require_same(number, newest_of(MIGRATIONS), self.name)

    async def complaints(self) -> list[str]:
        return await asyncio.to_thread(self._reader.audit)

    async def has(self, task_id: str) -> bool:
        return bool(await asyncio.to_thread(self._reader.look, [task_id]))

    async def durability(self) -> tuple[str, str]:
        return await asyncio.to_thread(self._marked)

    async def damaged(self) -> tuple[int, list[str]]:
        return await asyncio.to_thread(self._read_bytes)

    async def close(self) -> None:
        self._reader.close()

    def _marked(self) -> tuple[str, str]:
        """Whether the database ends where the mark beside it says, or later."""
        from taskqueue.storage.sqlite.mark import FILE_NAME
        from taskqueue.storage.sqlite.schema import known_commit

        path = self._folder / FILE_NAME
        content = path.read_bytes() if path.exists() else b""
        digits, _, check = content.strip().partition(b" ")
        connection = self._open()
        try:
            commit = known_commit(connection)
        finally:
            connection.close()
        if not (digits.isdigit() and check == b"%08x" % zlib.crc32(digits)):
            return f"commit {commit}; the mark beside the database cannot be read", ""
        # The mark is read first: it is written after each commit, so it is never ahead.
        if int(digits) > commit:
            return "", f"commits {commit + 1} to {int(digits)} were acknowledged and are missing"
        return f"commit {commit}, and the mark beside the database agrees", ""

    def _read_bytes(self) -> tuple[int, list[str]]:
        ends_at = time.monotonic() + CHECKSUM_SECONDS
        number, found = 0, list[str]()
        connection = self._open()
        try:
            for kind, statement in _BYTES_OF_FOLDER:
                for task_id, crc, data in connection.execute(statement):
                    number += 1
                    if zlib.crc32(data) != crc:
                        found.append(f"the {kind} of task {task_id}")
                    if time.monotonic() > ends_at:
                        break
        finally:
            connection.close()
        return number, found

    def _open(self) -> Any:
        import apsw

        connection = apsw.Connection(str(self._database), apsw.SQLITE_OPEN_READONLY)
        connection.set_busy_timeout(2_000)
        return connection


class Shared(Store):
    """The PostgreSQL database that brokers share."""

    def __init__(self, url: str) -> None:
        """Raises StorageRefused for an address that makes no sense."""
        from taskqueue.storage.postgres.connections import database_at
        from taskqueue.storage.postgres.reader import Reader

        database = database_at(url)
        self.name = f"the database {database}"
        self._reader = Reader(database)

    async def require_known(self) -> None:
        from taskqueue.storage.postgres.schema import MIGRATIONS

        there = "SELECT to_regclass('taskqueue.migrations') IS NOT NULL"
        ((is_there,),) = await self._reader.fetch(there)
        numbers = "SELECT coalesce(max(number), 0) FROM taskqueue.migrations"
        number = (await self._reader.fetch(numbers))[0][0] if is_there else 0
        _require_same(number, newest_of(MIGRATIONS), self.name)

    async def complaints(self) -> list[str]:
        from taskqueue.storage.postgres.audit import audit

        return await audit(self._reader)

    async def has(self, task_id: str) -> bool:
        return bool(await self._reader.look([task_id]))

    async def durability(self) -> tuple[str, str]:
        names = ("fsync", "full_page_writes", "synchronous_commit")
        rows = await self._reader.fetch(
            "SELECT name, setting FROM pg_settings WHERE name = ANY($1::text[])", names
        )
        settings = {row[0]: row[1] for row in rows}
        said = ", ".join(f"{name} {settings.get(name)}" for name in names)
        off = [name for name in names if settings.get(name) == "off"]
        return said, f"{' and '.join(off)} off: a crash loses acknowledged tasks" if off else ""

    async def damaged(self) -> tuple[int, list[str]]:
        ends_at = time.monotonic() + CHECKSUM_SECONDS
        number, found = 0, list[str]()
        for kind, sizes, statement in _BYTES_OF_DATABASE:
            async for seqs in self._slices(sizes, ends_at):
                for task_id, crc, data in await self._reader.fetch(statement, seqs):
                    number += 1
                    if zlib.crc32(data) != crc:
                        found.append(f"the {kind} of task {task_id}")
        return number, found

    async def close(self) -> None:
        await self._reader.close()

    async def _slices(self, sizes: str, ends_at: float) -> AsyncIterator[list[int]]:
        """The numbers of rows, in slices that are neither many nor large."""
        before = 2**63 - 1
        while time.monotonic() < ends_at:
            rows = await self._reader.fetch(sizes, before, SLICE_ROWS)
            if not rows:
                return
            before = rows[-1][0]
            for some in _by_size(rows):
                yield some


async def open_store(engine: str, folder: Path | None) -> Store | None:
    """The store that is named, if one is. Raises StorageRefused, BrokerUnavailable."""
    if not engine and folder is None:
        return None
    store: Store = Folder(folder) if folder is not None else Shared(engine)
    try:
        await store.require_known()
    except BaseException:
        await store.close()
        raise
    return store


def _require_same(number: int, known: int, name: str) -> None:
    if number != known:
        raise StorageRefused(
            f"{name} has schema {number}, and this tq knows {known}; "
            "use the tq of the broker's release"
        )


async def store_checks(store: Store) -> AsyncIterator[Finding]:
    """Whether it is whole and agrees with itself."""
    complaints = await store.complaints()
    counters = [one for one in complaints if one.startswith(COUNTER)]
    others = [one for one in complaints if not one.startswith(COUNTER)]
    yield _judged(
        "7 counters equal the truth", f"recounted in {store.name}", counters, "report it as a fault"
    )
    yield _judged(
        "stored state",
        "readiness follows status, nothing runs without owner and deadline, bytes and rows "
        "belong together",
        others,
        "keep a copy of the storage before anything else, then report it",
    )
    said, wrong = await store.durability()
    yield _judged(
        "1 acknowledged means durable, as stored",
        said,
        [wrong] if wrong else [],
        "the broker must not go on like this: see docs/how-to/run-a-broker.md and run-a-cluster.md",
    )
    number, damaged = await store.damaged()
    yield _judged(
        "10 damage is noticed",
        f"{number} payloads and results match their checksums",
        damaged,
        "the disk or memory is failing: restore from a backup",
    )


def _judged(check: str, said: str, complaints: Sequence[str], advice: str) -> Finding:
    if not complaints:
        return ok(check, said)
    more = f" and {len(complaints) - MOST_TOLD} more" if len(complaints) > MOST_TOLD else ""
    return fail(check, "; ".join(complaints[:MOST_TOLD]) + more, advice)


def _by_size(rows: Sequence[Any]) -> list[list[int]]:
    slices: list[list[int]] = [[]]
    held = 0
    for seq, size in rows:
        if slices[-1] and held + size > SLICE_BYTES:
            slices.append([])
            held = 0
        slices[-1].append(seq)
        held += size
    return slices


_BYTES_OF_FOLDER: Final = (
    (
        "payload",
        "SELECT id, payload_crc, data FROM tasks JOIN payloads USING (seq) ORDER BY seq DESC",
    ),
    ("result", "SELECT id, crc, data FROM tasks JOIN results USING (seq) ORDER BY seq DESC"),
)
_SIZES: Final = """
    SELECT seq, octet_length(data) FROM taskqueue.{}s WHERE seq < $1 ORDER BY seq DESC LIMIT $2"""
_PAYLOADS: Final = """
    SELECT every.id, payload_crc, data FROM taskqueue.payloads AS bytes JOIN (
        SELECT seq, id, payload_crc FROM taskqueue.tasks
        UNION ALL SELECT seq, id, payload_crc FROM taskqueue.archive) AS every USING (seq)
    WHERE seq = ANY($1::bigint[])"""
_RESULTS: Final = """
    SELECT id, crc, data FROM taskqueue.results JOIN taskqueue.archive USING (seq)
    WHERE seq = ANY($1::bigint[])"""
_BYTES_OF_DATABASE: Final = (
    ("payload", _SIZES.format("payload"), _PAYLOADS),
    ("result", _SIZES.format("result"), _RESULTS),
)
