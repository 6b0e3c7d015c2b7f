"""Two brokers on one database against the model, on random histories that both take part in."""

import asyncio
from contextlib import suppress
from typing import Final

import asyncpg
import pytest

from taskqueue.core.batch import Applied
from taskqueue.core.clock import SECOND, ManualClock
from taskqueue.core.commands import Promote
from taskqueue.storage.cluster import News
from taskqueue.storage.port import Storage
from taskqueue.storage.postgres import membership
from taskqueue.storage.postgres.lanes import MARGIN, Lanes
from tests.support.crew import opened
from tests.support.door import PATIENCE
from tests.support.histories import ClusterHistory, run_histories
from tests.support.postgres import RELEASES, a_database, shared_server
from tests.support.storage import Queue

FAILS_ONCE: Final = """
    CREATE SEQUENCE taskqueue.attempts;
    CREATE FUNCTION taskqueue.fail_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        IF nextval('taskqueue.attempts') = 1 THEN
            RAISE EXCEPTION 'try again' USING ERRCODE = 'serialization_failure';
        END IF;
        RETURN NEW;
    END $$;
    CREATE TRIGGER fail_once BEFORE INSERT ON taskqueue.batches
        FOR EACH ROW EXECUTE FUNCTION taskqueue.fail_once()"""
"""The next transaction is rolled back, and may be carried out again."""


@pytest.mark.parametrize("release", RELEASES)
def test_two_brokers_are_as_the_model(release: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Hypothesis thinks between two steps, and nobody is to take the leadership over meanwhile.
    monkeypatch.setattr(membership, "LEAD_SECONDS", 600.0)
    monkeypatch.setattr(membership, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(membership, "TELL_SECONDS", 0.0)
    with shared_server(release) as server:
        run_histories(lambda: ClusterHistory(server), 3)


async def test_what_was_promoted_beside_a_new_task_is_claimed_first() -> None:
    with shared_server("16") as server:
        async with a_database(server) as dsn, opened(dsn) as one, opened(dsn) as other:
            clock = ManualClock()
            leader, follower = Queue(one, clock), Queue(other, clock)
            waiting = leader.a_submit(delay=5)
            await hear(other, one, await leader.apply(waiting))
            clock.advance(10)
            await follower.running()
            assert await follower.claim() == []
            new = leader.a_submit()
            await hear(other, one, await leader.apply(Promote(10), new))
            claimed = await follower.claim(limit=2)
            assert [one.task.id for one in claimed] == [waiting.task.id, new.task.id]


async def test_the_first_task_of_its_type_is_claimed_where_it_was_promoted() -> None:
    with shared_server("16") as server:
        async with a_database(server) as dsn, opened(dsn) as one, opened(dsn) as other:
            clock = ManualClock()
            leader, follower = Queue(one, clock), Queue(other, clock)
            waiting = await follower.submit(delay=5)
            clock.advance(10)
            await leader.apply(Promote(10))
            [claimed] = await leader.claim()
            assert claimed.task.id == waiting.id


def test_what_others_tell_of_during_a_claim_is_not_passed_over() -> None:
    lanes = Lanes()
    lanes.add([("work", 100)])
    asked = lanes.of(["work"])
    lanes.lower("work", 100, 5 * SECOND)
    lanes.note(asked, [], 1, 100 * SECOND)
    assert [lane.floor for lane in lanes.all()] == [5 * SECOND]
    lanes.note(lanes.all(), [], 1, 100 * SECOND)
    assert [lane.floor for lane in lanes.all()] == [100 * SECOND - MARGIN]


async def test_a_promotion_that_is_carried_out_again_finds_what_it_found_before() -> None:
    with shared_server("16") as server:
        async with a_database(server) as dsn, opened(dsn) as storage:
            queue = Queue(storage, ManualClock())
            waiting = await queue.submit(delay=5)
            queue.clock.advance(300)
            connection = await asyncpg.connect(dsn)
            await connection.execute(FAILS_ONCE)
            await connection.close()
            assert await queue.do(Promote(10)) == 1
            [claimed] = await queue.claim()
            assert claimed.task.id == waiting.id


async def test_what_is_overdue_is_found_until_it_is_taken_back() -> None:
    with shared_server("16") as server:
        async with a_database(server) as dsn, opened(dsn) as storage:
            queue = Queue(storage, ManualClock())
            task = await queue.running(timeout=SECOND)
            for seconds in (2, 70, 4000):
                queue.clock.advance(seconds)
                [overdue] = await storage.overdue(queue.clock.steady(), 100)
                assert overdue.id == task.id


async def hear(hearer: Storage, teller: Storage, applied: Applied) -> None:
    """Let one broker tell another what a transaction of its own did."""
    heard = asyncio.Event()

    def listen(news: News) -> None:
        if news.ready is not None:
            heard.set()

    hearer.cluster.on_news = listen
    async with asyncio.timeout(PATIENCE):
        while not heard.is_set():
            teller.cluster.tell(applied)  # nobody is told as long as it knows of no others
            with suppress(TimeoutError):
                await asyncio.wait_for(heard.wait(), 0.1)
