"""A queue's tasks in memory. It decides nothing: `core.batch` and `core.lifecycle` do."""

from collections.abc import Collection

from taskqueue.client.task import Task as Submission
from taskqueue.core import repeats
from taskqueue.core.batch import Batch, WorkingSet
from taskqueue.core.clock import SECOND, ManualClock
from taskqueue.core.commands import Expire, TaskCommand
from taskqueue.core.errors import TaskNotFound
from taskqueue.core.lifecycle import has_expired
from taskqueue.core.repeats import Kept
from taskqueue.core.task import CLAIMABLE, ClaimedTask, Failure, LogLine, Task, TaskDetail
from taskqueue.wire.submission import submission

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
        self._kept: dict[tuple[str, str], Kept] = {}
        self._logs: dict[int, list[LogLine]] = {}
        self._checkpoints: dict[int, bytes] = {}
        self._next_seq = 1

    def submit(self, asked: Submission) -> Task:
        """Take a task in; a repeat gets the first one.

        Raises InvalidRequest, PayloadTooLarge, IdempotencyConflict.
        """
        command = submission(asked.request(), self.clock.wall(), KEY_KEPT)
        work = self._working_set(command.task.id)
        taken = work.submit(command)
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
        for task in self._waiting_for(task_types):
            if has_expired(task, now):
                self.settle(Expire(task.id))
        due = (task for task in self._waiting_for(task_types) if task.run_at <= now)
        first = min(due, key=lambda task: (-task.priority, task.run_at, task.seq), default=None)
        if first is None:
            return None
        work = self._working_set(first.id)
        after = work.claim(first, worker_id)
        self._write(work)
        return ClaimedTask(after, self._payloads[after.seq], self._checkpoints.get(after.seq))

    def next_due(self, task_types: Collection[str]) -> int | None:
        """When the next task is due that waits for its time or its turn."""
        return min((task.run_at for task in self._waiting_for(task_types)), default=None)

    def detail(self, task_id: str) -> TaskDetail:
        """How a task stands, its result and its failures. Raises TaskNotFound."""
        task = self._known(task_id)
        return TaskDetail(task, self._results.get(task.seq), list(self._failures.get(task.seq, ())))

    def logs(self, task_id: str) -> list[LogLine]:
        """The lines that its attempts have logged. Raises TaskNotFound."""
        return list(self._logs.get(self._known(task_id).seq, ()))

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
        self._kept = {
            key: kept
            for key, kept in self._kept.items()
            if kept.until > now or kept.scope == repeats.UNIQUE
        }
        holders = [
            repeats.holder_of(kept).task_id
            for kept in self._kept.values()
            if kept.scope == repeats.UNIQUE
        ]
        known = {self.tasks[one] for one in (task_id, *holders) if one in self.tasks}
        batch = Batch([], now, self.clock.steady())
        return WorkingSet(batch, known, self._next_seq, self._kept.values())

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
        for seq, line in changes.logs:
            self._logs.setdefault(seq, []).append(line)
        self._checkpoints.update(changes.checkpoints)
        self._kept.update(((kept.scope, kept.name), kept) for kept in changes.kept)
        self._next_seq = work.next_seq
        for task in changes.deleted:
            del self.tasks[task.id]
