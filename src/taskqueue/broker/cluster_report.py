"""What is told of the cluster."""

from msgspec.structs import asdict, replace

from taskqueue.broker.access import Caller
from taskqueue.broker.broker import Broker
from taskqueue.core.clock import moment
from taskqueue.storage.cluster import ClusterView, Peer
from taskqueue.wire import cluster as c
from taskqueue.wire import messages as m


async def cluster_reply(broker: Broker, request: m.NoRequest, caller: Caller) -> c.ClusterReply:
    """The brokers and the database under them, and what is wrong. Raises PermissionDenied."""
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
