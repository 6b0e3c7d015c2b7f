"""The table of operations: every door, the OpenAPI document and the permission check read it.

To add one: a request and a reply in `wire.messages`, a method in `broker.Broker`, a row here.
"""

from collections.abc import Awaitable
from typing import Any, Final

from msgspec import Struct

from taskqueue.broker.access import Caller
from taskqueue.broker.broker import Broker
from taskqueue.broker.cluster_report import cluster_reply
from taskqueue.broker.operation import Operation, Route
from taskqueue.core.keys import Permission
from taskqueue.wire import administration, figures
from taskqueue.wire import cluster as c
from taskqueue.wire import messages as m
from taskqueue.wire import workers as w


def _as_is(reply: Struct) -> Struct:
    return reply


def _nothing(_outcome: object) -> None:
    return None


def _create_key(
    broker: Broker, request: administration.CreateKeyRequest, caller: Caller
) -> Awaitable[Any]:
    return broker.keys.create(request, caller)


def _list_keys(broker: Broker, _request: m.NoRequest, _caller: Caller) -> Awaitable[Any]:
    return broker.keys.list_all()


def _rotate_key(
    broker: Broker, request: administration.RotateKeyRequest, caller: Caller
) -> Awaitable[Any]:
    return broker.keys.rotate(request, caller)


def _revoke_key(
    broker: Broker, request: administration.KeyRequest, caller: Caller
) -> Awaitable[Any]:
    return broker.keys.revoke(request, caller)


def _audit_log(
    broker: Broker, request: administration.AuditRequest, _caller: Caller
) -> Awaitable[Any]:
    return broker.keys.audit_log(request)


def _beat(broker: Broker, request: w.BeatRequest, caller: Caller) -> Awaitable[Any]:
    return broker.crew.beat(request, caller)


def _leave(broker: Broker, request: w.LeaveRequest, caller: Caller) -> Awaitable[Any]:
    return broker.crew.leave(request, caller)


def _tell(broker: Broker, request: w.AboutRequest, caller: Caller) -> Awaitable[Any]:
    return broker.crew.tell(request, caller)


def _notice(broker: Broker, request: w.NoticeRequest, caller: Caller) -> Awaitable[Any]:
    return broker.crew.notice(request, caller)


def _order(broker: Broker, request: w.OrderRequest, caller: Caller) -> Awaitable[Any]:
    return broker.crew.order(request, caller)


def _list_workers(broker: Broker, request: m.NoRequest, caller: Caller) -> Awaitable[Any]:
    return broker.crew.list_all(request, caller)


