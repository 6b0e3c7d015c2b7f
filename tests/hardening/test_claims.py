"""Workers that were cut off, that repeat themselves, that lie about what they hold."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import hiredis
import pytest

from taskqueue.wire.messages import LARGEST_PAYLOAD
from taskqueue.wire.workers import MOST_HELD
from tests.hardening.attacker import a_native_client, all_of, answer_to
from tests.support.door import until
from tests.support.hole import Hole, a_hole
from tests.support.resp import RespClient, RespHouse, Word, a_resp_house, as_dict, words_of

LEASE = 30


async def lost(client: RespClient, worker: str, *claims: Word) -> list[bytes]:
    """The claims that a beat finds lost."""
    named: list[bytes] = as_dict(await client.ask("TQ.BEAT", worker, *claims))["lost"]
    return named


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[RespHouse]:
    async with a_resp_house(tmp_path / "data") as house:
        yield house


async def live(house: RespHouse, seconds: int) -> None:
    """Let time pass as a healthy broker sees it: a round of chores each second."""
    for _ in range(seconds):
        house.clock.advance(1)
        await house.broker.upkeep.round()


async def behind(hole: Hole) -> RespClient:
    """A client that speaks through a hole."""
    return RespClient(*await asyncio.open_connection("127.0.0.1", hole.port))


async def status_of(client: RespClient, task_id: str) -> tuple[str, int]:
    """How a task stands, and how many retries it has cost."""
    task = await client.task(task_id)
    return task["status"].decode(), task["retry_count"]


@pytest.mark.parametrize("words", [("TQ.COMPLETE",), ("TQ.FAIL", "no"), ("TQ.RELEASE",)])
async def test_a_worker_that_was_cut_off_for_a_lease_cannot_speak_for_its_task_any_more(
    house: RespHouse, words: tuple[str, ...]
) -> None:
    """F35: its link is half open, heals, and its late words are refused."""
    other = await house.connect()
    task_id = await other.submit("TIMEOUT", 10_000)
    async with a_hole(house.door.port) as hole:
        cut_off = await behind(hole)
        [task] = await cut_off.claim(worker="w1")
        hole.swallow()
        cut_off.send("TQ.BEAT", "w1", task_id, 1)
        await live(house, LEASE + 1)
        [again] = await other.claim(worker="w2")
        assert (again[0], again[1], again[4]) == (task[0], 2, 2)
        hole.heal()
        healed = await behind(hole)
        error = await healed.error(words[0], task_id, 1, *words[1:])
        assert error.startswith("LEASE_LOST ")
        assert await lost(healed, "w1", task_id, 1) == [task[0]]
        cut_off.hang_up()
        healed.hang_up()
    assert await status_of(other, task_id) == ("in_progress", 1)
    assert await other.ask("TQ.COMPLETE", task_id, 2) == b"completed"


@pytest.mark.parametrize("waits", [False, True])
async def test_a_claim_whose_answer_is_lost_comes_back_after_the_lease(
    house: RespHouse, waits: bool
) -> None:
    """F36: nobody has the task, so nobody may keep it from others for longer."""
    other = await house.connect()
    async with a_hole(house.door.port) as hole:
        deaf = await behind(hole)
        assert await deaf.ask("PING") == b"PONG"
        hole.swallows_answers = True
        if not waits:
            task_id = await other.submit()
        deaf.send("TQ.CLAIM", "w1", "BLOCK", 60_000, "TYPES", "work")
        if waits:
            await until(lambda: house.door.commands == 1)
            task_id = await other.submit()
        await until(lambda: "w1" in house.broker.workers)
        assert await other.claim(worker="w2") == []
        assert await status_of(other, task_id) == ("in_progress", 0)
        await live(house, LEASE + 1)
        [task] = await other.claim(worker="w2")
        assert (task[0].decode(), task[1]) == (task_id, 2)
        deaf.hang_up()


@pytest.mark.parametrize("waits", [False, True])
async def test_a_claim_whose_answer_is_lost_may_be_repeated_by_its_id(
    house: RespHouse, waits: bool
) -> None:
    """F36: the repeat gets the same tasks, under the same tokens, and no more of them."""
    other = await house.connect()
    words = ("TQ.CLAIM", "w1", "COUNT", 2, "BLOCK", 60_000, "ID", "c1", "TYPES", "work")
    async with a_hole(house.door.port) as hole:
        deaf = await behind(hole)
        assert await deaf.ask("PING") == b"PONG"
        hole.swallows_answers = True
        if waits:
            deaf.send(*words)
            await until(lambda: house.door.commands == 1)
        task_ids = [await other.submit() for _ in range(4)]
        if not waits:
            deaf.send(*words)
        await until(lambda: "w1" in house.broker.workers)
        first = await other.ask(*words)
        assert await other.ask(*words) == first
        ids = [task[0].decode() for task in first]
        assert ids == task_ids[: len(ids)]
        assert len(ids) == (1 if waits else 2), "a waiting claim takes the first that comes"
        assert [task[1] for task in first] == [1] * len(ids)
        deaf.hang_up()
    for task_id in task_ids:
        claimed = ("in_progress", 0) if task_id in ids else ("pending", 0)
        assert await status_of(other, task_id) == claimed


ENDS: list[tuple[tuple[Word, ...], tuple[str, int]]] = [
    (("TQ.COMPLETE",), ("completed", 0)),
    (("TQ.FAIL", "no"), ("failed", 1)),
    (("TQ.RELEASE",), ("pending", 0)),
]


@pytest.mark.parametrize(("words", "outcome"), ENDS, ids=lambda value: str(value[0]))
@pytest.mark.parametrize("beat_is_first", [False, True])
async def test_a_beat_on_another_connection_changes_nothing_about_the_end_of_an_attempt(
    house: RespHouse, words: tuple[str, ...], outcome: tuple[str, int], beat_is_first: bool
) -> None:
    """F37: whether it overtakes the word or comes after it."""
    worker, heart = await house.connect(), await house.connect()
    task_id = await worker.submit()
    await worker.claim()
    if beat_is_first:
        assert await lost(heart, "w1", task_id, 1) == []
    await worker.ask(words[0], task_id, 1, *words[1:])
    assert await status_of(worker, task_id) == outcome
    ended = await worker.task(task_id)
    for _ in range(3):
        house.clock.advance(1)
        assert await lost(heart, "w1", task_id, 1) == [task_id.encode()]
    assert await worker.task(task_id) == ended


@pytest.mark.parametrize(("words", "outcome"), ENDS, ids=lambda value: str(value[0]))
async def test_beats_in_the_same_moment_change_nothing_either(
    house: RespHouse, words: tuple[str, ...], outcome: tuple[str, int]
) -> None:
    """F37: a storm of beats, true and false ones, around the word that ends the attempt."""
    worker, other = await house.connect(), await house.connect()
    hearts = [await house.connect() for _ in range(4)]
    for _ in range(10):
        task_id = await worker.submit("TIMEOUT", 10_000)
        [task] = await worker.claim()
        await live(house, 1)
        for heart in hearts:
            for token in (task[1], task[1] + 1, 0):
                heart.send("TQ.BEAT", "w1", task_id, token)
        worker.send(words[0], task_id, task[1], *words[1:])
        for heart in hearts:
            heart.send("TQ.BEAT", "w1", task_id, task[1])
            for answer in await heart.answers(4):
                assert as_dict(answer)["lost"] in ([], [task[0]])
        assert not isinstance(await worker.answer(), hiredis.ReplyError)
        assert await status_of(other, task_id) == outcome
        if outcome[0] != "completed":
            assert await other.ask("TQ.CANCEL", task_id) == b"OK"


async def test_a_beat_that_knows_nothing_of_a_claim_and_its_end_cannot_both_hold(
    house: RespHouse,
) -> None:
    """F37: an old claim is given up by a beat, or completed, and each side is told which."""
    worker, heart = await house.connect(), await house.connect()
    seen: set[str] = set()
    for number in range(40):
        task_id = await worker.submit("TIMEOUT", 10_000)
        await worker.claim()
        for _ in range(LEASE + 1):
            house.clock.advance(1)
            house.broker.workers.renew("w1")
        first, second = (worker, heart) if number % 2 else (heart, worker)
        for client in (first, second):
            if client is worker:
                client.send("TQ.COMPLETE", task_id, 1)
            else:
                client.send("TQ.BEAT", "w1")
        answer = await worker.answer()
        await heart.answer()
        status, retries = await status_of(worker, task_id)
        seen.add(status)
        if isinstance(answer, hiredis.ReplyError):
            assert str(answer).startswith("LEASE_LOST ")
            assert (status, retries) == ("failed", 1)
            await worker.ask("TQ.CANCEL", task_id)
        else:
            assert (answer, status, retries) == (b"completed", "completed", 0)
    assert "completed" in seen


async def test_a_beat_neither_extends_the_time_of_an_attempt_nor_speaks_for_others(
    house: RespHouse,
) -> None:
    """F37, B21."""
    client = await house.connect()
    own, foreign = await client.submit("TIMEOUT", 5), await client.submit("TIMEOUT", 10_000)
    await client.claim(worker="w1")
    await client.claim(worker="w2")
    for _ in range(6):
        await live(house, 1)
        await client.ask("TQ.BEAT", "w1", own, 1, foreign, 1)
    assert (await status_of(client, own))[0] == "failed"
    assert await lost(client, "w1", own, 1, foreign, 1) == [own.encode(), foreign.encode()]
    assert await status_of(client, foreign) == ("in_progress", 0)
    await live(house, LEASE)
    assert await status_of(client, foreign) == ("failed", 1), "nobody has spoken for w2"


async def test_a_beat_may_name_a_claim_twice_and_no_more_claims_than_one_can_hold(
    house: RespHouse,
) -> None:
    """B21."""
    client = await house.connect()
    task_id = await client.submit()
    await client.claim()
    claim: list[Word] = [task_id, 1]
    assert await lost(client, "w1", *(claim * MOST_HELD)) == []
    assert await lost(client, "w1", task_id, 7, *claim) == []
    error = await client.error("TQ.BEAT", "w1", *(claim * (MOST_HELD + 1)))
    assert error.startswith("INVALID_REQUEST held ")
    address = f"127.0.0.1:{house.door.port}"
    million = b"*2000002\r\n" + b"$1\r\n1\r\n" * 2_000_000
    assert (await answer_to(address, million)).startswith(b"-ERR Protocol error: ")
    assert await status_of(client, task_id) == ("in_progress", 0)


async def test_two_workers_with_one_name_lose_time_but_no_task_and_end_none_twice(
    house: RespHouse,
) -> None:
    """B21: the tokens tell them apart, whatever each of them says under the common name."""
    first, second = await house.connect(), await house.connect()
    task_id = await first.submit("TIMEOUT", 10_000, "RETRIES", 1_000)
    await first.claim(worker="twin")
    for _ in range(4):
        await live(house, 10)
        await first.ask("TQ.BEAT", "twin", task_id, 1)
        await second.ask("TQ.BEAT", "twin")
    assert await status_of(first, task_id) == ("failed", 1)
    assert (await first.error("TQ.COMPLETE", task_id, 1)).startswith("LEASE_LOST ")
    [task] = await second.claim(worker="twin")
    assert (task[0].decode(), task[1]) == (task_id, 2)
    assert await lost(first, "twin", task_id, 1) == [task_id.encode()]
    assert await second.ask("TQ.COMPLETE", task_id, 2) == b"completed"


async def test_an_attempt_is_ended_once_by_whoever_holds_it_and_never_after_a_cancel(
    house: RespHouse,
) -> None:
    """B20."""
    client, other = await house.connect(), await house.connect()
    task_id = await client.submit()
    await client.claim()
    assert await client.ask("TQ.COMPLETE", task_id, 1, "RESULT", "first") == b"completed"
    assert await other.ask("TQ.COMPLETE", task_id, 1, "RESULT", "second") == b"completed"
    assert (await client.task(task_id))["result"] == b"first"
    for words in (("TQ.FAIL", task_id, 1, "no"), ("TQ.RELEASE", task_id, 1)):
        assert (await client.error(*words)).startswith("LEASE_LOST ")
    cancelled = await client.submit()
    await client.claim()
    assert (await other.error("TQ.CANCEL", cancelled)).startswith("INVALID_STATUS ")
    await client.ask("TQ.RELEASE", cancelled, 1)
    assert await other.ask("TQ.CANCEL", cancelled) == b"OK"
    assert (await client.error("TQ.COMPLETE", cancelled, 1)).startswith("LEASE_LOST ")
    assert await status_of(client, cancelled) == ("cancelled", 0)
    assert await client.claim() == []


@pytest.mark.parametrize("token", [-1, 2**63, 2**64, "9" * 5_000])
@pytest.mark.parametrize("words", [*(end[0] for end in ENDS), ("TQ.PROGRESS", "0.5")], ids=str)
async def test_a_token_that_cannot_be_one_is_refused(
    house: RespHouse, words: tuple[str, ...], token: Word
) -> None:
    """B20."""
    client = await house.connect()
    task_id = await client.submit()
    await client.claim()
    error = await client.error(words[0], task_id, token, *words[1:])
    assert error.startswith("INVALID_REQUEST token must be ")
    assert await status_of(client, task_id) == ("in_progress", 0)


async def test_results_too_large_to_keep_are_refused_and_the_attempt_goes_on(
    house: RespHouse,
) -> None:
    """B20: from many at once, beside others."""
    async with a_native_client(f"127.0.0.1:{house.door.port}") as client:
        task_ids = [await client.submit() for _ in range(4)]
        await client.claim("COUNT", 4)
        large = b"x" * (LARGEST_PAYLOAD + 1)
        workers = [await house.connect() for _ in task_ids]
        for worker, task_id in zip(workers, task_ids, strict=True):
            worker.send("TQ.COMPLETE", task_id, 1, "RESULT", large)
        assert await client.ask("PING") == b"PONG"
        for worker, task_id in zip(workers, task_ids, strict=True):
            assert str(await worker.answer()).startswith("PAYLOAD_TOO_LARGE result ")
            assert await worker.ask("TQ.COMPLETE", task_id, 1, "RESULT", "small") == b"completed"


async def test_claims_of_thousands_of_types_are_cut_at_the_limit(house: RespHouse) -> None:
    """B22: and none of them is remembered."""
    client = await house.connect()
    for number in (101, 500, 1_000):
        types = [f"t{n}" for n in range(number)]
        error = await client.error("TQ.CLAIM", "w1", "BLOCK", 60_000, "TYPES", *types)
        assert error.startswith("INVALID_REQUEST task_types must be a list of 1 to 100 entries")
    types = [f"t{n}" for n in range(10_000)]
    client.writer.write(words_of("TQ.CLAIM", "w1", "TYPES", *types))
    assert (await all_of(client.reader)).startswith(b"-ERR Protocol error: invalid multibulk")
    assert len(house.broker.workers) == 0
