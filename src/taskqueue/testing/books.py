"""A queue's tasks in memory. It decides nothing: `core.batch` and `core.lifecycle` do."""

import zlib
from collections.abc import Collection

from taskqueue.client.task import Task as Submission
from taskqueue.core.batch import Batch, WorkingSet
from taskqueue.core.clock import SECOND, ManualClock, microseconds
from taskqueue.core.commands import Submit, TaskCommand
from taskqueue.core.errors import TaskNotFound
from taskqueue.core.ids import canonical_task_id, new_task_id
from taskqueue.core.repeats import Kept, Repeat
from taskqueue.core.task import CLAIMABLE, ClaimedTask, Failure, Status, Task, TaskDetail

KEY_KEPT = 86_400 * SECOND
"""How long a broker knows an idempotency key unless its settings say otherwise."""


class Books:
    """All tasks of a queue, at the time that `clock` shows."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.tasks: dict[str, Task] = {}
        self._waiting: dict[str, Task] = {}
        self._payloads: dict[int, bytes] = {}
        self._results: dict[int, bytes] = {}
        self._failures: dict[int, list[Failure]] = {}
        self._kept: dict[str, Kept] = {}

    def submit(self, asked: Submission) -> Task:
        """Take a task in; a repeat gets the first one. Raises IdempotencyConflict."""
        now = self.clock.wall()
        task_id = canonical_task_id(asked.task_id or "") or new_task_id()
        task = Task(
            seq=0,
            id=task_id,
            task_type=asked.task_type,
            priority=asked.priority,
            status=Status.PENDING,
            run_at=_run_at(asked, now),
            timeout=asked.timeout * SECOND,
            max_retries=asked.max_retries,
            payload_crc=zlib.crc32(asked.payload),
            created_at=now,
            updated_at=now,
        )
        repeat = None
        if asked.idempotency_key is not None:
            chosen = None if asked.task_id is None else task_id
            repeat = Repeat(asked.idempotency_key, now + KEY_KEPT, chosen)
        work = self._working_set(task_id)
        taken = work.submit(Submit(task, asked.payload, repeat))
        self._write(work)
        return taken

    def settle(self, command: TaskCommand) -> Task:
        """Carry out a command about one task. Raises what `lifecycle.settle` raises."""
        work = self._working_set(command.task_id)
        after = work.settle(command)
        self._write(work)
        return after

    def claim(self, task_types: Collection[str], worker_id: str) -> ClaimedTask | None:
        """Hand out the task whose turn it is, if one is due."""
        now = self.clock.wall()
        due = (task for task in self._waiting_for(task_types) if task.run_at <= now)
        first = min(due, key=lambda task: (-task.priority, task.run_at, task.seq), default=None)
        if first is None:
            return None
        work = self._working_set(first.id)
        after = work.claim(first, worker_id)
        self._write(work)
        return ClaimedTask(after, self._payloads[after.seq])

    def next_due(self, task_types: Collection[str]) -> int | None:
        """When the next task is due that waits for its time or its turn."""
        return min((task.run_at for task in self._waiting_for(task_types)), default=None)

    def detail(self, task_id: str) -> TaskDetail:
        """How a task stands, its result and its failures. Raises TaskNotFound."""
        task = self._known(task_id)
        return TaskDetail(task, self._results.get(task.seq), list(self._failures.get(task.seq, ())))

    def payload(self, task_id: str) -> bytes:
        """What a task was submitted with. Raises TaskNotFound."""
        return self._payloads[self._known(task_id).seq]

    def _known(self, task_id: str) -> Task:
        task = self.tasks.get(task_id.lower())
        if task is None:
            raise TaskNotFound("Task not found")
        return task

    def _waiting_for(self, task_types: Collection[str]) -> list[Task]:
        return [task for task in self._waiting.values() if task.task_type in task_types]

    def _working_set(self, task_id: str) -> WorkingSet:
        now = self.clock.wall()
        self._kept = {key: kept for key, kept in self._kept.items() if kept.until > now}
        known = self.tasks.get(task_id)
        return WorkingSet(
            Batch([], now, self.clock.steady()),
            [] if known is None else [known],
            len(self.tasks) + 1,
            self._kept.values(),
        )

    def _write(self, work: WorkingSet) -> None:
        changes = work.take_changes()
        for task in (*changes.inserted, *changes.updated):
            self.tasks[task.id] = task
            if task.status in CLAIMABLE:
                self._waiting[task.id] = task
            else:
                self._waiting.pop(task.id, None)
        self._payloads.update(changes.payloads)
        self._results.update(changes.results)
        for seq, failure in changes.failures:
            self._failures.setdefault(seq, []).append(failure)
        self._kept.update((kept.name, kept) for kept in changes.kept)


def _run_at(asked: Submission, now: int) -> int:
    if asked.delay is not None:
        return now + round(asked.delay * SECOND)
    if asked.schedule_at is None:
        return now
    return max(now, microseconds(asked.schedule_at))
