"""The claims of one transaction: which ready tasks go to whom, within bounds."""

import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Final

from taskqueue.core import lifecycle
from taskqueue.core.batch import WorkingSet
from taskqueue.core.commands import Claim, Outcome
from taskqueue.core.errors import DataDamaged, TaskQueueError
from taskqueue.core.task import CLAIMABLE, ClaimedTask, Task
from taskqueue.storage.tables import Tables

LARGEST_CLAIM_BYTES: Final = 16 * 1024 * 1024
LARGEST_BATCH_BYTES: Final = 128 * 1024 * 1024
MOST_CLAIMED: Final = 4_096
"""Tasks handed out in one transaction: some 50 ms of work, so that nobody waits long."""

Claimant = tuple[int, Claim]
"""A claim and its place in the batch."""


class Claiming:
    """Serves the claims of a batch. `withheld` counts by type what they were denied for its bounds.

    `promoted` are the types of tasks that the batch made claimable, by number; those that are
    handed out or set aside are taken out of it.
    """

    def __init__(
        self,
        tables: Tables,
        work: WorkingSet,
        wall: int,
        outcomes: list[Outcome | TaskQueueError],
        promoted: dict[int, str],
    ) -> None:
        self.withheld: Counter[str] = Counter()
        self._tables = tables
        self._work = work
        self._wall = wall
        self._outcomes = outcomes
        self._promoted = promoted
        self._tasks_left = MOST_CLAIMED
        self._bytes_left = LARGEST_BATCH_BYTES

    async def serve(self, claimants: list[Claimant]) -> None:
        """Give each claim its tasks, in `outcomes`."""
        for alike in _runs_of_same_types(await self._serve_again(claimants)):
            await self._serve(alike)

    async def _serve_again(self, claimants: list[Claimant]) -> list[Claimant]:
        """Give repeated claims what they were given before; return the others."""
        others: list[Claimant] = []
        for place, claim in claimants:
            held = self._work.still_held(claim) if claim.repeat is not None else []
            if held:
                # The sizes are not known here; a part at a time keeps the memory bounded.
                payloads = await self._payloads([(task, LARGEST_CLAIM_BYTES) for task in held])
                checkpoints = await self._checkpoints(held)
                self._outcomes[place] = [
                    ClaimedTask(task, payloads[task.seq], checkpoints.get(task.seq))
                    for task in held
                ]
            else:
                others.append((place, claim))
        return others

    async def _serve(self, claimants: list[Claimant]) -> None:
        """Deal ready tasks out to claims on the same types, first come, first served."""
        try:
            parts, payloads = await self._choose(claimants)
            checkpoints = await self._checkpoints([task for part in parts for task in part])
        except DataDamaged as error:
            for place, _ in claimants:
                self._outcomes[place] = error
            return
        for (place, claim), part in zip(claimants, parts, strict=True):
            claimed: list[ClaimedTask] = []
            for task in part:
                payload = payloads[task.seq]
                self._promoted.pop(task.seq, None)
                self._bytes_left -= len(payload)
                held = self._work.claim(task, claim.worker_id)
                claimed.append(ClaimedTask(held, payload, checkpoints.get(task.seq)))
            self._tasks_left -= len(claimed)
            self._outcomes[place] = claimed
            self._work.keep_claim(claim, [one.task for one in claimed])
        await self._tables.write(self._work.take_changes(), self._wall)

    async def _choose(self, claimants: list[Claimant]) -> tuple[list[list[Task]], dict[int, bytes]]:
        """Each claim's tasks, and their payloads; what is no longer to run is set aside."""
        while True:
            picked = await self._pick(claimants)
            parts = self._deal(claimants, picked)
            number = sum(map(len, parts))
            payloads = await self._payloads(picked[:number])
            if not await self._set_aside([task for task, _ in picked[:number]], payloads):
                if number < len(picked):
                    self._note_withheld(picked[number][0].task_type, claimants, parts)
                return parts, payloads

    async def _set_aside(self, tasks: list[Task], payloads: dict[int, bytes]) -> bool:
        """Take out of the queue what is damaged or has expired; whether there was any."""
        wall = self._wall
        expired = [task for task in tasks if lifecycle.has_expired(task, wall)]
        damaged = [
            task
            for task in tasks
            if zlib.crc32(payloads[task.seq]) != task.payload_crc
            and not lifecycle.has_expired(task, wall)
        ]
        for task in damaged:
            self._work.bury_damaged(task)
        for task in expired:
            self._work.expire(task)
        for task in (*damaged, *expired):
            self._promoted.pop(task.seq, None)
        if damaged or expired:
            await self._tables.write(self._work.take_changes(), self._wall)
        # Each one costs as much as a claim: the rest is left to later transactions.
        self._tasks_left -= len(damaged) + len(expired)
        return bool(damaged or expired)

    async def _pick(self, claimants: list[Claimant]) -> list[tuple[Task, int]]:
        types = set(claimants[0][1].task_types)
        limit = sum(claim.limit for _, claim in claimants)
        # One more than may be handed out tells whether there is more.
        picked = await self._tables.pick(sorted(types), min(limit, self._tasks_left + 1))
        if any(task.task_type not in types or task.status not in CLAIMABLE for task, _ in picked):
            raise DataDamaged("the index of ready tasks leads to one that may not be claimed")
        return picked

    def _deal(self, claimants: list[Claimant], picked: list[tuple[Task, int]]) -> list[list[Task]]:
        """Who gets which task: in order, within each claim's number and the limits of a batch."""
        bytes_left = self._bytes_left
        following = iter(picked[: self._tasks_left])
        upcoming = next(following, None)
        parts: list[list[Task]] = []
        for _, claim in claimants:
            part: list[Task] = []
            size = 0
            while upcoming is not None and len(part) < claim.limit:
                task, weight = upcoming
                is_too_heavy = part and size + weight > LARGEST_CLAIM_BYTES
                if is_too_heavy or weight > bytes_left:
                    break
                part.append(task)
                size += weight
                bytes_left -= weight
                upcoming = next(following, None)
            parts.append(part)
        return parts

    def _note_withheld(
        self, task_type: str, claimants: list[Claimant], parts: list[list[Task]]
    ) -> None:
        # A claim that goes empty-handed for the limits' sake must be woken for what is left.
        for (_, claim), part in zip(claimants, parts, strict=True):
            if not part:
                self.withheld[task_type] += claim.limit

    async def _payloads(self, picked: list[tuple[Task, int]]) -> dict[int, bytes]:
        """The bytes of tasks by their seq; where they are lost, none."""
        payloads = {task.seq: b"" for task, _ in picked}
        for seqs in _cut_by_weight(picked):
            payloads.update(await self._tables.payloads(seqs))
        return payloads

    async def _checkpoints(self, tasks: list[Task]) -> dict[int, bytes]:
        """What earlier attempts have kept; a task that was never claimed has none."""
        seqs = [task.seq for task in tasks if task.token]
        return await self._tables.checkpoints(seqs) if seqs else {}


def _runs_of_same_types(claimants: list[Claimant]) -> list[list[Claimant]]:
    runs: list[list[Claimant]] = []
    for claimant in claimants:
        if runs and set(runs[-1][0][1].task_types) == set(claimant[1].task_types):
            runs[-1].append(claimant)
        else:
            runs.append([claimant])
    return runs


def _cut_by_weight(picked: list[tuple[Task, int]]) -> Iterator[list[int]]:
    # In parts, since the joined bytes of a part are in memory several times over.
    part: list[int] = []
    size = 0
    for task, weight in picked:
        if part and size + weight > LARGEST_CLAIM_BYTES:
            yield part
            part, size = [], 0
        part.append(task.seq)
        size += weight
    if part:
        yield part
