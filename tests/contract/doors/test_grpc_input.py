"""Wrong input is refused by the gRPC door with the field, the limit and the fix."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from taskqueue.core.clock import ManualClock
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.doors.grpc.offers import TASK_QUEUE, WORK, Offer
from taskqueue.wire import messages as m
from tests.support.grpc import GrpcClient, a_grpc_client, refusal_of

GOOD: dict[str, Any] = {"task_type": "work", "payload": b"x"}
WORD: dict[str, Any] = {"task_id": "550e8400-e29b-41d4-a716-446655440000", "token": 1}
CLAIM: dict[str, Any] = {"worker_id": "w1", "task_types": ["work"]}
OFFERS = {offer.name: offer for offer in (*TASK_QUEUE, *WORK)}


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[GrpcClient]:
    async with a_grpc_client(tmp_path / "data", clock=ManualClock()) as client:
        yield client


def moment(seconds: int, nanos: int = 0) -> Timestamp:
    return Timestamp(seconds=seconds, nanos=nanos)


@pytest.mark.parametrize(
    ("name", "fields", "field"),
    [
        ("SubmitTask", GOOD | {"task_type": ""}, "task_type"),
        ("SubmitTask", GOOD | {"task_type": "x" * 256}, "task_type"),
        ("SubmitTask", GOOD | {"task_type": "two words"}, "task_type"),
        ("SubmitTask", GOOD | {"task_type": "a\u202eb"}, "task_type"),
        ("SubmitTask", GOOD | {"priority": 256}, "priority"),
        ("SubmitTask", GOOD | {"timeout_seconds": 2**63}, "timeout_seconds"),
        ("SubmitTask", GOOD | {"timeout_seconds": 0}, "timeout_seconds"),
        ("SubmitTask", GOOD | {"max_retries": 1_001}, "max_retries"),
        ("SubmitTask", GOOD | {"delay_seconds": -1}, "delay_seconds"),
        ("SubmitTask", GOOD | {"delay_seconds": float("nan")}, "delay_seconds"),
        ("SubmitTask", GOOD | {"delay_seconds": float("inf")}, "delay_seconds"),
        ("SubmitTask", GOOD | {"delay_seconds": 1, "schedule_at": moment(1)}, "delay_seconds"),
        ("SubmitTask", GOOD | {"schedule_at": moment(0, 10**9)}, "schedule_at"),
        ("SubmitTask", GOOD | {"schedule_at": moment(0, -1)}, "schedule_at"),
        ("SubmitTask", GOOD | {"schedule_at": moment(253_402_300_800)}, "schedule_at"),
        ("SubmitTask", GOOD | {"schedule_at": moment(2**63 - 1)}, "schedule_at"),
        ("SubmitTask", GOOD | {"schedule_at": moment(-(2**63))}, "schedule_at"),
        ("SubmitTask", GOOD | {"task_id": ""}, "task_id"),
        ("SubmitTask", GOOD | {"task_id": "123"}, "task_id"),
        ("SubmitTask", GOOD | {"idempotency_key": ""}, "idempotency_key"),
        ("SubmitTask", GOOD | {"idempotency_key": "x" * 10_000}, "idempotency_key"),
        ("GetTaskStatus", WORD | {"token": None, "wait_ms": 3_600_001}, "wait_ms"),
        ("ListTasks", {"status": "running"}, "status"),
        ("ListTasks", {"limit": 0}, "limit"),
        ("ListTasks", {"limit": 1_001}, "limit"),
        ("ListTasks", {"offset": 2**53}, "offset"),
        ("ListTasks", {"cursor": "zz"}, "cursor"),
        ("ListTasks", {"cursor": "", "offset": 1}, "offset"),
        ("Claim", CLAIM | {"task_types": []}, "task_types"),
        ("Claim", CLAIM | {"task_types": ["work"] * 101}, "task_types"),
        ("Claim", CLAIM | {"task_types": ["work", ""]}, "task_types[1]"),
        ("Claim", CLAIM | {"count": 0}, "count"),
        ("Claim", CLAIM | {"count": 501}, "count"),
        ("Claim", CLAIM | {"wait_ms": 2**63}, "wait_ms"),
        ("Claim", CLAIM | {"worker_id": ""}, "worker_id"),
        ("Claim", CLAIM | {"request_id": " "}, "request_id"),
        ("Complete", WORD | {"token": 2**63}, "token"),
        ("Progress", WORD | {"fraction": 1.01}, "fraction"),
        ("Progress", WORD | {"fraction": float("nan")}, "fraction"),
        ("Progress", WORD | {"note": "x" * 1_001}, "note"),
        ("Beat", {"worker_id": "w1", "held": [pb.HeldClaim()] * 501}, "held"),
    ],
)
async def test_a_value_out_of_its_limits_is_named(
    client: GrpcClient, name: str, fields: dict[str, Any], field: str
) -> None:
    request = OFFERS[name].kind(
        **{key: value for key, value in fields.items() if value is not None}
    )
    refusal = await refusal_of(client.call(name, request))
    assert (refusal.status, refusal.code) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert refusal.fields == [field]
    assert field in refusal.message


async def test_the_message_says_what_was_sent_and_what_is_right(client: GrpcClient) -> None:
    refusal = await refusal_of(
        client.call("SubmitTask", pb.SubmitTaskRequest(priority=300, **GOOD))
    )
    assert refusal.message == "priority must be a whole number between 0 and 255, got 300"


@pytest.mark.parametrize("name", ["SubmitTask", "Complete"])
async def test_bytes_beyond_10_mib_are_too_many(client: GrpcClient, name: str) -> None:
    size = m.LARGEST_PAYLOAD
    fields = {"SubmitTask": {"task_type": "work"}, "Complete": WORD}[name]
    part = {"SubmitTask": "payload", "Complete": "result"}[name]
    request = OFFERS[name].kind(**fields, **{part: bytes(size + 1)})
    refusal = await refusal_of(client.call(name, request))
    assert (refusal.status, refusal.code) == ("INVALID_ARGUMENT", "PAYLOAD_TOO_LARGE")
    assert refusal.fields == [part]


async def test_a_payload_of_10_mib_comes_back_whole(client: GrpcClient) -> None:
    payload = bytes(range(256)) * (m.LARGEST_PAYLOAD // 256)
    await client.call("SubmitTask", pb.SubmitTaskRequest(task_type="work", payload=payload))
    [one] = await client.claim()
    assert one.payload == payload
    await client.call(
        "Complete", pb.CompleteRequest(task_id=one.task_id, token=one.token, result=payload)
    )
    task = await client.call("GetTaskStatus", pb.GetTaskStatusRequest(task_id=one.task_id))
    assert task.result == payload


GROUPS = b"\x0b" * 10_000
"""Groups within groups, begun and never ended."""


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\xff",  # a text longer than the message
        b"\x08\x01",  # a number where text belongs
        b"\x0a\x02\xc3\x28",  # a text that is not UTF-8
        b"\x18\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",  # a number without an end
        b"\xff" * 40,
        GROUPS,
    ],
    ids=["truncated", "wrong type", "not utf-8", "endless number", "noise", "groups"],
)
@pytest.mark.parametrize("name", sorted(OFFERS))
async def test_a_message_that_cannot_be_read_is_wrong_input(
    client: GrpcClient, name: str, data: bytes
) -> None:
    code = await client.call(name, data).code()
    assert code.name in ("INVALID_ARGUMENT", "NOT_FOUND", "OK")  # a field may pass as unknown
    await client.submit()  # the door goes on


async def test_a_message_that_cannot_be_read_is_said_to_be_so(client: GrpcClient) -> None:
    refusal = await refusal_of(client.call("SubmitTask", b"\xff" * 40))
    assert (refusal.status, refusal.code) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
    assert "taskqueue.SubmitTaskRequest" in refusal.message


async def test_fields_of_a_later_version_are_no_harm(client: GrpcClient) -> None:
    data = pb.SubmitTaskRequest(**GOOD).SerializeToString() + b"\xd2\x3e\x03new"
    assert (await client.call("SubmitTask", data)).status == "pending"


@pytest.mark.parametrize("offer", OFFERS.values(), ids=lambda offer: offer.name)
def test_every_field_of_a_request_is_in_its_message(offer: Offer) -> None:
    message: type[Message] = offer.kind
    assert {field.name for field in message.DESCRIPTOR.fields} == {
        *offer.operation.request.__struct_fields__
    }


@pytest.mark.parametrize("offer", OFFERS.values(), ids=lambda offer: offer.name)
def test_every_field_of_a_reply_is_in_its_message(offer: Offer) -> None:
    replies = offer.operation.replies
    names = set(replies.__struct_fields__) if replies is not None else set()
    assert {field.name for field in offer.response.DESCRIPTOR.fields} == names
