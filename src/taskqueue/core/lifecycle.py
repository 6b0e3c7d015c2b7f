"""The life of a task, whole: which event leads from which status to which, and what it changes.

Every change of status goes through `_move`, which looks the step up in `MOVES`; there is no other
way to a new status. All functions are pure: the time comes with the call, the engine writes what
they return.
"""

from typing import Any, Final, assert_never

from msgspec import structs

from taskqueue.core.commands import (
    AttemptNote,
    Cancel,
    Change,
    Checkpoint,
    Complete,
    Delete,
    Expire,
    Extend,
    Fail,
    Log,
    OperatorCommand,
    Progress,
    Release,
    Retry,
    Submit,
    TakeBack,
    TaskCommand,
)
from taskqueue.core.errors import DataDamaged, InvalidStatus, LeaseLost
from taskqueue.core.repeats import content_of, require_same
from taskqueue.core.retry import USUAL
from taskqueue.core.task import CLAIMABLE, Event, Failure, Options, Status, Task

MOVES: Final[dict[tuple[Status, Event], tuple[Status, ...]]] = {
    (Status.PENDING, Event.CLAIM): (Status.IN_PROGRESS,),
    (Status.FAILED, Event.CLAIM): (Status.IN_PROGRESS,),
    (Status.IN_PROGRESS, Event.COMPLETE): (Status.COMPLETED,),
    (Status.IN_PROGRESS, Event.FAIL): (Status.FAILED, Status.DEAD_LETTER),
    (Status.IN_PROGRESS, Event.LOSE): (Status.FAILED, Status.DEAD_LETTER),
    (Status.IN_PROGRESS, Event.TIME_OUT): (Status.FAILED, Status.DEAD_LETTER),
    (Status.IN_PROGRESS, Event.RELEASE): (Status.PENDING,),
    (Status.PENDING, Event.DAMAGE): (Status.DEAD_LETTER,),
    (Status.FAILED, Event.DAMAGE): (Status.DEAD_LETTER,),
    (Status.PENDING, Event.CANCEL): (Status.CANCELLED,),
    (Status.FAILED, Event.CANCEL): (Status.CANCELLED,),
    (Status.IN_PROGRESS, Event.STOP): (Status.CANCELLED,),
    (Status.PENDING, Event.EXPIRE): (Status.CANCELLED,),
    (Status.FAILED, Event.EXPIRE): (Status.CANCELLED,),
    (Status.PENDING, Event.CHANGE): (Status.PENDING,),
    (Status.FAILED, Event.CHANGE): (Status.FAILED,),
    (Status.DEAD_LETTER, Event.RETRY): (Status.PENDING,),
    (Status.CANCELLED, Event.RETRY): (Status.PENDING,),
}
"""The whole machine. Where two statuses stand, the second is for a task out of retries."""

_ENDING: Final[dict[type[TaskCommand], Event]] = {
    Complete: Event.COMPLETE,
    Fail: Event.FAIL,
    Release: Event.RELEASE,
}

LONGEST_TEXT: Final = 64 * 1024
"""Characters kept of a failure's message and of its traceback."""

MOST_LOGGED: Final = 1_000
"""Lines that are kept of a task's log; what comes later is dropped."""

_CUT_MARK: Final = " … [cut]"
_PURGED: Final = (Status.COMPLETED, Status.CANCELLED)
"""What an ended task is deleted in once its retention is over."""


def settle(
    task: Task, command: TaskCommand, *, wall: int, steady: int
) -> tuple[Task, Failure | None]:
    """What `command` makes of `task`, and the failure to put on record with it, if any.

    A repeat of the word that ended the attempt gives the task back unchanged, and so does a
    TakeBack or an Expire that comes too late. Raises LeaseLost for a word about an attempt that is
    over, InvalidStatus where the task's status forbids the command.
    """
    match command:
        case Complete() | Fail() | Release():
            return _end_attempt(task, command, wall)
        case Progress() | Log() | Checkpoint() | Extend():
            _require_lease(task, command.token)
            return _note(task, command, wall, steady), None
        case TakeBack():
            return _take_back(task, command, wall)
        case Expire():
            return _expire(task, wall)
        case _:
            return _obey(task, command, wall), None


