"""A session carries every word of a worker over one stream, each answered under its own id."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from taskqueue.core.clock import ManualClock
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.doors.grpc.session import MOST_WAITING
from tests.support.broker import submitted, until_parked
from tests.support.grpc import GrpcClient, a_grpc_client, refusal_of, rest_of

ABSENT = "550e8400-e29b-41d4-a716-446655440000"


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[GrpcClient]:
    async with a_grpc_client(tmp_path / "data", clock=ManualClock()) as client:
        yield client


async def ask(session: Any, number: int, **words: Any) -> pb.SessionReply:
    await session.write(pb.SessionRequest(id=number, **words))
    reply: pb.SessionReply = await session.read()
    return reply


def a_claim(**fields: Any) -> pb.ClaimRequest:
    return pb.ClaimRequest(worker_id="w1", task_types=["work"], **fields)


async def test_a_session_carries_every_word(client: GrpcClient) -> None:
    for _ in range(4):
        await submitted(client.broker)
    session = client.session()
    claimed = (await ask(session, 7, claim=a_claim(count=4))).claim.tasks
    words: list[Any] = [{"task_id": one.task_id, "token": one.token} for one in claimed]
    reply = await ask(session, 8, progress=pb.ProgressRequest(**words[0], fraction=0.5))
    assert (reply.id, reply.progress.status) == (8, "in_progress")
    reply = await ask(session, 9, complete=pb.CompleteRequest(**words[0], result=b"r"))
    assert (reply.id, reply.complete.status) == (9, "completed")
    reply = await ask(session, 10, fail=pb.FailRequest(**words[1], message="no"))
    assert (reply.fail.status, reply.fail.retry_count) == ("failed", 1)
    assert (
        await ask(session, 11, release=pb.ReleaseRequest(**words[2]))
    ).release.status == "pending"
    held = [pb.HeldClaim(**words[3])]
    beat = (await ask(session, 12, beat=pb.BeatRequest(worker_id="w1", held=held))).beat
    assert (list(beat.lost), beat.lease_seconds) == ([], 30.0)
    assert (
        await ask(session, 2**64 - 1, leave=pb.LeaveRequest(worker_id="w1"))
    ).leave.released == 1
    await session.done_writing()
    assert await rest_of(session) == []


async def test_an_answer_that_waits_does_not_hold_up_others(client: GrpcClient) -> None:
    session = client.session()
    await session.write(pb.SessionRequest(id=1, claim=a_claim(wait_ms=60_000)))
    assert (await ask(session, 2, beat=pb.BeatRequest(worker_id="w1"))).id == 2
    task = await submitted(client.broker)
    reply = await session.read()
    assert (reply.id, [one.task_id for one in reply.claim.tasks]) == (1, [task.id])


async def test_words_of_a_session_take_effect_in_their_order(client: GrpcClient) -> None:
    await submitted(client.broker)
    session = client.session()
    [one] = (await ask(session, 1, claim=a_claim())).claim.tasks
    word: dict[str, Any] = {"task_id": one.task_id, "token": one.token}
    await session.write(pb.SessionRequest(id=2, release=pb.ReleaseRequest(**word)))
    await session.write(pb.SessionRequest(id=3, complete=pb.CompleteRequest(**word)))
    replies = {reply.id: reply for reply in [await session.read(), await session.read()]}
    assert replies[2].release.status == "pending"
    assert replies[3].error.code == "LEASE_LOST"


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ({}, "INVALID_REQUEST"),
        ({"claim": pb.ClaimRequest(worker_id="w1")}, "INVALID_REQUEST"),
        ({"complete": pb.CompleteRequest(task_id=ABSENT, token=1)}, "TASK_NOT_FOUND"),
        ({"complete": pb.CompleteRequest(task_id="x", token=1)}, "TASK_NOT_FOUND"),
        ({"complete": pb.CompleteRequest(result=bytes(10 * 2**20 + 1))}, "PAYLOAD_TOO_LARGE"),
    ],
)
async def test_an_error_ends_its_request_only(
    client: GrpcClient, words: dict[str, Any], code: str
) -> None:
    session = client.session()
    reply = await ask(session, 5, **words)
    assert (reply.id, reply.error.code) == (5, code)
    assert reply.error.message
    assert (await ask(session, 6, beat=pb.BeatRequest(worker_id="w1"))).HasField("beat")


async def test_a_message_that_cannot_be_read_ends_the_session(client: GrpcClient) -> None:
    session = client.session()
    await session.write(b"\xff" * 9)
    refusal = await refusal_of(session)
    assert (refusal.status, refusal.code) == ("INVALID_ARGUMENT", "INVALID_REQUEST")


async def test_claims_that_wait_cannot_fill_a_session(client: GrpcClient) -> None:
    session = client.session()
    for number in range(MOST_WAITING):
        await session.write(pb.SessionRequest(id=number, claim=a_claim(wait_ms=60_000)))
    reply = await ask(session, 1_000, claim=a_claim(wait_ms=60_000))
    assert (reply.id, reply.error.code) == (1_000, "INVALID_REQUEST")
    assert (await ask(session, 1_001, claim=a_claim())).claim == pb.ClaimResponse()
    await submitted(client.broker)
    assert len((await session.read()).claim.tasks) == 1
    await session.write(pb.SessionRequest(id=1_002, claim=a_claim(wait_ms=60_000)))
    await submitted(client.broker)
    assert len((await session.read()).claim.tasks) == 1  # and no refusal


async def test_thousands_of_words_are_all_answered(client: GrpcClient) -> None:
    number = 3_000
    session = client.session()

    async def write() -> None:
        for one in range(number):
            word = pb.CompleteRequest(task_id=ABSENT, token=1)
            await session.write(pb.SessionRequest(id=one, complete=word))
        await session.done_writing()

    writing = asyncio.create_task(write())
    replies = await asyncio.wait_for(rest_of(session), 60)
    await writing
    assert sorted(reply.id for reply in replies) == [*range(number)]
    assert {reply.error.code for reply in replies} == {"TASK_NOT_FOUND"}


async def test_what_is_claimed_for_a_session_that_has_gone_goes_back(client: GrpcClient) -> None:
    session = client.session()
    for number in range(3):
        await session.write(pb.SessionRequest(id=number, claim=a_claim(wait_ms=60_000)))
    await ask(session, 9, beat=pb.BeatRequest(worker_id="w1"))
    session.cancel()
    await until_parked()
    await submitted(client.broker)
    assert len(await client.claim("w2")) == 1


async def test_a_worker_that_says_no_more_still_gets_its_answers(client: GrpcClient) -> None:
    session = client.session()
    await session.write(pb.SessionRequest(id=1, claim=a_claim(wait_ms=60_000)))
    await session.done_writing()
    await until_parked()
    await submitted(client.broker)
    [reply] = await rest_of(session)
    assert len(reply.claim.tasks) == 1


async def test_a_session_ends_with_the_door(client: GrpcClient) -> None:
    session = client.session()
    await ask(session, 1, beat=pb.BeatRequest(worker_id="w1"))
    refused = asyncio.ensure_future(refusal_of(session))
    await client.broker.close()
    await client.door.close()
    refusal = await asyncio.wait_for(refused, 10)
    assert (refusal.status, refusal.code) == ("UNAVAILABLE", "BROKER_UNAVAILABLE")


async def test_a_session_says_who_it_is_at_once(client: GrpcClient) -> None:
    session = client.session([("x-request-id", "mine")])
    assert dict(await session.initial_metadata())["x-request-id"] == "mine"
