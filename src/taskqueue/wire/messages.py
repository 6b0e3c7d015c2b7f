"""Requests and replies, one struct each for all doors; their limits stand here and nowhere else.

Requests forbid unknown fields, so that a misspelt one cannot pass silently. Optional fields carry
the documented defaults. Replies are built from core records by the functions at the end.
"""

from datetime import datetime
from typing import Annotated, Final

from msgspec import Meta, Struct

from taskqueue.core.clock import SECOND, moment
from taskqueue.core.errors import TaskQueueError
from taskqueue.core.repeats import While
from taskqueue.core.task import NO_OPTIONS, ClaimedTask, Failure, Status, Task, TaskDetail

LARGEST_PAYLOAD: Final = 10 * 1024 * 1024
LONGEST_TIMEOUT: Final = 365 * 24 * 3600
LONGEST_DELAY: Final = 10 * 365 * 24 * 3600
LARGEST_BATCH: Final = 10_000
LARGEST_PAGE: Final = 1_000
LARGEST_CLAIM: Final = 500
MOST_CLAIM_TYPES: Final = 100
LARGEST_OFFSET: Final = 2**53 - 1
LONGEST_WAIT_MS: Final = 3_600_000
LARGEST_TOKEN: Final = 2**63 - 1
LONGEST_ERROR: Final = 1024 * 1024
MOST_TAGS: Final = 20
MOST_METADATA: Final = 50
LONGEST_METADATA: Final = 4 * 1024
LONGEST_PERIOD: Final = 365 * 24 * 3600

# White space, control characters, invisible and direction-changing ones, lone surrogates.
_UNPRINTABLE: Final = (
    r"\s\u0000-\u0020\u007f-\u00a0\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202f"
    r"\u205f-\u206f\ud800-\udfff\ufeff\ufff0-\ufffb"
)
TEXT_PATTERN: Final = r"^[^\u0000\ud800-\udfff]*(?![\s\S])"
NAME_PATTERN: Final = rf"^[^{_UNPRINTABLE}]+(?![\s\S])"

Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=255,
        pattern=NAME_PATTERN,
        description="1 to 255 printable characters without spaces",
    ),
]
Token = Annotated[int, Meta(ge=0, le=LARGEST_TOKEN, description="Fencing token of the claim")]
TaskId = Annotated[str, Meta(description="UUID, lower-case with hyphens")]
ErrorText = Annotated[str, Meta(max_length=LONGEST_ERROR)]
Delay = Annotated[float, Meta(ge=0, le=LONGEST_DELAY)]
Cursor = Annotated[str, Meta(max_length=64)]
Priority = Annotated[int, Meta(ge=0, le=255, description="255 is claimed first")]
StartAt = Annotated[
    datetime | None,
    Meta(description="Not before this moment; without an offset it is UTC, in the past: now"),
]
Tags = Annotated[list[Name], Meta(max_length=MOST_TAGS)]
Metadata = Annotated[
    dict[Name, Annotated[str, Meta(max_length=LONGEST_METADATA, pattern=TEXT_PATTERN)]],
    Meta(max_length=MOST_METADATA),
]


class SubmitRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A task to run."""

    task_type: Annotated[Name, Meta(description="Names the handler")]
    payload: Annotated[
        bytes, Meta(max_length=LARGEST_PAYLOAD, description="Bytes for the handler, at most 10 MiB")
    ]
    priority: Priority = 100
    schedule_at: StartAt = None
    timeout_seconds: Annotated[
        int, Meta(ge=1, le=LONGEST_TIMEOUT, description="How long one attempt may take")
    ] = 300
    max_retries: Annotated[
        int, Meta(ge=0, le=1_000, description="Executions after the first one that failed")
    ] = 3
    delay_seconds: Annotated[
        Delay | None, Meta(description="Instead of schedule_at: seconds from now")
    ] = None
    task_id: Annotated[
        Annotated[str, Meta(extra_json_schema={"format": "uuid"})] | None,
        Meta(description="A UUID of your own: makes a repeated submit harmless"),
    ] = None
    idempotency_key: Annotated[
        Name | None,
        Meta(description="Any name of your own: for a day, a repeat gets the first answer again"),
    ] = None
    tags: Annotated[Tags, Meta(description="Names that lists can ask for, at most 20")] = []
    metadata: Annotated[
        Metadata, Meta(description="Texts that go with the task, and that lists can ask for")
    ] = {}
    expires_at: Annotated[
        datetime | None, Meta(description="Cancelled if no attempt has begun by this moment")
    ] = None
    expires_in_seconds: Annotated[
        Delay | None, Meta(description="Instead of expires_at: seconds from now")
    ] = None
    unique_key: Annotated[
        Name | None,
        Meta(description="Of tasks of this type and key there is one; it stands for this one"),
    ] = None
    unique_while: Annotated[
        While, Meta(description="While that one is pending, or not yet over, or for a period")
    ] = While.RUNNING
    unique_seconds: Annotated[float, Meta(ge=0.001, le=LONGEST_PERIOD)] | None = None
    replace: Annotated[
        bool, Meta(description="Cancel the task of this unique_key that waits, and take its place")
    ] = False
    retry_delay_seconds: Annotated[
        Delay | None, Meta(description="Before the first retry; 5 unless given")
    ] = None
    retry_factor: Annotated[
        Annotated[float, Meta(ge=1, le=10)] | None,
        Meta(description="Each delay is so many times the last; 2 unless given"),
    ] = None
    retry_longest_seconds: Annotated[
        Delay | None, Meta(description="The longest delay; 3600 unless given")
    ] = None
    retry_jitter: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | None,
        Meta(description="Part of a delay by which it varies; 0.1 unless given"),
    ] = None
    retention_seconds: Annotated[
        Delay | None, Meta(description="How long it is kept after its end, if not so long as usual")
    ] = None


class SubmitBatchRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Several tasks in one request; each has an outcome of its own."""

    tasks: Annotated[list[SubmitRequest], Meta(min_length=1, max_length=LARGEST_BATCH)]


class TaskRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Names one task."""

    task_id: TaskId


class CancelRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Names the task to cancel, and whether to do so even while it is running."""

    task_id: TaskId
    running: bool = False


class ChangeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """What is to be another for a task that waits."""

    task_id: TaskId
    priority: Priority | None = None
    schedule_at: StartAt = None
    delay_seconds: Annotated[
        Delay | None, Meta(description="Instead of schedule_at: seconds from now")
    ] = None


class WaitRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Names one task and how long to wait for its end."""

    task_id: TaskId
    wait_ms: Annotated[int, Meta(ge=0, le=LONGEST_WAIT_MS)] = 0


class ListRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Which tasks to list, newest first."""

    status: Status | None = None
    task_type: Name | None = None
    limit: Annotated[int, Meta(ge=1, le=LARGEST_PAGE)] = 100
    offset: Annotated[int, Meta(ge=0, le=LARGEST_OFFSET)] = 0
    cursor: Annotated[Cursor | None, Meta(description="next_cursor of the page before")] = None
    tags: Annotated[Tags, Meta(description="All of which the tasks have")] = []
    metadata: Annotated[Metadata, Meta(description="All of which the tasks have")] = {}


class NoRequest(Struct, forbid_unknown_fields=True):
    """Nothing is asked for by name."""


class ClaimRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A worker with free slots asks for work."""

    worker_id: Name
    task_types: Annotated[list[Name], Meta(min_length=1, max_length=MOST_CLAIM_TYPES)]
    count: Annotated[int, Meta(ge=1, le=LARGEST_CLAIM)] = 1
    wait_ms: Annotated[
        int, Meta(ge=0, le=LONGEST_WAIT_MS, description="How long to wait for a task")
    ] = 0
    request_id: Annotated[
        Name | None,
        Meta(description="Names this claim: its repeat gets the same tasks, not more of them"),
    ] = None


class CompleteRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """An attempt succeeded."""

    task_id: TaskId
    token: Token
    result: Annotated[bytes, Meta(max_length=LARGEST_PAYLOAD)] = b""


class FailRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """An attempt failed. Texts beyond 64 Ki characters are kept cut."""

    task_id: TaskId
    token: Token
    message: ErrorText
    kind: ErrorText = ""
    traceback: ErrorText = ""
    delay_seconds: Annotated[Delay | None, Meta(description="Instead of the usual delay")] = None
    retryable: bool = True
    process_died: Annotated[
        bool, Meta(description="Whether the handler took its process along, as a lost worker")
    ] = False


class ProgressRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """An attempt says how far it is."""

    task_id: TaskId
    token: Token
    fraction: Annotated[float, Meta(ge=0, le=1, description="From 0 to 1")]
    note: Annotated[str, Meta(max_length=1_000)] = ""


class ReleaseRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A worker gives a task back unfinished, at once or for later."""

    task_id: TaskId
    token: Token
    delay_seconds: Delay = 0.0


class SubmitReply(Struct, kw_only=True):
    """The task was accepted and is durable."""

    task_id: str
    status: Status
    created_at: datetime


class ErrorReply(Struct, kw_only=True):
    """What every error looks like."""

    error: str
    code: str
    timestamp: datetime


class SubmitBatchReply(Struct, kw_only=True):
    """One entry per task, in the order they were sent."""

    results: list[SubmitReply | ErrorReply]


