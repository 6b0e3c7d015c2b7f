"""The table of operations: every door, the OpenAPI document and the permission check read it.

To add one: a request and a reply in `wire.messages`, a method in `broker.Broker`, a row here.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

from msgspec import Struct
from msgspec.structs import asdict, replace

from taskqueue.broker.access import Caller
from taskqueue.broker.broker import Broker
from taskqueue.core.clock import moment
from taskqueue.core.errors import BrokerUnavailable, OutcomeUnknown
from taskqueue.core.keys import Permission
from taskqueue.storage.cluster import ClusterView, Peer
from taskqueue.wire import administration
from taskqueue.wire import cluster as c
from taskqueue.wire import messages as m


class Route(NamedTuple):
    """Where REST offers an operation."""

    method: str
    path: str
    status: int
    has_body: bool = True
    """Whether a POST brings its fields in a body; else they are in the query."""


class Deprecation(NamedTuple):
    """An operation that will go: since when and until when, in seconds of Unix time, and why."""

    since: int
    sunset: int
    advice: str


class Operation(NamedTuple):
    """One thing a client can ask for.

    `run` starts it; what it comes to, `reply` turns into the reply struct `replies` names (None
    where there is nothing to say). `native` is its command on the native door.
    """

    name: str
    summary: str
    permission: Permission | None
    request: type[Struct]
    replies: type[Struct] | None
    run: Callable[[Broker, Any, Caller], Awaitable[Any]]
    reply: Callable[[Any], Any]
    http: Route | None
    native: str | None
    deprecated: Deprecation | None = None

    @property
    def is_counted(self) -> bool:
        """Whether its requests count against the rate limit.

        Those of workers do not: what holds them is back-pressure, and a worker that is refused
        would lose its leases.
        """
        return self.permission not in (None, Permission.WORK)

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing."""
        is_get = self.http is not None and self.http.method == "GET"
        return is_get or self.permission is Permission.READ_TASKS

    def too_late(self, seconds: float) -> BrokerUnavailable:
        """The error for an answer that has not come in so many seconds."""
        if self.is_read:
            return BrokerUnavailable(
                f"there was no answer within {seconds:g} seconds; try again", retry_after=1
            )
        return OutcomeUnknown(
            f"the change was not confirmed within {seconds:g} seconds; its outcome is unknown: "
            "repeat the request with the same task_id",
            retry_after=1,
        )

    def require(self, broker: Broker, caller: Caller) -> None:
        """Raise AuthenticationFailed or PermissionDenied unless the caller may."""
        broker.access.require(caller, self.permission)

    def start(self, broker: Broker, request: Any, caller: Caller) -> Awaitable[Any]:
        """Begin it for a caller, if they may: the one way in, for every door.

        Raises AuthenticationFailed, PermissionDenied, and what `run` raises at once.
        """
        self.require(broker, caller)
        return self.run(broker, request, caller)


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


async def _cluster(broker: Broker, request: m.NoRequest, caller: Caller) -> c.ClusterReply:
    broker.access.require_whole_reach(caller)
    health = await broker.health(request, caller)
    view = await broker.cluster(request, caller)
    brokers = [_cluster_broker(_described(broker, peer, view), view) for peer in view.brokers]
    leader = next((one for one in brokers if one.is_leader), None)
    complaint = view.complaint
    if complaint is None and not health.cluster_healthy:
        complaint = "the storage takes no changes"
    if complaint is None and leader is None:
        complaint = "no broker leads: until one takes over, nobody does the housekeeping"
    return c.ClusterReply(
        is_leader=view.leader == view.me,
        leader=None if leader is None else _leader(leader),
        term=view.term,
        healthy=complaint is None,
        complaint=complaint,
        quorum=view.quorum,
        brokers=brokers,
        database=[c.DatabaseNodeReply(**asdict(node)) for node in view.nodes],
    )


def _leader(broker: c.ClusterBrokerReply) -> c.LeaderReply:
    return c.LeaderReply(broker_id=broker.broker_id, address=broker.address)


def _described(broker: Broker, peer: Peer, view: ClusterView) -> Peer:
    if view.nodes:
        return peer
    # An embedded engine has nobody to describe the broker to.
    return replace(peer, seen=broker.clock.wall(), workers=len(broker.workers))


def _cluster_broker(peer: Peer, view: ClusterView) -> c.ClusterBrokerReply:
    return c.ClusterBrokerReply(
        broker_id=str(peer.number),
        address=peer.address,
        http=peer.http,
        version=peer.version,
        since=moment(peer.since) if peer.since else None,
        last_seen=moment(peer.seen),
        load=round(peer.load, 3),
        connected_workers=peer.workers,
        is_leader=peer.number == view.leader,
        is_me=peer.number == view.me,
    )


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
        "Submit up to 1,000 tasks, each with an outcome of its own",
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
        "stats",
        "The queue in figures",
        Permission.READ_TASKS,
        m.NoRequest,
        m.StatsReply,
        Broker.stats,
        _as_is,
        Route("GET", "/api/v1/stats", 200),
        "TQ.STATS",
    ),
    Operation(
        "cluster",
        "The brokers and the database under them",
        Permission.READ_TASKS,
        m.NoRequest,
        c.ClusterReply,
        _cluster,
        _as_is,
        Route("GET", "/api/v1/cluster", 200),
        "TQ.CLUSTER",
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
        Permission.WORK,
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