def claim(task: Task, worker_id: str, *, wall: int, steady: int) -> Task:
    """The task in the hands of `worker_id`, under a token one higher than any before."""
    return _move(
        task,
        Event.CLAIM,
        wall,
        token=task.token + 1,
        worker_id=worker_id,
        claimed_at=steady,
        deadline=steady + task.timeout,
        progress=None,
        progress_note="",
    )


def bury_damaged(task: Task, *, wall: int) -> tuple[Task, Failure]:
    """The task set aside because its stored payload is no longer what was submitted."""
    message = "the stored payload does not match its checksum; it was not handed out"
    failure = Failure(task.token, wall, None, DataDamaged.__name__, message)
    return _move(task, Event.DAMAGE, wall), failure


def require_same_submission(task: Task, repeat: Submit) -> None:
    """Raise IdempotencyConflict unless `repeat` asks for what `task` was submitted as."""
    require_same(content_of(task), content_of(repeat.task), "task_id", f"task_id {task.id}")


def has_expired(task: Task, wall: int) -> bool:
    """Whether a task still waits though its expiry has come."""
    return task.status in CLAIMABLE and task.expires_at is not None and task.expires_at <= wall


def _obey(task: Task, command: OperatorCommand, wall: int) -> Task:
    match command:
        case Cancel():
            is_running = task.status is Status.IN_PROGRESS
            event = Event.STOP if command.running and is_running else Event.CANCEL
            return _move(task, event, wall, deadline=None)
        case Retry():
            fresh: dict[str, Any] = {"retry_count": 0, "losses": 0, "worker_id": None}
            return _move(task, Event.RETRY, wall, run_at=wall, **fresh)
        case Change():
            return _change(task, command, wall)
        case Delete():
            if not task.is_terminal:
                raise InvalidStatus(
                    f"Task {task.id} is {task.status}; only a task that has ended can be deleted"
                )
            return task
        case _:
            assert_never(command)


def _note(task: Task, command: AttemptNote, wall: int, steady: int) -> Task:
    changes: dict[str, Any]
    match command:
        case Progress():
            changes = {"progress": command.fraction, "progress_note": command.note}
        case Log():
            changes = {"logged": min(task.logged + 1, MOST_LOGGED)}
        case Extend():
            changes = {"deadline": steady + command.time}
        case Checkpoint():
            changes = {}
        case _:
            assert_never(command)
    return structs.replace(task, updated_at=max(wall, task.updated_at), **changes)


def _change(task: Task, command: Change, wall: int) -> Task:
    changes: dict[str, Any] = {}
    if command.priority is not None:
        changes["priority"] = command.priority
    if command.run_at is not None:
        changes["run_at"] = command.run_at
    return _move(task, Event.CHANGE, wall, **changes)


def _expire(task: Task, wall: int) -> tuple[Task, Failure | None]:
    if not has_expired(task, wall):
        return task, None
    message = "it was not started before its expiry"
    failure = Failure(task.token, wall, None, "Expired", message)
    return _move(task, Event.EXPIRE, wall), failure


def _move(task: Task, event: Event, wall: int, *, exhausted: bool = False, **changes: Any) -> Task:
    statuses = MOVES.get((task.status, event))
    if statuses is None:
        allowed = sorted(status for status, known in MOVES if known is event)
        raise InvalidStatus(
            f"Task {task.id} is {task.status}; only a task that is {' or '.join(allowed)} "
            f"can {event}"
        )
    status = statuses[-1] if exhausted else statuses[0]
    if status in _PURGED:
        changes["expires_at"] = _retention_end(task.options, wall)
    elif event is Event.RETRY:
        changes["expires_at"] = None
    return structs.replace(
        task,
        status=status,
        last_event=event,
        updated_at=max(wall, task.updated_at),
        **changes,
    )