class FailureReply(Struct, kw_only=True):
    """Why one attempt failed."""

    attempt: int
    at: datetime
    worker_id: str | None
    error: str
    traceback: str


class TaskReply(Struct, kw_only=True):
    """How a task stands."""

    task_id: str
    status: Status
    created_at: datetime
    updated_at: datetime
    task_type: str
    priority: int
    worker_id: str | None
    result: bytes | None
    error: str | None
    retry_count: int
    timeout_seconds: int
    max_retries: int
    schedule_at: datetime
    progress: float | None
    progress_note: str
    failures: list[FailureReply]
    tags: list[str] = []
    metadata: dict[str, str] = {}
    expires_at: datetime | None = None


class TaskSummary(Struct, kw_only=True):
    """A task in a list."""

    task_id: str
    status: Status
    task_type: str
    priority: int
    created_at: datetime
    updated_at: datetime


class ListReply(Struct, kw_only=True):
    """One page of tasks, and how many the filter matches in all."""

    tasks: list[TaskSummary]
    total: int
    limit: int
    offset: int
    next_cursor: str | None


class ClaimedReply(Struct, kw_only=True):
    """A task for a worker. Every later word about it carries `token`."""

    task_id: str
    token: int
    task_type: str
    payload: bytes
    attempt: int
    timeout_seconds: int
    priority: int
    created_at: datetime
    metadata: dict[str, str] = {}
    checkpoint: bytes | None = None


class ClaimReply(Struct, kw_only=True):
    """The tasks claimed; none if the wait was in vain."""

    tasks: list[ClaimedReply]


class MovedReply(Struct, kw_only=True):
    """How a task stands after a word about it."""

    task_id: str
    status: Status
    retry_count: int
    run_at: datetime


def submit_reply(task: Task) -> SubmitReply:
    """The answer to a submit; a repeat gets the first answer again, so it always says pending."""
    return SubmitReply(task_id=task.id, status=Status.PENDING, created_at=moment(task.created_at))


def task_reply(detail: TaskDetail) -> TaskReply:
    """All that is told of one task."""
    task = detail.task
    failed = detail.failures and task.status is not Status.COMPLETED
    options = task.options or NO_OPTIONS
    return TaskReply(
        task_id=task.id,
        status=task.status,
        created_at=moment(task.created_at),
        updated_at=moment(task.updated_at),
        task_type=task.task_type,
        priority=task.priority,
        worker_id=task.worker_id,
        result=detail.result,
        error=str(detail.failures[-1]) if failed else None,
        retry_count=task.retry_count,
        timeout_seconds=task.timeout // SECOND,
        max_retries=task.max_retries,
        schedule_at=moment(task.run_at),
        progress=task.progress,
        progress_note=task.progress_note,
        failures=[failure_reply(failure) for failure in detail.failures],
        tags=list(options.tags),
        metadata=options.metadata,
        expires_at=None if task.expires_at is None else moment(task.expires_at),
    )


def failure_reply(failure: Failure) -> FailureReply:
    """One entry of a task's error history."""
    return FailureReply(
        attempt=failure.attempt,
        at=moment(failure.at),
        worker_id=failure.worker_id,
        error=str(failure),
        traceback=failure.traceback,
    )


def task_summary(task: Task) -> TaskSummary:
    """A task as a line in a list."""
    return TaskSummary(
        task_id=task.id,
        status=task.status,
        task_type=task.task_type,
        priority=task.priority,
        created_at=moment(task.created_at),
        updated_at=moment(task.updated_at),
    )


def claimed_reply(claimed: ClaimedTask) -> ClaimedReply:
    """A task as its worker gets it. `attempt` counts executions since the last submit or retry."""
    task = claimed.task
    return ClaimedReply(
        task_id=task.id,
        token=task.token,
        task_type=task.task_type,
        payload=claimed.payload,
        attempt=task.retry_count + 1,
        timeout_seconds=task.timeout // SECOND,
        priority=task.priority,
        created_at=moment(task.created_at),
        metadata={} if task.options is None else task.options.metadata,
        checkpoint=claimed.checkpoint,
    )


def claim_reply(claimed: list[ClaimedTask]) -> ClaimReply:
    """The answer to a claim."""
    return ClaimReply(tasks=[claimed_reply(one) for one in claimed])


def moved_reply(task: Task) -> MovedReply:
    """The answer to a word about one task."""
    return MovedReply(
        task_id=task.id,
        status=task.status,
        retry_count=task.retry_count,
        run_at=moment(task.run_at),
    )


def error_reply(error: TaskQueueError, wall: int) -> ErrorReply:
    """The documented form of an error."""
    return ErrorReply(error=error.message, code=error.code, timestamp=moment(wall))
