"""What every door says of the cluster: the brokers, their leader, the database under them."""

import json
import re
from pathlib import Path
from typing import Any

import hiredis
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from taskqueue.broker.access import AccessSettings, Caller
from taskqueue.broker.operations import BY_NAME
from taskqueue.core.clock import ManualClock
from taskqueue.core.keys import Permission
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.storage.cluster import Alone, ClusterView, Node, Peer, Presence
from taskqueue.storage.engines import open_storage
from taskqueue.storage.port import Storage
from taskqueue.wire.administration import CreateKeyRequest
from taskqueue.wire.cluster import ClusterReply
from taskqueue.wire.messages import NoRequest
from tests.support.broker import a_broker, claimed
from tests.support.grpc import a_grpc_client, refusal_of
from tests.support.resp import a_resp_house
from tests.support.rest import Reply, a_rest_client

BOOTSTRAP = "a-key-for-automation-of-32-characters-or-more"
REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "rest.md"
PATH = "/api/v1/cluster"
NOON = "2023-11-14T22:13:20Z"
FIRST = Peer(
    number=7,
    address="10.0.0.7:6379",
    http="10.0.0.7:8080",
    version="1.2.3",
    since=1_699_999_000_000_000,
    seen=1_699_999_999_500_000,
    load=1234.56789,
    workers=3,
)
SECOND = Peer(
    number=9,
    address="10.0.0.9:6379",
    http="10.0.0.9:8080",
    version="1.2.3",
    since=1_699_999_100_000_000,
    seen=1_699_999_999_000_000,
    load=0.0,
    workers=0,
)
PRIMARY = Node(name="postgresql://db/queue", role="primary", state="running")
NEAR = Node(name="n2", role="sync standby", state="streaming", lag_bytes=0, lag_seconds=0.25)
FAR = Node(name="n3", role="async standby", state="catchup", lag_bytes=2**40)
VIEW = ClusterView(
    brokers=[FIRST, SECOND],
    me=9,
    leader=7,
    term=12,
    nodes=[PRIMARY, NEAR, FAR],
    quorum=1,
    complaint=None,
)
SHOWN: dict[str, Any] = {
    "is_leader": False,
    "leader": {"broker_id": "7", "address": "10.0.0.7:6379"},
    "term": 12,
    "healthy": True,
    "complaint": None,
    "quorum": 1,
    "brokers": [
        {
            "broker_id": "7",
            "address": "10.0.0.7:6379",
            "http": "10.0.0.7:8080",
            "version": "1.2.3",
            "since": "2023-11-14T21:56:40Z",
            "last_seen": "2023-11-14T22:13:19.500000Z",
            "load": 1234.568,
            "connected_workers": 3,
            "is_leader": True,
            "is_me": False,
        },
        {
            "broker_id": "9",
            "address": "10.0.0.9:6379",
            "http": "10.0.0.9:8080",
            "version": "1.2.3",
            "since": "2023-11-14T21:58:20Z",
            "last_seen": "2023-11-14T22:13:19Z",
            "load": 0.0,
            "connected_workers": 0,
            "is_leader": False,
            "is_me": True,
        },
    ],
    "database": [
        {
            "name": "postgresql://db/queue",
            "role": "primary",
            "state": "running",
            "lag_bytes": None,
            "lag_seconds": None,
        },
        {
            "name": "n2",
            "role": "sync standby",
            "state": "streaming",
            "lag_bytes": 0,
            "lag_seconds": 0.25,
        },
        {
            "name": "n3",
            "role": "async standby",
            "state": "catchup",
            "lag_bytes": 2**40,
            "lag_seconds": None,
        },
    ],
}
"""VIEW in JSON."""

LOST = "1 synchronous standbys are to confirm each commit, 0 are there"


class Several(Alone):
    """A cluster that looks as it is told to."""

    def __init__(self, view: ClusterView) -> None:
        super().__init__()
        self.shown = view

    async def view(self) -> ClusterView:
        return self.shown


