"""The queue once more, as a dict: the oracle that engines are compared with.

It shares the words of the product (tasks, commands, errors), and none of its rules: those are
written again here, in the plainest form. Nothing is fast, nothing is durable.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from taskqueue.core.audit import AuditEntry
from taskqueue.core.batch import Applied, Batch, CounterKey, Minute
from taskqueue.core.commands import (
    AttemptNote,
    Audited,
    Cancel,
    Change,
    Checkpoint,
    Claim,
    Command,
    Complete,
    CreateKey,
    Delete,
    Expire,
    Extend,
    KeyCommand,
    Log,
    NoteKeyUse,
    Outcome,
    Progress,
    Promote,
    Purge,
    Release,
    Retry,
    RevokeKey,
    RotateKey,
    Submit,
    TakeBack,
)
from taskqueue.core.errors import (
    IdempotencyConflict,
    InvalidRequest,
    InvalidStatus,
    KeyExists,
    KeyNotFound,
    LeaseLost,
    TaskNotFound,
    TaskQueueError,
)
from taskqueue.core.keys import Key, Permission
from taskqueue.core.repeats import LOOK_AGAIN, Repeat, While
from taskqueue.core.task import (
    ClaimedTask,
    Event,
    Failure,
    LogLine,
    Options,
    Status,
    Task,
    TaskDetail,
    Tier,
)
from taskqueue.storage.cluster import Alone, Cluster
from taskqueue.storage.port import Count, Storage, TaskQuery, Totals

WAITING = (Status.PENDING, Status.FAILED)
OVER = (Status.COMPLETED, Status.CANCELLED)
MINUTE = 60_000_000
ENDINGS = {"Complete": Event.COMPLETE, "Fail": Event.FAIL, "Release": Event.RELEASE}


class ModelStorage(Storage):
    """A storage that forgets everything when it is dropped."""

    def __init__(self) -> None:
        self.cluster: Cluster = Alone()
        self.tasks: dict[str, Task] = {}
        self.payloads: dict[str, bytes] = {}
        self.results: dict[str, bytes] = {}
        self.failures: dict[str, list[Failure]] = {}
        self.claimable: set[str] = set()
        self.entered: Counter[CounterKey] = Counter()
        self.minutes: dict[int, Minute] = {}
        self.next_seq = 1
        self.known_keys: dict[str, Key] = {}
        self.log: list[AuditEntry] = []
        self.noted = 0
        self.first_submits: dict[str, tuple[Submit, Task]] = {}
        self.checkpoints: dict[str, bytes] = {}
        self.lines: dict[str, list[LogLine]] = {}
        self.holders_of_keys: dict[str, Task] = {}
        self.keys_until: dict[str, int] = {}
        self.latest_claims: dict[str, tuple[Repeat, dict[str, int]]] = {}

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def apply(self, batch: Batch) -> Applied:
        self.now, self.steady = batch.wall, batch.steady
        self.moved: list[Task] = []
        self.promoted: set[str] = set()
        keys = {one.unique.key for one in batch.commands if isinstance(one, Submit) and one.unique}
        self.looked_at = {
            self.holders_of_keys[key].id for key in keys & self.holders_of_keys.keys()
        }
        outcomes: list[Outcome | TaskQueueError] = [0] * len(batch.commands)
        # The order inside a transaction: words about tasks, then chores, then claims.
        self._each(
            batch, outcomes, lambda one: not isinstance(one, Promote | Purge | Claim | KeyCommand)
        )
        self._each(batch, outcomes, lambda one: isinstance(one, KeyCommand))
        self._each(batch, outcomes, lambda one: isinstance(one, Promote | Purge))
        self._each(batch, outcomes, lambda one: isinstance(one, Claim))
        changed = {task.id for task in self.moved}
        ready = Counter(
            self.tasks[one].task_type
            for one in changed | self.promoted
            if one in self.tasks and one in self.claimable
        )
        return Applied(
            outcomes,
            self.moved,
            dict(ready),
            await self._earliest_left_waiting(batch),
            sum(task.status is Status.PENDING for task in self.tasks.values()),
        )

    async def _earliest_left_waiting(self, batch: Batch) -> int | None:
        if any(isinstance(one, Promote) for one in batch.commands):
            return await self.next_due()
        touched = {self._id_of(one) for one in batch.commands} | self.looked_at
        touched &= self.tasks.keys()
        return min(
            (
                self.tasks[one].run_at
                for one in touched
                if self.tasks[one].status in WAITING and self.tasks[one].run_at > self.now
            ),
            default=None,
        )

    def _each(self, batch: Batch, outcomes: list[Outcome | TaskQueueError], wanted: Any) -> None:
        for place, command in enumerate(batch.commands):
            inner = command.command if isinstance(command, Audited) else command
            if wanted(inner):
                try:
                    outcomes[place] = self._do(inner)
                except TaskQueueError as error:
                    outcomes[place] = error
                if isinstance(command, Audited):
                    self._note(command, outcomes[place])

    def _note(self, command: Audited, outcome: Outcome | TaskQueueError) -> None:
        inner: Any = command.command
        target = inner.key.id if isinstance(inner, CreateKey) else None
        target = target or getattr(inner, "task_id", None) or inner.key_id
        code = outcome.code if isinstance(outcome, TaskQueueError) else "ok"
        who = command.actor
        self.noted += 1
        self.log.append(
            AuditEntry(
                self.noted,
                self.now,
                who.key_id,
                who.name,
                who.address,
                command.operation,
                target,
                code,
            )
        )

    def _id_of(self, command: Command) -> str:
        if isinstance(command, Audited):
            command = command.command
        if isinstance(command, Submit):
            return command.task.id
        return getattr(command, "task_id", "")

    def _do(self, command: Command) -> Outcome:
        match command:
            case Submit():
                return self._submit(command)
            case Claim():
                return self._claim(command)
            case Promote():
                return self._promote(command)
            case Purge():
                return self._purge(command)
            case _:
                return self._about_one(command)

    def _submit(self, command: Submit) -> Task:
        repeat = command.repeat
        if repeat is None:
            return self._submit_uniquely(command)
        first = self.first_submits.get(repeat.key)
        if first is None or (first[0].repeat or repeat).until <= self.now:
            task = self._submit_uniquely(command)
            self.first_submits[repeat.key] = command, task
            return task
        if not _is_same(first[1], command.task) or repeat.task_id not in (None, first[1].id):
            raise IdempotencyConflict("")
        return first[1]

    def _submit_uniquely(self, command: Submit) -> Task:
        unique = command.unique
        if unique is None:
            return self._submit_by_id(command)
        first = self.holders_of_keys.get(unique.key)
        if first is not None and first.id != command.task.id:
            holder = self.tasks.get(first.id)
            status = None if holder is None else holder.status
            is_there = {
                While.PENDING: status in WAITING,
                While.RUNNING: status in (*WAITING, Status.IN_PROGRESS),
                While.PERIOD: self.now < first.created_at + unique.period,
            }
            if is_there[unique.span] and not unique.replaces:
                return replace(command.task, id=first.id, created_at=first.created_at)
            if is_there[unique.span] and holder is not None and status in WAITING:
                self._by_operator(holder, Cancel(holder.id))
        task = self._submit_by_id(command)
        self.holders_of_keys[unique.key] = task
        span = unique.period if unique.span is While.PERIOD else LOOK_AGAIN
        self.keys_until[unique.key] = self.now + span
        return task

    def _submit_by_id(self, command: Submit) -> Task:
        asked, known = command.task, self.tasks.get(command.task.id)
        if known is not None:
            if not _is_same(known, asked):
                raise IdempotencyConflict("")
            return known
        task = replace(asked, seq=self.next_seq)
        self.next_seq += 1
        self.payloads[task.id] = command.payload
        self.failures[task.id] = []
        self.lines[task.id] = []
        return self._put(task)

    def _about_one(self, command: Any) -> Task | Key:
        if isinstance(command, KeyCommand):
            return self._about_key(command)
        task = self.tasks.get(command.task_id)
        if task is None or not task.task_type.startswith(command.scope):
            raise TaskNotFound("")
        if isinstance(command, Cancel | Retry | Change | Delete):
            return self._by_operator(task, command)
        if isinstance(command, Expire):
            return self._expired(task)
        mine = task.status is Status.IN_PROGRESS and task.token == command.token
        if isinstance(command, TakeBack):
            return self._taken_back(task, command) if mine else task
        word = ENDINGS.get(type(command).__name__)
        if word is not None and (task.token, task.last_event) == (command.token, word):
            return task
        if not mine:
            raise LeaseLost("")
        return self._said_by_holder(task, command)

    def _about_key(self, command: KeyCommand) -> Key:
        if isinstance(command, CreateKey):
            names = {key.name for key in self.known_keys.values() if self._is_live(key)}
            makes_manager = Permission.ADMIN in command.key.permissions
            if command.key.name in names:
                raise KeyExists("")
            if not (command.is_spare or makes_manager or self._managers()):
                raise InvalidRequest("")
            return self._put_key(command.key)
        key = self.known_keys.get(command.key_id)
        if key is None:
            raise KeyNotFound("")
        match command:
            case NoteKeyUse():
                return self._put_key(replace(key, used_at=max(command.at, key.used_at or 0)))
            case RotateKey():
                if not self._is_live(key):
                    raise InvalidStatus("")
                until = self.now + command.overlap
                return self._put_key(
                    replace(
                        key,
                        digest=command.digest,
                        hint=command.hint,
                        old_digest=key.digest,
                        old_until=until,
                    )
                )
            case _:
                return self._revoked(key, command)

    def _revoked(self, key: Key, command: RevokeKey) -> Key:
        if key.revoked_at is not None:
            return key
        if not command.is_spare and self._managers() == {key.id}:
            raise InvalidStatus("")
        return self._put_key(replace(key, revoked_at=self.now))

    def _put_key(self, key: Key) -> Key:
        self.known_keys[key.id] = key
        return key

    def _is_live(self, key: Key) -> bool:
        return key.revoked_at is None and (key.expires_at is None or self.now < key.expires_at)

    def _managers(self) -> set[str]:
        live = [key for key in self.known_keys.values() if self._is_live(key)]
        return {key.id for key in live if Permission.ADMIN in key.permissions}

    def _expired(self, task: Task) -> Task:
        if task.status not in WAITING or task.expires_at is None or task.expires_at > self.now:
            return task
        text = "it was not started before its expiry"
        self.failures[task.id].append(Failure(task.token, self.now, None, "Expired", text))
        return self._put(self._changed(task, Event.EXPIRE, status=Status.CANCELLED))

    def _deleted(self, task: Task) -> Task:
        if task.status not in (*OVER, Status.DEAD_LETTER):
            raise InvalidStatus("")
        self._forget(task)
        return task

    def _altered(self, task: Task, command: Change) -> Task:
        if task.status not in WAITING:
            raise InvalidStatus("")
        fields = {"priority": command.priority, "run_at": command.run_at}
        wanted = {name: value for name, value in fields.items() if value is not None}
        return self._put(self._changed(task, Event.CHANGE, **wanted))

    def _by_operator(self, task: Task, command: Cancel | Retry | Change | Delete) -> Task:
        if isinstance(command, Delete):
            return self._deleted(task)
        if isinstance(command, Change):
            return self._altered(task, command)
        if isinstance(command, Cancel):
            if task.status in WAITING:
                return self._put(self._changed(task, Event.CANCEL, status=Status.CANCELLED))
            if task.status is not Status.IN_PROGRESS or not command.running:
                raise InvalidStatus("")
            return self._put(
                self._changed(task, Event.STOP, status=Status.CANCELLED, deadline=None)
            )
        if task.status not in (Status.DEAD_LETTER, Status.CANCELLED):
            raise InvalidStatus("")
        fresh = {"retry_count": 0, "losses": 0, "run_at": self.now, "worker_id": None}
        return self._put(self._changed(task, Event.RETRY, status=Status.PENDING, **fresh))

    def _said_by_holder(self, task: Task, command: Any) -> Task:
        if isinstance(command, AttemptNote):
            return self._noted_by_holder(task, command)
        return self._ended(task, command)

    def _noted_by_holder(self, task: Task, command: AttemptNote) -> Task:
        match command:
            case Progress():
                return self._noted(task, progress=command.fraction, progress_note=command.note)
            case Log():
                if task.logged < 1_000:
                    self.lines[task.id].append(
                        LogLine(task.token, self.now, command.level, command.message)
                    )
                return self._noted(task, logged=min(1_000, task.logged + 1))
            case Checkpoint():
                self.checkpoints[task.id] = command.data
                return self._noted(task)
            case Extend():
                return self._noted(task, deadline=self.steady + command.time)

    def _ended(self, task: Task, command: Any) -> Task:
        match command:
            case Complete():
                self.results[task.id] = command.result
                return self._put(
                    self._changed(task, Event.COMPLETE, status=Status.COMPLETED, deadline=None)
                )
            case Release():
                return self._put(
                    self._changed(
                        task,
                        Event.RELEASE,
                        status=Status.PENDING,
                        run_at=self.now + command.delay
                        if command.delay
                        else min(task.run_at, self.now),
                        deadline=None,
                        worker_id=None,
                    )
                )
            case _:
                delay = command.delay
                if delay is None:
                    delay = self._usual_delay(task, command.spread)
                message, is_poison = command.message, False
                if command.process_died:
                    task, message, is_poison = self._one_loss_more(task, command)
                failure = Failure(
                    task.token,
                    self.now,
                    task.worker_id,
                    command.kind,
                    message,
                    command.traceback,
                )
                retryable = command.retryable and not is_poison
                return self._failed(task, Event.FAIL, failure, delay, retryable)

    def _noted(self, task: Task, **fields: Any) -> Task:
        after = replace(task, updated_at=max(task.updated_at, self.now), **fields)
        self.tasks[task.id] = after
        return after

    def _taken_back(self, task: Task, command: TakeBack) -> Task:
        lost = command.why is Event.LOSE
        kind = "WorkerLost" if lost else "TimedOut"
        delay = 0 if lost else self._usual_delay(task, command.spread)
        message, is_poison = command.message, False
        if lost:
            task, message, is_poison = self._one_loss_more(task, command)
        failure = Failure(task.token, self.now, task.worker_id, kind, message)
        return self._failed(task, command.why, failure, delay, not is_poison)

    def _one_loss_more(self, task: Task, command: Any) -> tuple[Task, str, bool]:
        losses = task.losses + 1
        message, is_poison = command.message, losses >= command.most_losses
        if is_poison:
            message += f"; it has cost {losses} workers or processes, and is tried no more"
        return replace(task, losses=losses), message, is_poison

    def _usual_delay(self, task: Task, spread: float) -> int:
        policy = (task.options or Options()).retry
        if policy is None:
            seconds: int = min(3600, 5 * 2**task.retry_count)
            return round(seconds * 1_000_000 * (1 + spread * 0.1))
        delay = min(policy.longest, policy.first * policy.factor**task.retry_count)
        return round(delay * (1 + spread * policy.jitter))

    def _failed(
        self, task: Task, event: Event, failure: Failure, delay: int, retryable: bool
    ) -> Task:
        self.failures[task.id].append(failure)
        if retryable and task.retry_count < task.max_retries:
            after = self._changed(
                task,
                event,
                status=Status.FAILED,
                retry_count=task.retry_count + 1,
                run_at=self.now + delay,
                deadline=None,
            )
        else:
            after = self._changed(task, event, status=Status.DEAD_LETTER, deadline=None)
        return self._put(after)

    def _claim(self, command: Claim) -> list[ClaimedTask]:
        repeat = command.repeat
        latest = self.latest_claims.get(command.worker_id)
        if repeat is not None and latest is not None and latest[0].key == repeat.key:
            held = [
                ClaimedTask(task, self.payloads[task_id], self.checkpoints.get(task_id))
                for task_id, token in latest[1].items()
                if latest[0].until > self.now
                and (task := self.tasks.get(task_id)) is not None
                and (task.status, task.token) == (Status.IN_PROGRESS, token)
                and task.task_type in command.task_types
            ]
            if held:
                return held
        claimed = self._claim_anew(command)
        if repeat is not None and claimed:
            tokens = {one.task.id: one.task.token for one in claimed}
            self.latest_claims[command.worker_id] = repeat, tokens
        return claimed

    def _claim_anew(self, command: Claim) -> list[ClaimedTask]:
        wanted = [
            task
            for task in self.tasks.values()
            if task.id in self.claimable and task.task_type in command.task_types
        ]
        wanted.sort(key=lambda task: (-task.priority, task.run_at, task.seq))
        claimed: list[ClaimedTask] = []
        for task in wanted:
            if len(claimed) == command.limit:
                break
            if self._expired(task) is not task:
                continue
            after = self._changed(
                task,
                Event.CLAIM,
                status=Status.IN_PROGRESS,
                token=task.token + 1,
                worker_id=command.worker_id,
                claimed_at=self.steady,
                deadline=self.steady + task.timeout,
                progress=None,
                progress_note="",
            )
            checkpoint = self.checkpoints.get(task.id)
            claimed.append(ClaimedTask(self._put(after), self.payloads[task.id], checkpoint))
        return claimed

    def _promote(self, command: Promote) -> int:
        waiting = [
            task
            for task in self.tasks.values()
            if task.status in WAITING and task.id not in self.claimable
        ]
        due = sorted((task for task in waiting if task.run_at <= self.now), key=_by_run_at)
        chosen = {task.id for task in due[: command.limit]}
        self.claimable |= chosen
        self.promoted |= chosen
        return len(chosen)

    def _purge(self, command: Purge) -> int:
        old = [
            task
            for task in self.tasks.values()
            if task.status in OVER and task.updated_at < command.before
        ]
        old.sort(key=lambda task: (task.updated_at, task.seq))
        for task in old[: command.limit]:
            self._forget(task)
        expired = [
            task
            for task in self.tasks.values()
            if task.status in OVER and task.expires_at is not None and task.expires_at < self.now
        ]
        expired.sort(key=lambda task: (task.expires_at, task.seq))
        for task in expired[: command.limit]:
            self._forget(task)
        before = len(self.log)
        self.log = [entry for entry in self.log if entry.at >= command.audit_before]
        numbers = (len(old), len(expired), before - len(self.log), self._forget_keys(command.limit))
        return max(min(number, command.limit) for number in numbers)

    def _forget_keys(self, limit: int) -> int:
        over = [key for key, until in self.keys_until.items() if until <= self.now]
        over.sort(key=lambda key: (self.keys_until[key], key))
        living = [
            key
            for key in over
            if (task := self.tasks.get(self.holders_of_keys[key].id)) is not None
            and task.status in (*WAITING, Status.IN_PROGRESS)
        ]
        for key in living[:limit]:
            self.keys_until[key] = self.now + LOOK_AGAIN
        dead = [key for key in over if key not in living][:limit]
        for key in dead:
            del self.keys_until[key], self.holders_of_keys[key]
        return len(dead)

    def _forget(self, task: Task) -> None:
        stores = (self.payloads, self.results, self.failures, self.checkpoints, self.lines)
        for store in (self.tasks, *stores):
            store.pop(task.id, None)
        self.claimable.discard(task.id)

    def _changed(self, task: Task, event: Event, **fields: Any) -> Task:
        updated = max(task.updated_at, self.now)
        if fields.get("status") in OVER:
            retention = (task.options or Options()).retention
            fields["expires_at"] = None if retention is None else self.now + retention
        elif event is Event.RETRY:
            fields["expires_at"] = None
        return replace(task, last_event=event, updated_at=updated, **fields)

    def _put(self, task: Task) -> Task:
        self.tasks[task.id] = task
        self.moved.append(task)
        self.entered[CounterKey(task.task_type, task.status, _tier(task))] += 1
        if task.status in WAITING and task.run_at <= self.now:
            self.claimable.add(task.id)
        else:
            self.claimable.discard(task.id)
        minute = self.minutes.setdefault(self.now // MINUTE * MINUTE, Minute())
        if task.last_event is Event.COMPLETE:
            minute.completed += 1
            minute.busy += max(0, self.steady - (task.claimed_at or 0))
        elif task.last_event in (Event.FAIL, Event.LOSE, Event.TIME_OUT):
            minute.failed += 1
        return task

    async def get(self, task_id: str) -> TaskDetail | None:
        task = self.tasks.get(task_id)
        if task is None:
            return None
        return TaskDetail(task, self.results.get(task_id), self.failures[task_id])

    async def look(self, ids: Sequence[str]) -> list[Task]:
        return [task for task in self.tasks.values() if task.id in ids]

    async def payload(self, task_id: str) -> bytes | None:
        return self.payloads.get(task_id)

    async def find(self, query: TaskQuery) -> list[Task]:
        found = [
            task
            for task in self.tasks.values()
            if query.status in (None, task.status)
            and query.task_type in (None, task.task_type)
            and (query.before_seq is None or task.seq < query.before_seq)
            and set(query.tags) <= set((task.options or Options()).tags)
            and set(query.metadata) <= set((task.options or Options()).metadata.items())
        ]
        found.sort(key=lambda task: -task.seq)
        return found[query.offset : query.offset + query.limit]

    async def count(self, status: Status | None, task_type: str | None) -> int:
        return len(await self.find(TaskQuery(status, task_type, limit=10**9)))

    async def number(self, query: TaskQuery) -> int:
        return len(await self.find(replace(query, limit=10**9, offset=0, before_seq=None)))

    async def expired(self, wall: int, limit: int) -> list[Task]:
        waiting = [task for task in self.tasks.values() if task.status in WAITING]
        return [one for one in waiting if one.expires_at and one.expires_at <= wall][:limit]

    async def logs(self, task_id: str) -> list[LogLine] | None:
        return self.lines.get(task_id)

    async def totals(self, since: int) -> Totals:
        summed: dict[CounterKey, tuple[int, int]] = {}
        for count in await self.counts():
            key = count.key._replace(task_type="")
            present, entered = summed.get(key, (0, 0))
            summed[key] = (present + count.present, entered + count.entered)
        recent = Minute()
        for start, minute in self.minutes.items():
            if start >= since:
                recent.completed += minute.completed
                recent.failed += minute.failed
                recent.busy += minute.busy
        return Totals(
            [Count(key, *numbers) for key, numbers in summed.items()],
            recent,
            min((self.tasks[one].run_at for one in self.claimable), default=None),
        )

    async def counts(self) -> list[Count]:
        present = Counter(
            CounterKey(task.task_type, task.status, _tier(task)) for task in self.tasks.values()
        )
        return [Count(key, present[key], self.entered[key]) for key in self.entered]

    async def keys(self) -> list[Key]:
        return sorted(self.known_keys.values(), key=lambda key: (key.created_at, key.id))

    async def audit_log(self, before: int, limit: int) -> list[AuditEntry]:
        return [entry for entry in reversed(self.log) if entry.number < before][:limit]

    async def overdue(self, steady: int, limit: int) -> list[Task]:
        running = [task for task in self.tasks.values() if task.status is Status.IN_PROGRESS]
        return [task for task in running if (task.deadline or 0) <= steady][:limit]

    async def held(self, worker_ids: Sequence[str]) -> list[Task]:
        running = [task for task in self.tasks.values() if task.status is Status.IN_PROGRESS]
        return [task for task in running if task.worker_id in worker_ids]

    async def holders(self) -> list[str]:
        running = [task for task in self.tasks.values() if task.status is Status.IN_PROGRESS]
        return sorted({task.worker_id for task in running if task.worker_id})

    async def next_due(self) -> int | None:
        waiting = [task for task in self.tasks.values() if task.status in WAITING]
        return min((one.run_at for one in waiting if one.id not in self.claimable), default=None)

    async def audit(self) -> list[str]:
        return []


def _is_same(known: Task, asked: Task) -> bool:
    return (
        known.task_type == asked.task_type
        and known.payload_crc == asked.payload_crc
        and known.priority == asked.priority
        and known.timeout == asked.timeout
        and known.max_retries == asked.max_retries
    )


def _tier(task: Task) -> Tier:
    return Tier.LOW if task.priority < 100 else Tier.NORMAL if task.priority < 200 else Tier.HIGH


def _by_run_at(task: Task) -> int:
    return task.run_at
