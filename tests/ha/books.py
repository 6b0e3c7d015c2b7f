"""What the database has of each task, read by the engine itself."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from taskqueue.core.task import Task
from taskqueue.storage.engines import open_storage
from taskqueue.storage.port import Storage, TaskQuery
from tests.chaos.checker import Books, Kept

PAGE: Final = 200


async def read(folder: Path, dsn: str) -> tuple[Books, list[str]]:
    """Every task, and what the storage's own audit says."""
    storage = open_storage(folder, dsn)
    await storage.open()
    try:
        books: Books = {}
        before = None
        while page := await storage.find(TaskQuery(limit=PAGE, before_seq=before)):
            books.update(await _kept(storage, page))
            before = page[-1].seq
        return books, await storage.audit()
    finally:
        await storage.close()


async def _kept(storage: Storage, page: Sequence[Task]) -> Books:
    details = await asyncio.gather(*(storage.get(task.id) for task in page))
    payloads = await asyncio.gather(*(storage.payload(task.id) for task in page))
    kept: Books = {}
    for task, detail, payload in zip(page, details, payloads, strict=True):
        assert detail is not None, f"{task.id} is listed and not there"
        assert payload is not None, f"{task.id} has no payload"
        kept[task.id] = Kept(detail, payload)
    return kept
