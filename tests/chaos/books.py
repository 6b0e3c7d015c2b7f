"""What the broker kept, in two ways: asked over its doors, and read from its stopped storage."""

import asyncio
import json
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from taskqueue import AsyncClient
from taskqueue.core.task import Status
from taskqueue.storage.engines import open_storage
from taskqueue.storage.port import TaskQuery
from tests.chaos.checker import Books, Kept

PAGE = 500


class Told(NamedTuple):
    """What the running broker said of everything it has."""

    totals: dict[Status, int]
    tasks: list[tuple[str, Status, bytes | None]]


def totals(http: str) -> dict[Status, int]:
    """How many tasks have each status, as its lists say."""
    return {status: _total(http, status) for status in Status}


def _total(http: str, status: Status) -> int:
    address = f"http://{http}/api/v1/tasks?status={status}&limit=1"
    with urllib.request.urlopen(address, timeout=10) as answer:
        return int(json.load(answer)["total"])


async def ask(native: str, http: str) -> Told:
    """Ask a broker for everything it has."""
    async with AsyncClient(native) as client:
        return Told(totals(http), [task async for task in _tasks(client)])


async def _tasks(client: AsyncClient) -> AsyncIterator[tuple[str, Status, bytes | None]]:
    cursor = None
    while True:
        page = await client.list_tasks(limit=PAGE, cursor=cursor)
        ids = [task.task_id for task in page.tasks]
        for status in await asyncio.gather(*map(client.get_status, ids)):
            yield status.task_id, status.status, status.result
        cursor = page.next_cursor
        if cursor is None:
            return


async def read(folder: Path) -> tuple[Books, list[str]]:
    """Every task in a stopped broker's storage, and what its audit says."""
    storage = open_storage(folder)
    await storage.open()
    try:
        books: Books = {}
        before = None
        while page := await storage.find(TaskQuery(limit=PAGE, before_seq=before)):
            for task in page:
                detail, payload = await storage.get(task.id), await storage.payload(task.id)
                assert detail is not None, f"{task.id} is listed and not there"
                assert payload is not None, f"{task.id} has no payload"
                books[task.id] = Kept(detail, payload)
            before = page[-1].seq
        return books, await storage.audit()
    finally:
        await storage.close()


def differences(told: Told, books: Books) -> list[str]:
    """Where the counters or the doors say otherwise than the rows."""
    rows = Counter(kept.detail.task.status for kept in books.values())
    found = [
        f"the lists count {told.totals[status]} {status} tasks, the rows {rows[status]}"
        for status in Status
        if told.totals[status] != rows[status]
    ]
    ids = Counter(task_id for task_id, _, _ in told.tasks)
    found += [
        f"{task_id} is listed {number} times" for task_id, number in ids.items() if number > 1
    ]
    found += [f"{task_id} is in one of list and rows only" for task_id in ids.keys() ^ books.keys()]
    for task_id, status, result in told.tasks:
        kept = books.get(task_id)
        if kept and (kept.detail.task.status, kept.detail.result) != (status, result):
            found.append(f"{task_id} is told otherwise than it is kept")
    return found
