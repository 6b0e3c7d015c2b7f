"""Whether the database has what the data folder has, each read for itself, to the last byte."""

from collections.abc import Callable
from typing import Final

from taskqueue.core.errors import StorageRefused
from taskqueue.storage.move.destination import Destination
from taskqueue.storage.move.rows import SIDE_TABLES, TASK_ID, Sums, Whole, digest
from taskqueue.storage.move.source import Source

Report = Callable[[str, int], None]
"""Called with what is being done and how many tasks it was done to."""

MOST_TOLD: Final = 5
LAST: Final = 2**63 - 1


async def compared(source: Source, destination: Destination, report: Report) -> Sums:
    """What both hold. Raises StorageRefused at the first difference, or for damage in either."""
    here, there = Sums(), Sums()
    with source.look():
        await _compare_tasks(source, destination, (here, there), report)
        for table in SIDE_TABLES:
            here.sides[table].add(digest(row) for row in source.side(table))
            async for row in destination.side(table):
                there.sides[table].add([digest(row)])
    _require_same_sums(here, there, destination)
    for place, complaints in (
        (str(source.folder), source.audit()),
        (str(destination.database), await destination.audit()),
    ):
        if complaints:
            raise StorageRefused(
                f"{place} contradicts itself: {'; '.join(complaints[:MOST_TOLD])}"
                f"{' …' * (len(complaints) > MOST_TOLD)}. Nothing was switched; the data folder "
                "is as it was"
            )
    return there


async def _compare_tasks(
    source: Source, destination: Destination, sums: tuple[Sums, Sums], report: Report
) -> None:
    after, low = 0, -1
    while True:
        tasks, _ = source.tasks(after)
        high = destination.place(tasks[-1:])[0][0] if tasks else LAST
        both = source.whole(tasks), await destination.whole(low, high)
        ours, theirs = (whole.digests() for whole in both)
        if list(ours.items()) != list(theirs.items()):
            raise _different(both, ours, theirs, destination)
        for sum_of, whole, digests in zip(sums, both, (ours, theirs), strict=True):
            sum_of.add(whole, digests)
        if not tasks:
            return
        after, low = tasks[-1][0], high
        report("checked", sums[0].tasks.number)


def _different(
    both: tuple[Whole, Whole],
    ours: dict[int, bytes],
    theirs: dict[int, bytes],
    destination: Destination,
) -> StorageRefused:
    names = {task[0]: task[TASK_ID] for whole in both for task in whole.tasks}
    seqs = [seq for seq in sorted({*ours, *theirs}) if ours.get(seq) != theirs.get(seq)]
    which = ", ".join(names.get(seq, f"number {seq}") for seq in seqs[:MOST_TOLD])
    return _refusal(f"not the same on both sides: task {which or 'order'}", destination)


def _require_same_sums(here: Sums, there: Sums, destination: Destination) -> None:
    different = [
        f"{what} ({number}, {checksum})"
        for what, number, checksum in set(here.lines()) ^ set(there.lines())
    ]
    if different:
        raise _refusal(f"not the same on both sides: {', '.join(different)}", destination)


def _refusal(complaint: str, destination: Destination) -> StorageRefused:
    return StorageRefused(
        f"{complaint}. Nothing was switched; the data folder is as it was. Empty "
        f"{destination.database} with DROP SCHEMA taskqueue CASCADE and move again"
    )
