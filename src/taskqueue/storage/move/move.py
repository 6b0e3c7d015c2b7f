"""The move itself: copy while a broker runs, copy the rest once it has stopped, check, switch.

Every step compares and brings what differs, so each may be cut short and repeated. Until the end
the folder is what counts: the database refuses brokers. At the end the folder is noted as moved
before the database is opened, so that at no moment brokers would start on both.
"""

import asyncio
import time
from pathlib import Path
from typing import Final
from uuid import uuid4

from msgspec import Struct

from taskqueue.core.errors import StorageRefused
from taskqueue.storage.move.check import Report, compared
from taskqueue.storage.move.destination import Destination
from taskqueue.storage.move.rows import PART_COLUMNS, SIDE_TABLES, Row
from taskqueue.storage.move.source import Source
from taskqueue.storage.postgres.connections import Database
from taskqueue.storage.sqlite.moved import Note

LOOK_SECONDS: Final = 0.2
AGAIN_SECONDS: Final = 10.0
AGAIN_SHARE: Final = 5
"""While a broker runs on, what it changed is copied after this time, or this many times what the
copy before took, whichever is longer."""

Lines = list[tuple[str, int, str]]


class Outcome(Struct, frozen=True):
    """How far a move came: what was checked, if it is finished; else a broker uses the folder."""

    is_finished: bool
    lines: Lines


async def plan(folder: Path, database: Database) -> Outcome:
    """What would be moved; nothing is changed. Raises StorageRefused where it could not be."""
    source = Source(folder)
    try:
        async with Destination.at(database) as destination:
            is_finished = await destination.look(source.note)
        with source.look():
            return Outcome(
                is_finished,
                [
                    ("tasks", source.size("tasks"), ""),
                    *((f"status {name}", number, "") for name, number in source.statuses()),
                    *((table, source.size(table), "") for table in (*PART_COLUMNS, *SIDE_TABLES)),
                ],
            )
    finally:
        source.close()


async def move_tasks(folder: Path, database: Database, patience: float, report: Report) -> Outcome:
    """Move everything in a data folder to a database, and switch.

    A broker that uses the folder is waited for, for `patience` seconds. Raises StorageRefused
    where either side must not be used, or the check finds a difference.
    """
    source = Source(folder)
    try:
        async with Destination.at(database) as destination:
            return await _Move(source, destination, report).run(patience)
    finally:
        source.close()


class _Move:
    def __init__(self, source: Source, destination: Destination, report: Report) -> None:
        self._source = source
        self._destination = destination
        self._report = report

    async def run(self, patience: float) -> Outcome:
        source, destination = self._source, self._destination
        is_mine = source.take()
        if source.note is None:
            source.leave_note(Note(str(uuid4())))
        if await destination.begin(self._note, str(source.folder)):
            self._leave_finished()
            return Outcome(is_finished=True, lines=[])
        if not is_mine and not await self._outlast(patience):
            return Outcome(is_finished=False, lines=[])
        await destination.require_mine(self._note)
        await self._copy_tasks()
        with source.look():
            await destination.replace_sides(
                ((table, source.side(table)) for table in SIDE_TABLES),
                source.last_audit_number(),
            )
        await destination.analyze()
        sums = await compared(source, destination, self._report)
        await destination.settle()
        self._leave_finished()
        await destination.finish()
        return Outcome(is_finished=True, lines=sums.lines())

    @property
    def _note(self) -> Note:
        note = self._source.note
        if note is None:
            raise StorageRefused(
                f"the note of this move in {self._source.folder} was deleted meanwhile; "
                "run the command again"
            )
        return note

    def _leave_finished(self) -> None:
        self._source.leave_note(
            Note(self._note.id, str(self._destination.database), self._destination.id)
        )

    async def _outlast(self, patience: float) -> bool:
        """Copy while a broker runs, again and again; whether it has stopped."""
        ends_at: float | None = None
        while True:
            begun = time.monotonic()
            await self._copy_tasks()
            now = time.monotonic()
            if ends_at is None:
                ends_at = now + patience
                if patience > 0:
                    self._report("waiting", round(patience))
            pause = max(AGAIN_SECONDS, AGAIN_SHARE * (now - begun))
            if await self._stops_within(min(pause, ends_at - now)):
                return True
            if time.monotonic() >= ends_at:
                return False

    async def _stops_within(self, seconds: float) -> bool:
        ends_at = time.monotonic() + seconds
        while not self._source.take():
            if time.monotonic() >= ends_at:
                return False
            await asyncio.sleep(LOOK_SECONDS)
        return True

    async def _copy_tasks(self) -> None:
        await self._destination.new_day()
        after, low, number = 0, -1, 0
        with self._source.look():
            self._report("counted", self._source.size("tasks"))
        while True:
            with self._source.look():
                tasks, weights = self._source.tasks(after)
                if not tasks:
                    break
                placed = self._destination.place(tasks)
                places, stale = await self._differing(tasks, placed, low)
                whole = self._source.whole([task for task in tasks if task[0] in places])
            if places:
                await self._destination.write(
                    stale,
                    whole.renumbered(places),
                    {place: weights[seq] for seq, place in places.items()},
                )
            after, low = tasks[-1][0], placed[-1][0]
            number += len(tasks)
            self._report("copied", number)
        await self._destination.delete_beyond(low)

    async def _differing(
        self, tasks: list[Row], placed: list[Row], low: int
    ) -> tuple[dict[int, int], list[int]]:
        """Which of these tasks the database has not, or not so: old number and place of each.

        Also the places where it has something else. What is in no place of theirs is deleted.
        """
        wanted = {task[0]: task for task in placed}
        same: set[int] = set()
        stale: list[int] = []
        async for page in self._destination.tasks(low, placed[-1][0]):
            there = {task[0] for task in page if task[0] in wanted}
            if len(there) < len(page):
                await self._destination.delete([task[0] for task in page if task[0] not in wanted])
            equal = {task[0] for task in page if wanted.get(task[0]) == task}
            same |= equal
            stale += there - equal
        missing = zip(tasks, placed, strict=True)
        return {old[0]: new[0] for old, new in missing if new[0] not in same}, stale