def storage_of(folder: Path, view: ClusterView) -> Storage:
    """The embedded engine, with another cluster around it."""
    storage = open_storage(folder)
    storage.cluster = Several(view)
    return storage


def test_the_reference_shows_every_field() -> None:
    blocks = re.findall(r"```json\n(.*?)\n```", REFERENCE.read_text(), re.DOTALL)
    [shown] = [block for block in map(json.loads, blocks) if list(block) == list(SHOWN)]
    for part in ("brokers", "database"):
        assert all(list(one) == list(SHOWN[part][0]) for one in shown[part])


async def over_rest(folder: Path, view: ClusterView) -> Reply:
    async with a_rest_client(folder, storage=storage_of(folder, view)) as client:
        return await client.ask("GET", PATH)


async def over_grpc(folder: Path, view: ClusterView) -> pb.GetClusterResponse:
    async with a_grpc_client(folder, storage=storage_of(folder, view)) as client:
        reply: pb.GetClusterResponse = await client.call("GetCluster", pb.GetClusterRequest())
        return reply


def as_text(answer: Any) -> Any:
    """An answer of the native door as JSON would have it."""
    if isinstance(answer, dict):
        return {key.decode(): as_text(value) for key, value in answer.items()}
    if isinstance(answer, list):
        return [as_text(one) for one in answer]
    return answer.decode() if isinstance(answer, bytes) else answer


async def test_rest_shows_all_of_it(tmp_path: Path) -> None:
    reply = await over_rest(tmp_path, VIEW)
    assert reply.status == 200
    assert reply.json == SHOWN


async def test_the_native_door_shows_the_same(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path, storage=storage_of(tmp_path, VIEW)) as house:
        client = await house.connect()
        await client.ask("HELLO", "3")
        shown = as_text(await client.ask("TQ.CLUSTER"))
        assert msgspec.convert(shown, ClusterReply) == msgspec.convert(SHOWN, ClusterReply)
        assert isinstance(await client.ask("TQ.CLUSTER", "more"), hiredis.ReplyError)


async def test_grpc_shows_the_same(tmp_path: Path) -> None:
    reply = await over_grpc(tmp_path, VIEW)
    assert (reply.is_leader, reply.term, reply.healthy, reply.quorum) == (False, 12, True, 1)
    assert not reply.HasField("complaint")
    assert (reply.leader.broker_id, reply.leader.address) == ("7", "10.0.0.7:6379")
    for broker, shown in zip(reply.brokers, SHOWN["brokers"], strict=True):
        times = {name: shown[name] for name in ("since", "last_seen")}
        assert {
            "since": broker.since.ToJsonString().replace(".500Z", ".500000Z"),
            "last_seen": broker.last_seen.ToJsonString().replace(".500Z", ".500000Z"),
        } == times
        rest = {name: value for name, value in shown.items() if name not in times}
        assert {name: getattr(broker, name) for name in rest} == rest
    for node, shown in zip(reply.database, SHOWN["database"], strict=True):
        for name, value in shown.items():
            assert (value is None) or getattr(node, name) == value
        assert node.HasField("lag_bytes") == (shown["lag_bytes"] is not None)
        assert node.HasField("lag_seconds") == (shown["lag_seconds"] is not None)


async def test_while_nobody_leads_that_is_the_complaint(tmp_path: Path) -> None:
    view = msgspec.structs.replace(VIEW, leader=None)
    shown = (await over_rest(tmp_path, view)).json
    assert (shown["leader"], shown["healthy"], shown["is_leader"]) == (None, False, False)
    assert "no broker leads" in shown["complaint"]
    assert not any(broker["is_leader"] for broker in shown["brokers"])
    answer = await over_grpc(tmp_path, view)
    assert not answer.HasField("leader")
    assert answer.complaint == shown["complaint"]


