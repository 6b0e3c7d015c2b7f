"""The order of answers, what blocks whom, and what becomes of those who leave while they wait."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import hiredis
import pytest

from taskqueue.core.batch import Applied, Batch
from taskqueue.core.ids import new_task_id
from taskqueue.storage.engines import open_storage
from taskqueue.storage.port import Totals
from tests.support.broker import submitted, until_parked
from tests.support.door import until
from tests.support.resp import RespHouse, Word, a_resp_house, as_dict, words_of

HOUR = 3_600_000


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[RespHouse]:
    async with a_resp_house(tmp_path / "data") as house:
        yield house


def a_claim(worker: str = "w1", block: int = HOUR) -> tuple[Word, ...]:
    return ("TQ.CLAIM", worker, "BLOCK", block, "TYPES", "work")


async def test_answers_come_in_the_order_of_the_commands_whatever_they_are(
    house: RespHouse,
) -> None:
    client = await house.connect()
    expected: list[object] = []
    errors = {
        "TQ.GET": "TASK_NOT_FOUND",
        "TQ.NIX": "ERR",
        "TQ.CANCEL": "TASK_NOT_FOUND",
        "TQ.BEAT": "INVALID_REQUEST",
    }
    for _ in range(300):
        task_id = new_task_id()
        client.send("TQ.SUBMIT", "work", "x", "ID", task_id)
        client.send("TQ.GET", new_task_id())
        client.send("PING", task_id)
        client.send("TQ.NIX")
        client.send("TQ.CANCEL", new_task_id())
        client.send("TQ.LEAVE", "w1")
        client.send("TQ.BEAT")
        client.send("ECHO", "")
        expected += [task_id.encode(), errors["TQ.GET"], task_id.encode(), errors["TQ.NIX"]]
        expected += [errors["TQ.CANCEL"], 0, errors["TQ.BEAT"], b""]
    for one in expected:
        answer = await client.answer()
        if isinstance(answer, hiredis.ReplyError):
            answer = str(answer).partition(" ")[0]
        assert answer == one


async def test_a_whole_life_may_be_sent_ahead_in_one_piece(house: RespHouse) -> None:
    client = await house.connect()
    ids = [new_task_id() for _ in range(50)]
    for task_id in ids:
        client.send("TQ.SUBMIT", "work", task_id, "ID", task_id)
        client.send(*a_claim())
        client.send("TQ.COMPLETE", task_id, 1, "RESULT", task_id)
        client.send("TQ.WAIT", task_id, HOUR)
    for task_id in ids:
        submit, [claim], completed, task = await client.answers(4)
        assert submit == claim[0] == claim[3] == task_id.encode()
        assert completed == b"completed"
        assert as_dict(task)["result"] == task_id.encode()


async def test_far_more_commands_than_may_be_under_way_are_all_answered(house: RespHouse) -> None:
    client = await house.connect()
    for number in range(5_000):
        client.send("TQ.SUBMIT", "work", number)
    assert {len(one) for one in await client.answers(5_000)} == {36}
    assert (await client.ask("TQ.STATS"))[1] == 5_000
    await until(lambda: house.door.held_bytes == 0)


@pytest.mark.parametrize("blocks", ["claim", "wait"])
async def test_what_blocks_holds_up_those_behind_it_and_nobody_else(
    house: RespHouse, blocks: str
) -> None:
    client, other = await house.connect(), await house.connect()
    first = await client.submit(task_type="other")
    await client.claim(task_type="other")
    client.send(*(a_claim() if blocks == "claim" else ("TQ.WAIT", first, HOUR)))
    client.send("TQ.SUBMIT", "behind", "x")
    client.send("PING")
    await until_parked()
    assert await other.ask("PING") == b"PONG"
    assert await other.claim(task_type="behind") == [], "what is behind has not begun"
    if blocks == "claim":
        task_id = await other.submit()
    else:
        await other.ask("TQ.COMPLETE", first, 1)
    answer, behind, pong = await client.answers(3)
    if blocks == "claim":
        assert answer[0][0].decode() == task_id
    else:
        assert as_dict(answer)["status"] == b"completed"
    assert pong == b"PONG"
    assert (await other.claim(task_type="behind"))[0][0] == behind


async def test_a_claim_that_does_not_block_holds_up_nobody(house: RespHouse) -> None:
    client = await house.connect()
    client.send("TQ.CLAIM", "w1", "TYPES", "work")
    client.send("TQ.SUBMIT", "other", "x")
    assert await client.answer() == []
    assert len(await client.answer()) == 36


async def test_waiting_claims_are_served_first_come_first_served(house: RespHouse) -> None:
    clients = [await house.connect() for _ in range(5)]
    for number, client in enumerate(clients):
        client.send(*a_claim(f"w{number}"))
        await until(lambda: house.door.commands > number)  # noqa: B023  awaited here
        await until_parked(5)
    producer = await house.connect()
    for client in clients:
        task_id = await producer.submit()
        [task] = await client.answer()
        assert task[0].decode() == task_id


async def test_tasks_that_become_due_wake_a_claim(house: RespHouse) -> None:
    client, producer = await house.connect(), await house.connect()
    task_id = await producer.submit("DELAY", 60)
    client.send(*a_claim())
    await until(lambda: house.door.commands == 2)
    house.clock.advance(60)
    await house.broker.upkeep.promote()
    assert (await client.answer())[0][0].decode() == task_id


@pytest.mark.parametrize("farewell", ["abort", "close", "half close"])
async def test_a_client_that_leaves_while_it_claims_takes_nothing_with_it(
    house: RespHouse, farewell: str
) -> None:
    leaver, other = await house.connect(), await house.connect()
    leaver.send(*a_claim("gone"))
    leaver.send(*a_claim("gone"))
    await until(lambda: house.door.commands == 1)
    await until_parked(5)
    match farewell:
        case "abort":
            leaver.hang_up()
        case "close":
            leaver.writer.close()
        case "half close":
            leaver.writer.write_eof()
            assert b"BROKER_UNAVAILABLE" in await leaver.rest()
    await until(lambda: house.connections == 1)
    task_id = await other.submit()
    [task] = await other.claim()
    assert (task[0].decode(), task[1], task[4]) == (task_id, 1, 1), "nobody had it before"


async def test_a_task_on_its_way_to_a_client_that_has_left_goes_to_the_next_at_no_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(tmp_path / "data")
    apply, is_done, is_told = storage.apply, asyncio.Event(), asyncio.Event()

    async def apply_and_keep_silent(batch: Batch) -> Applied:
        applied = await apply(batch)
        is_done.set()
        await is_told.wait()
        return applied

    async with a_resp_house(tmp_path / "data", storage=storage) as house:
        leaver, other = await house.connect(), await house.connect()
        leaver.send(*a_claim("gone"))
        await until(lambda: house.door.commands == 1)
        await until_parked(5)
        monkeypatch.setattr(storage, "apply", apply_and_keep_silent)
        other.send("TQ.SUBMIT", "work", "x", "RETRIES", 0)
        await is_done.wait()
        leaver.hang_up()
        await until(lambda: house.connections == 1)
        is_told.set()
        task_id = await other.answer()
        [task] = await other.ask(*a_claim("stays"))
        assert (task[0], task[1], task[4]) == (task_id, 2, 1), "claimed before, at no cost"
        assert await other.ask("TQ.COMPLETE", task_id, task[1]) == b"completed"


async def test_tasks_whose_answer_was_still_in_the_queue_go_back_at_no_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(tmp_path / "data")
    may_answer = asyncio.Event()
    totals = storage.totals

    async def slow_totals(since: int) -> Totals:
        await may_answer.wait()
        return await totals(since)

    monkeypatch.setattr(storage, "totals", slow_totals)
    async with a_resp_house(tmp_path / "data", storage=storage) as house:
        leaver, other = await house.connect(), await house.connect()
        task_id = await other.submit()
        leaver.send("TQ.STATS")
        leaver.send("TQ.CLAIM", "gone", "TYPES", "work")
        await until(lambda: "gone" in house.broker.workers)
        await until_parked()
        reset = struct.pack("ii", 1, 0)
        leaver.writer.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_LINGER, reset
        )
        leaver.hang_up()
        await until(lambda: house.connections == 1)
        [task] = await other.ask(*a_claim("stays"))
        assert (task[0].decode(), task[1], task[4]) == (task_id, 2, 1), "claimed before, at no cost"
        may_answer.set()


async def test_a_client_that_leaves_while_it_waits_is_forgotten(house: RespHouse) -> None:
    leaver, other = await house.connect(), await house.connect()
    task_id = await other.submit()
    tasks_before = len(asyncio.all_tasks())
    leaver.send("TQ.WAIT", task_id, HOUR)
    await until(lambda: len(asyncio.all_tasks()) > tasks_before)
    leaver.hang_up()
    await until(lambda: len(asyncio.all_tasks()) <= tasks_before)
    assert house.connections == 1
    assert house.door.held_bytes == 0


async def test_what_was_sent_before_leaving_is_done(house: RespHouse) -> None:
    client = await house.connect()
    for _ in range(500):
        client.send("TQ.SUBMIT", "work", "x")
    client.writer.write_eof()
    answers = await client.rest()
    assert answers.count(b"$36\r\n") == 500
    assert (await (await house.connect()).ask("TQ.STATS"))[1] == 500


@pytest.mark.parametrize("size", [1, 2, 7, 40])
async def test_a_connection_may_break_at_any_byte_of_its_commands(
    house: RespHouse, size: int
) -> None:
    first, second = new_task_id(), new_task_id()
    data = words_of("TQ.SUBMIT", "work", "x", "ID", first) * 2
    data += words_of("TQ.SUBMIT", "work", "x", "ID", second)
    for end in range(0, len(data) + 1, size):
        client = await house.connect()
        client.writer.write(data[:end])
        await client.writer.drain()
        client.hang_up()
    await until(lambda: house.connections == 0)
    client = await house.connect()
    assert await client.submit("ID", first) == first
    assert await client.submit("ID", second) == second
    assert (await client.ask("TQ.STATS"))[1] == 2, "each is there once"


async def test_an_answer_that_was_never_read_is_given_again(house: RespHouse) -> None:
    worker, other = await house.connect(), await house.connect()
    task_id = await worker.submit()
    await worker.claim()
    for _ in range(3):
        worker.send("TQ.COMPLETE", task_id, 1, "RESULT", "done")
        await worker.writer.drain()
        worker.hang_up()
        worker = await house.connect()
    assert await other.ask("TQ.COMPLETE", task_id, 1, "RESULT", "done") == b"completed"
    assert (await other.task(task_id))["result"] == b"done"


async def test_five_hundred_waiting_claims_are_answered_when_the_broker_goes(
    house: RespHouse,
) -> None:
    clients = [await house.connect() for _ in range(500)]
    for number, client in enumerate(clients):
        client.send(*a_claim(f"w{number}"))
        client.send("PING")
    await until(lambda: house.door.commands == 500)
    await until_parked(5)
    await house.close()
    for client in clients:
        assert await client.rest() == b"*0\r\n+PONG\r\n"
    assert house.connections == 0


async def test_what_comes_after_the_end_is_refused_or_unheard(house: RespHouse) -> None:
    client = await house.connect()
    await client.ask("PING")
    await house.broker.close()
    assert (await client.error("TQ.SUBMIT", "work", "x")).startswith("BROKER_UNAVAILABLE ")
    assert await client.ask("PING") == b"PONG"
    port = house.door.port
    await house.door.close()
    assert await client.rest() == b""
    with pytest.raises(OSError, match=r"refused|Connect call failed"):
        await asyncio.open_connection("127.0.0.1", port)


async def test_a_busy_client_does_not_starve_the_others(house: RespHouse) -> None:
    busy, other = await house.connect(), await house.connect()
    for _ in range(20_000):
        busy.send("TQ.SUBMIT", "busy", "x")
    task_id = await other.submit()
    assert (await other.claim())[0][0].decode() == task_id
    assert house.door.commands < 20_000, "the other one was served in between"
    await submitted(house.broker)
    assert {len(one) for one in await busy.answers(20_000)} == {36}


async def test_a_thousand_waits_all_hear_of_the_end_and_of_nothing_before(tmp_path: Path) -> None:
    async with a_resp_house(tmp_path) as house:
        worker = await house.connect()
        task_id = await worker.submit()
        waiting = [await house.connect() for _ in range(1_000)]
        for client in waiting:
            client.send("TQ.WAIT", task_id, 60_000)
        for _ in range(2):
            [[_, token, *_]] = await worker.claim()
            assert await worker.ask("TQ.FAIL", task_id, token, "no", "DELAY", 0) == b"failed"
        [[_, token, *_]] = await worker.claim()
        assert await worker.ask("TQ.COMPLETE", task_id, token, "RESULT", "done") == b"completed"
        for client in waiting:
            answer = as_dict(await client.answer())
            assert (answer["status"], answer["result"]) == (b"completed", b"done")