def _retention_end(options: Options | None, wall: int) -> int | None:
    return None if options is None or options.retention is None else wall + options.retention


def holds_lease(task: Task, token: int) -> bool:
    """Whether the claim that the token stands for is the task's present one."""
    return task.status is Status.IN_PROGRESS and task.token == token


def _require_lease(task: Task, token: int) -> None:
    if not holds_lease(task, token):
        raise LeaseLost(
            f"The claim of task {task.id} under token {token} is over; "
            "drop its result, nothing was changed"
        )


def _end_attempt(
    task: Task, word: Complete | Fail | Release, wall: int
) -> tuple[Task, Failure | None]:
    event = _ENDING[type(word)]
    if task.last_event is event and task.token == word.token:
        return task, None
    _require_lease(task, word.token)
    match word:
        case Complete():
            return _move(task, event, wall, deadline=None), None
        case Release():
            # Its time had come; a clock that was set back since must not put it off again.
            run_at = wall + word.delay if word.delay else min(task.run_at, wall)
            return _move(task, event, wall, run_at=run_at, deadline=None, worker_id=None), None
        case Fail():
            return _end_in_failure(task, word, wall)
        case _:
            assert_never(word)


def _end_in_failure(task: Task, command: Fail, wall: int) -> tuple[Task, Failure]:
    message, is_poison = command.message, False
    if command.process_died:
        task, message, is_poison = _count_loss(task, message, command.most_losses)
    failure = Failure(
        attempt=task.token,
        at=wall,
        worker_id=task.worker_id,
        kind=_shorten(command.kind),
        message=_shorten(message),
        traceback=_shorten(command.traceback),
    )
    delay = command.delay
    if delay is None:
        delay = _usual_delay(task, command.spread)
    retryable = command.retryable and not is_poison
    return _retry_or_bury(task, Event.FAIL, wall, delay, retryable=retryable), failure


def _take_back(task: Task, command: TakeBack, wall: int) -> tuple[Task, Failure | None]:
    if not holds_lease(task, command.token):
        return task, None
    if command.why is Event.LOSE:
        return _lose(task, command, wall)
    failure = Failure(task.token, wall, task.worker_id, "TimedOut", command.message)
    delay = _usual_delay(task, command.spread)
    return _retry_or_bury(task, command.why, wall, delay, retryable=True), failure


def _lose(task: Task, command: TakeBack, wall: int) -> tuple[Task, Failure]:
    task, message, is_poison = _count_loss(task, command.message, command.most_losses)
    failure = Failure(task.token, wall, task.worker_id, "WorkerLost", message)
    return _retry_or_bury(task, command.why, wall, 0, retryable=not is_poison), failure


def _count_loss(task: Task, message: str, most: int) -> tuple[Task, str, bool]:
    """The task with one loss more, what is to be told of it, and whether it was one too many."""
    losses = task.losses + 1
    is_poison = losses >= most
    if is_poison:
        message += f"; it has cost {losses} workers or processes, and is tried no more"
    return structs.replace(task, losses=losses), message, is_poison


def _retry_or_bury(task: Task, event: Event, wall: int, delay: int, *, retryable: bool) -> Task:
    if not retryable or not task.has_retries_left:
        return _move(task, event, wall, exhausted=True, deadline=None)
    return _move(
        task,
        event,
        wall,
        retry_count=task.retry_count + 1,
        run_at=wall + delay,
        deadline=None,
    )


def _usual_delay(task: Task, spread: float) -> int:
    policy = (task.options and task.options.retry) or USUAL
    return policy.delay_before(task.retry_count + 1, spread)


def _shorten(text: str) -> str:
    if len(text) <= LONGEST_TEXT:
        return text
    return text[: LONGEST_TEXT - len(_CUT_MARK)] + _CUT_MARK