OPERATIONS: Final = (
    Operation(
        "submit",
        "Submit a task",
        Permission.SUBMIT_TASKS,
        m.SubmitRequest,
        m.SubmitReply,
        Broker.submit,
        m.submit_reply,
        Route("POST", "/api/v1/tasks", 201),
        "TQ.SUBMIT",
    ),
    Operation(
        "submit_batch",
        "Submit up to 10,000 tasks, each with an outcome of its own",
        Permission.SUBMIT_TASKS,
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
        Permission.READ_TASKS,
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
        Permission.READ_TASKS,
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
        Permission.CANCEL_TASKS,
        m.CancelRequest,
        None,
        Broker.cancel,
        _nothing,
        Route("DELETE", "/api/v1/tasks/{task_id}", 204),
        "TQ.CANCEL",
    ),
    Operation(
        "stop",
        "Cancel a task, with running=true also one that is running",
        Permission.CANCEL_TASKS,
        m.CancelRequest,
        m.MovedReply,
        Broker.cancel,
        m.moved_reply,
        Route("POST", "/api/v1/tasks/{task_id}/cancel", 200, has_body=False),
        None,
    ),
    Operation(
        "retry",
        "Put a dead or cancelled task back in the queue",
        Permission.ADMIN,
        m.TaskRequest,
        m.MovedReply,
        Broker.retry,
        m.moved_reply,
        Route("POST", "/api/v1/tasks/{task_id}/retry", 200),
        "TQ.RETRY",
    ),
    Operation(
        "change",
        "Give a task that waits another priority or time",
        Permission.SUBMIT_TASKS,
        m.ChangeRequest,
        m.MovedReply,
        Broker.change,
        m.moved_reply,
        Route("PATCH", "/api/v1/tasks/{task_id}", 200),
        "TQ.CHANGE",
    ),
    Operation(
        "purge",
        "Delete a task that has ended",
        Permission.ADMIN,
        m.TaskRequest,
        None,
        Broker.purge,
        _nothing,
        Route("POST", "/api/v1/tasks/{task_id}/purge", 204),
        "TQ.PURGE",
    ),
    Operation(
        "logs",
        "The lines that the attempts at a task have logged",
        Permission.READ_TASKS,
        m.TaskRequest,
        w.LogsReply,
        Broker.logs,
        w.logs_reply,
        Route("GET", "/api/v1/tasks/{task_id}/logs", 200),
        "TQ.LOGS",
    ),
    Operation(
        "stats",
        "The queue in figures",
        Permission.READ_TASKS,
        m.NoRequest,
        figures.StatsReply,
        Broker.stats,
        _as_is,
        Route("GET", "/api/v1/stats", 200),
        "TQ.STATS",
    ),
    Operation(
        "workers",
        "The workers that are alive",
        Permission.READ_TASKS,
        m.NoRequest,
        w.WorkersReply,
        _list_workers,
        _as_is,
        Route("GET", "/api/v1/workers", 200),
        "TQ.WORKERS",
    ),
    Operation(
        "order",
        "Tell a worker to work, to claim nothing new, or to finish and leave",
        Permission.ADMIN,
        w.OrderRequest,
        None,
        _order,
        _nothing,
        Route("POST", "/api/v1/workers/{worker_id}/order", 204, has_body=False),
        "TQ.ORDER",
    ),
    Operation(
        "cluster",
        "The brokers and the database under them",
        Permission.READ_TASKS,
        m.NoRequest,
        c.ClusterReply,
        cluster_reply,
        _as_is,
        Route("GET", "/api/v1/cluster", 200),
        "TQ.CLUSTER",
    ),
    Operation(
        "health",
        "Whether the broker can do its work",
        None,
        m.NoRequest,
        figures.HealthReply,
        Broker.health,
        _as_is,
        Route("GET", "/api/v1/health", 200),
        "TQ.HEALTH",
    ),
    Operation(
        "wait",
        "Wait for a task's end",
        Permission.READ_TASKS,
        m.WaitRequest,
        m.TaskReply,
        Broker.get,
        m.task_reply,
        None,
        "TQ.WAIT",
    ),
    Operation(
        "create_key",
        "Make an API key; its secret is shown this once",
        Permission.ADMIN,
        administration.CreateKeyRequest,
        administration.NewKeyReply,
        _create_key,
        administration.new_key_reply,
        Route("POST", "/api/v1/keys", 201),
        "TQ.KEY.CREATE",
    ),
    Operation(
        "list_keys",
        "List the API keys, oldest first, without their secrets",
        Permission.ADMIN,
        m.NoRequest,
        administration.KeysReply,
        _list_keys,
        _as_is,
        Route("GET", "/api/v1/keys", 200),
        "TQ.KEY.LIST",
    ),
    Operation(
        "rotate_key",
        "Give an API key a new secret; the old one stays valid for a while",
        Permission.ADMIN,
        administration.RotateKeyRequest,
        administration.NewKeyReply,
        _rotate_key,
        administration.new_key_reply,
        Route("POST", "/api/v1/keys/{key_id}/rotate", 200),
        "TQ.KEY.ROTATE",
    ),
    Operation(
        "revoke_key",
        "End an API key, and everything that goes on under it",
        Permission.ADMIN,
        administration.KeyRequest,
        None,
        _revoke_key,
        _nothing,
        Route("DELETE", "/api/v1/keys/{key_id}", 204),
        "TQ.KEY.REVOKE",
    ),
    Operation(
        "audit",
        "What operators did, newest first",
        Permission.ADMIN,
        administration.AuditRequest,
        administration.AuditReply,
        _audit_log,
        administration.audit_reply,
        Route("GET", "/api/v1/audit", 200),
        "TQ.AUDIT",
    ),
    Operation(
        "claim",
        "Take tasks to work on",
        Permission.WORK,
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
        Permission.WORK,
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
        Permission.WORK,
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
        Permission.WORK,
        m.ProgressRequest,
        m.MovedReply,
        Broker.progress,
        m.moved_reply,
        None,
        "TQ.PROGRESS",
    ),
    Operation(
        "log",
        "Put a line in a task's log",
        Permission.WORK,
        w.LogRequest,
        m.MovedReply,
        Broker.log,
        m.moved_reply,
        None,
        "TQ.LOG",
    ),
    Operation(
        "checkpoint",
        "Keep something for a task's next attempt",
        Permission.WORK,
        w.CheckpointRequest,
        m.MovedReply,
        Broker.checkpoint,
        m.moved_reply,
        None,
        "TQ.CHECKPOINT",
    ),
    Operation(
        "extend",
        "Ask for more time",
        Permission.WORK,
        w.ExtendRequest,
        m.MovedReply,
        Broker.extend,
        m.moved_reply,
        None,
        "TQ.EXTEND",
    ),
    Operation(
        "release",
        "Give a task back unfinished",
        Permission.WORK,
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
        Permission.WORK,
        w.BeatRequest,
        w.BeatReply,
        _beat,
        _as_is,
        None,
        "TQ.BEAT",
    ),
    Operation(
        "about",
        "A worker tells of itself",
        Permission.WORK,
        w.AboutRequest,
        None,
        _tell,
        _nothing,
        None,
        "TQ.ABOUT",
    ),
    Operation(
        "notice",
        "Wait to be told what to stop",
        Permission.WORK,
        w.NoticeRequest,
        w.NoticeReply,
        _notice,
        _as_is,
        None,
        "TQ.NOTICE",
    ),
    Operation(
        "leave",
        "A worker says goodbye",
        Permission.WORK,
        w.LeaveRequest,
        w.LeaveReply,
        _leave,
        _as_is,
        None,
        "TQ.LEAVE",
    ),
)
"""All of them, in the order of the API reference, then those for workers."""

BY_NAME: Final = {operation.name: operation for operation in OPERATIONS}