async def test_what_the_engine_complains_of_is_said(tmp_path: Path) -> None:
    shown = (await over_rest(tmp_path, msgspec.structs.replace(VIEW, complaint=LOST))).json
    assert (shown["healthy"], shown["complaint"]) == (False, LOST)


async def test_the_embedded_engine_is_a_cluster_of_one(tmp_path: Path) -> None:
    async with a_rest_client(tmp_path, clock=ManualClock()) as client:
        client.broker._storage.cluster.introduce(
            Presence(address="127.0.0.1:6379", http="127.0.0.1:8080", version="9.9.9")
        )
        await claimed(client.broker, worker_id="w1")
        await claimed(client.broker, worker_id="w2")
        shown = (await client.ask("GET", PATH)).json
    [broker] = shown.pop("brokers")
    assert shown == {
        "is_leader": True,
        "leader": {"broker_id": "1", "address": "127.0.0.1:6379"},
        "term": 1,
        "healthy": True,
        "complaint": None,
        "quorum": 0,
        "database": [],
    }
    assert (broker["address"], broker["http"]) == ("127.0.0.1:6379", "127.0.0.1:8080")
    assert (broker["version"], broker["connected_workers"]) == ("9.9.9", 2)
    assert (broker["is_me"], broker["is_leader"], broker["last_seen"]) == (True, True, NOON)


async def test_a_key_for_some_types_does_not_see_it(tmp_path: Path) -> None:
    access = AccessSettings(rate_limit=0, bootstrap_key=BOOTSTRAP)
    async with a_rest_client(tmp_path, access=access) as client:
        secrets = {}
        for prefix in (None, "mail."):
            request = CreateKeyRequest(
                name=f"k{prefix}", permissions=[Permission.READ_TASKS], task_type_prefix=prefix
            )
            _, secrets[prefix] = await client.broker.keys.create(request, Caller("192.0.2.1"))
        statuses = {
            prefix: (await client.ask("GET", PATH, None, {"Authorization": f"Bearer {secret}"}))
            for prefix, secret in secrets.items()
        }
        assert statuses[None].status == 200
        assert statuses["mail."].code == "PERMISSION_DENIED"
        assert (await client.ask("GET", PATH)).code == "AUTHENTICATION_FAILED"


async def test_grpc_asks_for_the_permission(tmp_path: Path) -> None:
    async with a_grpc_client(tmp_path, access=AccessSettings(required=True)) as client:
        refusal = await refusal_of(client.call("GetCluster", pb.GetClusterRequest()))
    assert (refusal.status, refusal.code) == ("UNAUTHENTICATED", "AUTHENTICATION_FAILED")


async def test_the_metrics_count_brokers_and_standbys(tmp_path: Path) -> None:
    async with a_rest_client(tmp_path, storage=storage_of(tmp_path, VIEW)) as client:
        page = (await client.ask("GET", "/metrics")).body.decode()
    gauges = {
        family.name: family.samples[0].value
        for family in text_string_to_metric_families(page)
        if family.name in ("tq_is_leader", "tq_brokers", "tq_standbys")
    }
    assert gauges == {"tq_is_leader": 1.0, "tq_brokers": 2.0, "tq_standbys": 2.0}


async def test_requests_for_it_count_against_the_rate_limit(tmp_path: Path) -> None:
    access = AccessSettings(rate_limit=1)
    async with a_rest_client(tmp_path, clock=ManualClock(), access=access) as client:
        replies = [await client.ask("GET", PATH) for _ in range(12)]
    assert replies[-1].status == 429


async def test_two_views_of_one_broker_agree(tmp_path: Path) -> None:
    """`is_leader` of the health check and of the cluster are one statement."""
    async with a_broker(tmp_path) as broker:
        shown = await BY_NAME["cluster"].start(broker, NoRequest(), Caller("192.0.2.1"))
        health = await broker.health(NoRequest())
    assert (shown.is_leader, shown.healthy) == (health.is_leader, health.cluster_healthy)
