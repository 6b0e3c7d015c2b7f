"""The table of operations: every door, the OpenAPI document and the permission check read it.

To add one: a request and a reply in `wire.messages`, a method in `broker.Broker`, a row here.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from msgspec import Struct

from taskqueue.broker.broker import Broker
from taskqueue.wire import messages as m


class Route(NamedTuple):
    """Where REST offers an operation."""

    method: str
    path: str
    status: int


class Operation(NamedTuple):
    """One thing a client can ask for.

    `run` starts it; what it comes to, `reply` turns into the reply struct `replies` names (None
    where there is nothing to say). `native` is its command on the native door.
    """

    name: str
    summary: str
    permission: str | None
    request: type[Struct]
    replies: type[Struct] | None
    run: Callable[[Broker, Any], Awaitable[Any]]
    reply: Callable[[Any], Any]
    http: Route | None
    native: str | None


def _as_is(reply: Struct) -> Struct:
    return reply


def _nothing(_outcome: object) -> None:
    return None


OPERATIONS: Final = (
    Operation(
        "submit",
        "Submit a task",
        "submit_tasks",
        m.SubmitRequest,
        m.SubmitReply,
        Broker.submit,
        m.submit_reply,
        Route("POST", "/api/v1/tasks", 201),
        "TQ.SUBMIT",
    ),
    Operation(
        "submit_batch",
        "Submit up to 1,000 tasks, each with an outcome of its own",
        "submit_tasks",
        m.SubmitBatchRequest,
        m.SubmitBatchReply,
        Broker.submit_batch,
        _as_is,
        Route("POST", "/api/v1/tasks/batch", 200),
        None,
    ),
    Operation(
        "get",
        "How a task stands; with a wait, once it has ended",
        "read_tasks",
        m.WaitRequest,
        m.TaskReply,
        Broker.get,
        m.task_reply,
        Route("GET", "/api/v1/tasks/{task_id}", 200),
        "TQ.GET",
    ),
    Operation(
        "list",
        "List tasks, newest first",
        "read_tasks",
        m.ListRequest,
        m.ListReply,
        Broker.list_tasks,
        _as_is,
        Route("GET", "/api/v1/tasks", 200),
        "TQ.LIST",
    ),
    Operation(
        "cancel",
        "Cancel a task that is not running",
        "cancel_tasks",
        m.TaskRequest,
        None,
        Broker.cancel,
        _nothing,
        Route("DELETE", "/api/v1/tasks/{task_id}", 204),
        "TQ.CANCEL",
    ),
    Operation(
        "retry",
        "Put a dead or cancelled task back in the queue",
        "admin",
        m.TaskRequest,
        m.MovedReply,
        Broker.retry,
        m.moved_reply,
        Route("POST", "/api/v1/tasks/{task_id}/retry", 200),
        "TQ.RETRY",
    ),
    Operation(
        "stats",
        "The queue in figures",
        "read_tasks",
        m.NoRequest,
        m.StatsReply,
        Broker.stats,
        _as_is,
        Route("GET", "/api/v1/stats", 200),
        "TQ.STATS",
    ),
    Operation(
        "health",
        "Whether the broker can do its work",
        None,
        m.NoRequest,
        m.HealthReply,
        Broker.health,
        _as_is,
        Route("GET", "/api/v1/health", 200),
        "TQ.HEALTH",
    ),
    Operation(
        "wait",
        "Wait for a task's end",
        "read_tasks",
        m.WaitRequest,
        m.TaskReply,
        Broker.get,
        m.task_reply,
        None,
        "TQ.WAIT",
    ),
    Operation(
        "claim",
        "Take tasks to work on",
        "work",
        m.ClaimRequest,
        m.ClaimReply,
        Broker.claim,
        m.claim_reply,
        None,
        "TQ.CLAIM",
    ),
    Operation(
        "complete",
        "An attempt succeeded",
        "work",
        m.CompleteRequest,
        m.MovedReply,
        Broker.complete,
        m.moved_reply,
        None,
        "TQ.COMPLETE",
    ),
    Operation(
        "fail",
        "An attempt failed",
        "work",
        m.FailRequest,
        m.MovedReply,
        Broker.fail,
        m.moved_reply,
        None,
        "TQ.FAIL",
    ),
    Operation(
        "progress",
        "An attempt says how far it is",
        "work",
        m.ProgressRequest,
        m.MovedReply,
        Broker.progress,
        m.moved_reply,
        None,
        "TQ.PROGRESS",
    ),
    Operation(
        "release",
        "Give a task back unfinished",
        "work",
        m.ReleaseRequest,
        m.MovedReply,
        Broker.release,
        m.moved_reply,
        None,
        "TQ.RELEASE",
    ),
    Operation(
        "beat",
        "Keep a worker's lease",
        "work",
        m.BeatRequest,
        m.BeatReply,
        Broker.beat,
        _as_is,
        None,
        "TQ.BEAT",
    ),
    Operation(
        "leave",
        "A worker says goodbye",
        "work",
        m.LeaveRequest,
        m.LeaveReply,
        Broker.leave,
        _as_is,
        None,
        "TQ.LEAVE",
    ),
)
"""All of them, in the order of the API reference, then those for workers."""

BY_NAME: Final = {operation.name: operation for operation in OPERATIONS}
