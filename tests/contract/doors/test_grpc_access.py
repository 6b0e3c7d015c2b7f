"""Who is let in by the gRPC door, how much they may ask, and what ends when their key does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import pytest

from taskqueue.broker.access import ANYBODY, AccessSettings
from taskqueue.core.clock import ManualClock, SystemClock
from taskqueue.core.keys import Key, Permission
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.doors.grpc.exchange import address_of
from taskqueue.doors.grpc.offers import TASK_QUEUE, WORK
from taskqueue.doors.grpc.settings import GrpcSettings
from taskqueue.wire.administration import CreateKeyRequest, KeyRequest
from tests.support.broker import until_parked
from tests.support.grpc import GrpcClient, a_grpc_client, refusal_of

ROOT_SECRET = "r" * 40
ROOT = [("authorization", f"Bearer {ROOT_SECRET}")]
ABSENT = "550e8400-e29b-41d4-a716-446655440000"

NEEDED = {
    "SubmitTask": Permission.SUBMIT_TASKS,
    "SubmitTasks": Permission.SUBMIT_TASKS,
    "GetTaskStatus": Permission.READ_TASKS,
    "ListTasks": Permission.READ_TASKS,
    "GetStats": Permission.READ_TASKS,
    "GetCluster": Permission.READ_TASKS,
    "StreamTaskUpdates": Permission.READ_TASKS,
    "CancelTask": Permission.CANCEL_TASKS,
    "RetryTask": Permission.ADMIN,
    "ChangeTask": Permission.SUBMIT_TASKS,
    "PurgeTask": Permission.ADMIN,
    "GetTaskLogs": Permission.READ_TASKS,
    "ListWorkers": Permission.READ_TASKS,
    "OrderWorker": Permission.ADMIN,
    "Session": Permission.WORK,
} | {offer.name: Permission.WORK for offer in WORK}

Shown = list[tuple[str, str]]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[GrpcClient]:
    access = AccessSettings(bootstrap_key=ROOT_SECRET, rate_limit=0)
    async with a_grpc_client(tmp_path / "data", clock=SystemClock(), access=access) as client:
        yield client


async def a_key(
    client: GrpcClient, *permissions: Permission, prefix: str | None = None
) -> tuple[Key, Shown]:
    request = CreateKeyRequest(
        name=f"key-{len(permissions)}-{prefix}",
        permissions=list(permissions),
        task_type_prefix=prefix,
    )
    key, secret = await client.broker.keys.create(request, ANYBODY)
    return key, [("authorization", f"Bearer {secret}")]


def a_call(client: GrpcClient, name: str, shown: Shown) -> Any:
    if name == "Session":
        return client.session(shown)
    return client.call(name, b"", shown)


@pytest.mark.parametrize("name", sorted(NEEDED))
async def test_every_call_needs_a_key(client: GrpcClient, name: str) -> None:
    for shown in ([], [("authorization", "Bearer wrong")], [("authorization", ROOT_SECRET)]):
        refusal = await refusal_of(a_call(client, name, shown))
        assert (refusal.status, refusal.code) == ("UNAUTHENTICATED", "AUTHENTICATION_FAILED")


@pytest.mark.parametrize("name", sorted(NEEDED))
async def test_every_call_needs_its_permission(client: GrpcClient, name: str) -> None:
    every = [one for one in Permission if one not in (NEEDED[name], Permission.ADMIN)]
    _, shown = await a_key(client, *every)
    refusal = await refusal_of(a_call(client, name, shown))
    assert (refusal.status, refusal.code) == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert NEEDED[name] in refusal.message


async def test_no_call_was_left_out() -> None:
    assert {offer.name for offer in TASK_QUEUE} <= NEEDED.keys()


async def test_a_key_opens_what_it_permits(client: GrpcClient) -> None:
    _, shown = await a_key(client, Permission.SUBMIT_TASKS)
    request = pb.SubmitTaskRequest(task_type="work")
    assert (await client.call("SubmitTask", request, shown)).status == "pending"
    assert (await client.call("SubmitTask", request, ROOT)).status == "pending"


async def test_the_scheme_is_known_in_any_case(client: GrpcClient) -> None:
    shown = [("authorization", f"bEARER  {ROOT_SECRET}")]
    assert (await client.call("GetStats", b"", shown)).pending_count == 0


async def test_two_keys_are_no_key(client: GrpcClient) -> None:
    refusal = await refusal_of(client.call("GetStats", b"", ROOT * 2))
    assert refusal.status == "UNAUTHENTICATED"


@pytest.mark.parametrize("name", ["GetTaskStatus", "StreamTaskUpdates", "CancelTask"])
async def test_a_task_out_of_reach_does_not_exist(client: GrpcClient, name: str) -> None:
    submitted = await client.call(
        "SubmitTask", pb.SubmitTaskRequest(task_type="billing.pay", payload=b"x"), ROOT
    )
    _, shown = await a_key(client, Permission.READ_TASKS, Permission.CANCEL_TASKS, prefix="mail.")
    request = getattr(pb, f"{name}Request")(task_id=submitted.task_id)
    refusal = await refusal_of(client.call(name, request, shown))
    assert (refusal.status, refusal.code) == ("NOT_FOUND", "TASK_NOT_FOUND")


async def test_a_task_type_out_of_reach_is_not_permitted(client: GrpcClient) -> None:
    _, shown = await a_key(client, Permission.SUBMIT_TASKS, Permission.WORK, prefix="mail.")
    tasks = [pb.SubmitTaskRequest(task_type=name) for name in ("mail.send", "billing.pay")]
    reply = await client.call("SubmitTasks", pb.SubmitTasksRequest(tasks=tasks), shown)
    assert [result.error.code for result in reply.results] == ["", "PERMISSION_DENIED"]
    request = pb.ClaimRequest(worker_id="w1", task_types=["billing.pay"])
    assert (await refusal_of(client.call("Claim", request, shown))).status == "PERMISSION_DENIED"


async def test_what_waits_under_a_key_ends_with_it(client: GrpcClient) -> None:
    key, shown = await a_key(client, Permission.READ_TASKS, Permission.WORK)
    task = await client.call("SubmitTask", pb.SubmitTaskRequest(task_type="other"), ROOT)
    session = client.session(shown)
    claim = pb.ClaimRequest(worker_id="w1", task_types=["work"], wait_ms=3_600_000)
    await session.write(pb.SessionRequest(id=1, claim=claim))
    status = pb.GetTaskStatusRequest(task_id=task.task_id, wait_ms=3_600_000)
    updates = client.call(
        "StreamTaskUpdates", pb.StreamTaskUpdatesRequest(task_id=task.task_id), shown
    )
    await updates.read()
    refusals: list[Awaitable[Any]] = [
        asyncio.ensure_future(refusal_of(call))
        for call in (
            client.call("Claim", claim, shown),
            client.call("GetTaskStatus", status, shown),
            updates,
            session,
        )
    ]
    await until_parked()
    await client.broker.keys.revoke(KeyRequest(key_id=key.id), ANYBODY)
    for refusal in await asyncio.wait_for(asyncio.gather(*refusals), 10):
        assert (refusal.status, refusal.code) == ("UNAUTHENTICATED", "AUTHENTICATION_FAILED")
    # Neither claim takes the task that comes now.
    await client.call("SubmitTask", pb.SubmitTaskRequest(task_type="work"), ROOT)
    await until_parked()
    taken = await client.call("Claim", pb.ClaimRequest(worker_id="w2", task_types=["work"]), ROOT)
    assert len(taken.tasks) == 1


async def test_one_who_needs_no_key_yet_is_shut_out_when_the_first_is_made(tmp_path: Path) -> None:
    async with a_grpc_client(tmp_path / "data", clock=SystemClock()) as client:
        waiting = asyncio.ensure_future(refusal_of(client.call("Claim", a_long_claim())))
        await until_parked()
        await a_key(client, Permission.ADMIN)
        assert (await asyncio.wait_for(waiting, 10)).status == "UNAUTHENTICATED"


def a_long_claim() -> pb.ClaimRequest:
    return pb.ClaimRequest(worker_id="w1", task_types=["work"], wait_ms=3_600_000)


async def test_more_calls_than_the_limit_are_refused_with_the_time_to_wait(tmp_path: Path) -> None:
    access = AccessSettings(rate_limit=10, rate_burst=2)
    clock = ManualClock()
    async with a_grpc_client(tmp_path / "data", clock=clock, access=access) as client:
        call = client.call("SubmitTask", pb.SubmitTaskRequest(task_type="work"))
        headers = dict(await call.initial_metadata())
        await call
        assert (headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]) == ("10", "1")
        await client.submit()
        refusal = await refusal_of(
            client.call("SubmitTask", pb.SubmitTaskRequest(task_type="work"))
        )
        assert (refusal.status, refusal.code) == ("RESOURCE_EXHAUSTED", "RATE_LIMIT_EXCEEDED")
        assert refusal.retry_seconds == pytest.approx(0.1)
        assert refusal.metadata["x-ratelimit-remaining"] == "0"
        assert int(str(refusal.metadata["x-ratelimit-reset"])) >= clock.wall() // 1_000_000
        assert refusal.metadata["retry-after"] == "1"
        updates = client.call("StreamTaskUpdates", pb.StreamTaskUpdatesRequest(task_id=ABSENT))
        assert (await refusal_of(updates)).code == "RATE_LIMIT_EXCEEDED"
        clock.advance(0.1)
        await client.submit()


async def test_a_batch_counts_once_and_workers_do_not_count(tmp_path: Path) -> None:
    access = AccessSettings(rate_limit=1, rate_burst=1)
    async with a_grpc_client(tmp_path / "data", clock=ManualClock(), access=access) as client:
        tasks = [pb.SubmitTaskRequest(task_type="work") for _ in range(5)]
        await client.call("SubmitTasks", pb.SubmitTasksRequest(tasks=tasks))
        for _ in range(5):
            [one] = await client.claim()
            await client.call("Complete", pb.CompleteRequest(task_id=one.task_id, token=one.token))
            await client.call("Beat", pb.BeatRequest(worker_id="w1"))


async def test_wrong_keys_make_the_answer_come_later(client: GrpcClient) -> None:
    """The tenth at once is answered as the first; those after it are held up."""
    wrong = [("authorization", "Bearer wrong")]
    for _ in range(10):
        await refusal_of(client.call("GetStats", b"", wrong))
    late = asyncio.ensure_future(refusal_of(client.call("GetStats", b"", wrong)))
    done, _ = await asyncio.wait([late], timeout=0.3)
    assert not done
    assert (await late).status == "UNAUTHENTICATED"


async def test_a_client_is_known_behind_a_proxy_that_is_trusted(tmp_path: Path) -> None:
    access = AccessSettings(rate_limit=1, rate_burst=1)
    settings = GrpcSettings(trusted_proxies="127.0.0.0/8")
    async with a_grpc_client(
        tmp_path / "data", clock=ManualClock(), access=access, settings=settings
    ) as client:
        for address in ("192.0.2.1", "192.0.2.2"):
            await client.call("GetStats", b"", [("x-forwarded-for", address)])
        again = client.call("GetStats", b"", [("x-forwarded-for", "192.0.2.2")])
        assert (await refusal_of(again)).code == "RATE_LIMIT_EXCEEDED"


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:192.0.2.1:50051", "192.0.2.1"),
        ("ipv6:%5B2001:db8::1%5D:50051", "2001:db8::1"),
        ("ipv6:[2001:db8::1]:50051", "2001:db8::1"),
        ("unix:/tmp/socket", "local"),
    ],
)
def test_an_address_is_read_from_what_grpc_calls_a_peer(peer: str, address: str) -> None:
    assert address_of(peer) == address
