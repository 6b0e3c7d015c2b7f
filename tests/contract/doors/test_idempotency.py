"""Idempotency keys and repeatable claims, as clients of REST and the native door use them."""

import asyncio
from pathlib import Path

import pytest

from taskqueue.broker.broker import BrokerSettings
from taskqueue.core.clock import ManualClock
from tests.support.resp import a_resp_house
from tests.support.rest import TASKS, Reply, RestClient, a_rest_client

BODY: dict[str, object] = {"task_type": "work", "payload": "eA=="}


async def submit(client: RestClient, key: str | None, **fields: object) -> Reply:
    """A submit with the header, if there is a key."""
    headers = {} if key is None else {"Idempotency-Key": key}
    return await client.ask("POST", TASKS, {**BODY, **fields}, headers)


async def test_a_repeat_gets_the_first_answer(tmp_path: Path) -> None:
    clock = ManualClock()
    async with a_rest_client(tmp_path, clock=clock) as client:
        first = await submit(client, "order-17")
        clock.advance(3600)
        again = await submit(client, "order-17")
        in_body = await submit(client, None, idempotency_key="order-17")
        both = await submit(client, "order-17", idempotency_key="order-17")
        later = await submit(client, "order-17", delay_seconds=5)
        assert first.status == 201
        for reply in (again, in_body, both, later):
            assert (reply.status, reply.json) == (201, first.json)
        assert (await submit(client, "order-18")).json["task_id"] != first.json["task_id"]


async def test_other_content_under_the_same_key_is_a_conflict(tmp_path: Path) -> None:
    async with a_rest_client(tmp_path) as client:
        await submit(client, "k")
        for change in ({"payload": "eQ=="}, {"priority": 1}, {"task_type": "other"}):
            reply = await submit(client, "k", **change)
            assert (reply.status, reply.code) == (409, "IDEMPOTENCY_CONFLICT")
            assert next(iter(change)) in reply.json["error"]
        assert (await client.ask("GET", TASKS)).json["total"] == 1


async def test_a_key_is_remembered_for_a_day_by_default(tmp_path: Path) -> None:
    clock = ManualClock()
    settings = BrokerSettings(retention_seconds=60)
    async with a_rest_client(tmp_path, clock=clock, broker_settings=settings) as client:
        first = (await submit(client, "k")).json["task_id"]
        await client.ask("DELETE", f"{TASKS}/{first}")
        clock.advance(86_399)
        await client.broker.upkeep.round()
        assert (await client.ask("GET", f"{TASKS}/{first}")).status == 404
        assert (await submit(client, "k")).json["task_id"] == first
        clock.advance(1)
        assert (await submit(client, "k")).json["task_id"] != first


async def test_fifty_at_once_make_one_task(tmp_path: Path) -> None:
    async with a_rest_client(tmp_path) as client:
        replies = await asyncio.gather(*(submit(client, "k") for _ in range(50)))
        assert {reply.status for reply in replies} == {201}
        assert len({reply.json["task_id"] for reply in replies}) == 1
        assert (await client.ask("GET", TASKS)).json["total"] == 1


@pytest.mark.parametrize("key", ["x" * 256, "x" * 10_240, "two words", "\u00a0"])
async def test_a_key_that_cannot_be_one_is_refused_by_name(tmp_path: Path, key: str) -> None:
    async with a_rest_client(tmp_path) as client:
        reply = await submit(client, key)
        assert (reply.status, "Idempotency-Key" in reply.json["error"]) == (400, True)
        assert (await client.ask("GET", TASKS)).json["total"] == 0


async def test_two_keys_for_one_task_are_refused(tmp_path: Path) -> None:
    async with a_rest_client(tmp_path) as client:
        differing = await submit(client, "a", idempotency_key="b")
        assert (differing.status, differing.code) == (409, "IDEMPOTENCY_CONFLICT")
        head = "POST /api/v1/tasks HTTP/1.1\r\nHost: b\r\nConnection: close\r\n"
        head += "Content-Type: application/json\r\nContent-Length: 36\r\n"
        head += "Idempotency-Key: a\r\nIdempotency-Key: a\r\n\r\n"
        answer = await client.raw(head.encode() + b'{"task_type": "work", "payload": ""}')
        assert b" 400 " in answer.splitlines()[0]
        batch = {"tasks": [BODY]}
        reply = await client.ask("POST", f"{TASKS}/batch", batch, {"Idempotency-Key": "a"})
        assert (reply.status, "each task" in reply.json["error"]) == (400, True)


async def test_tasks_of_a_batch_have_keys_of_their_own(tmp_path: Path) -> None:
    async with a_rest_client(tmp_path) as client:
        tasks = [{**BODY, "idempotency_key": key} for key in ("a", "b", "a")]
        tasks.append({**BODY, "idempotency_key": "a", "priority": 7})
        results = (await client.ask("POST", f"{TASKS}/batch", {"tasks": tasks})).json["results"]
        a, b, again, other = results
        assert a == again != b
        assert other["code"] == "IDEMPOTENCY_CONFLICT"


async def test_an_id_and_a_key_must_stand_for_the_same_task(tmp_path: Path) -> None:
    mine, other = "0192f0c1-2f8e-7cc2-98b4-1f2d3c4b5a69", "0192f0c1-2f8e-7cc2-98b4-1f2d3c4b5a70"
    async with a_rest_client(tmp_path) as client:
        assert (await submit(client, "k", task_id=mine)).json["task_id"] == mine
        assert (await submit(client, "k", task_id=mine)).json["task_id"] == mine
        assert (await submit(client, "k")).json["task_id"] == mine
        assert (await submit(client, "k", task_id=other)).code == "IDEMPOTENCY_CONFLICT"


async def test_redis_clients_give_a_key_as_an_option(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path) as house:
        client = await house.connect()
        first = await client.submit("KEY", "order-17")
        assert await client.submit("KEY", "order-17") == first
        conflict = await client.error("TQ.SUBMIT", "work", "other", "KEY", "order-17")
        assert conflict.startswith("IDEMPOTENCY_CONFLICT")


async def test_a_claim_repeated_on_a_new_connection_gets_the_same_tasks(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path) as house:
        first, second = await house.connect(), await house.connect()
        ids = [await first.submit() for _ in range(3)]
        claimed = await first.claim("COUNT", 2, "ID", "c1")
        assert [one[0].decode() for one in claimed] == ids[:2]
        assert await second.claim("COUNT", 2, "ID", "c1") == claimed
        assert [one[0].decode() for one in await second.claim("ID", "c2")] == ids[2:]


async def test_a_claim_repeated_while_the_first_still_waits_takes_its_place(
    tmp_path: Path,
) -> None:
    async with a_resp_house(tmp_path) as house:
        lost, again, other = [await house.connect() for _ in range(3)]
        lost.send("TQ.CLAIM", "w1", "ID", "c1", "BLOCK", 60_000, "TYPES", "work")
        await other.ask("PING")
        again.send("TQ.CLAIM", "w1", "ID", "c1", "BLOCK", 60_000, "TYPES", "work")
        assert await lost.answer() == []
        task_id = await other.submit()
        [[claimed, *_]] = await again.answer()
        assert claimed.decode() == task_id
