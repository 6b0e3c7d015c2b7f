"""Who gets which task, on every engine: exact order, by types, up to the limit."""

import random

from taskqueue.core.commands import Claim, Complete, Fail, Promote
from taskqueue.core.task import Status
from tests.support.storage import Queue


async def test_the_highest_priority_goes_first_exactly(queue: Queue) -> None:
    priorities = [*range(256)] * 2
    random.Random(5).shuffle(priorities)
    await queue.apply(*(queue.a_submit(priority=one) for one in priorities))
    claimed = await queue.claim(limit=512)
    assert [one.task.priority for one in claimed] == sorted(priorities, reverse=True)


async def test_equal_priorities_go_first_in_first_out(queue: Queue) -> None:
    ids = []
    for _ in range(5):
        applied = await queue.apply(*(queue.a_submit() for _ in range(3)))
        ids += [one.id for one in applied.outcomes]  # type: ignore[union-attr]
        queue.clock.advance(0.001)
    claimed = [one.task.id for _ in range(15) for one in await queue.claim()]
    assert claimed == ids


async def test_a_task_stands_in_line_from_the_moment_it_became_ready(queue: Queue) -> None:
    later = await queue.submit(delay=2)
    queue.clock.advance(1)
    early = await queue.submit()
    queue.clock.advance(2)
    latest = await queue.submit()
    await queue.do(Promote(10))
    order = [one.task.id for one in await queue.claim(limit=3)]
    assert order == [early.id, later.id, latest.id]


async def test_several_types_are_served_in_one_common_order(queue: Queue) -> None:
    tasks = []
    for number in range(30):
        tasks.append(await queue.submit(task_type=f"t{number % 3}", priority=(number * 7) % 4 * 50))
        queue.clock.advance(0.01)
    expected = sorted(tasks, key=lambda task: (-task.priority, task.run_at))
    claimed = await queue.claim("t0", "t1", "t2", limit=30)
    assert [one.task.id for one in claimed] == [task.id for task in expected]


async def test_a_worker_gets_only_the_types_it_names(queue: Queue) -> None:
    await queue.submit(task_type="mail")
    assert await queue.claim("report", "ma", "mail%", "MAIL") == []
    assert len(await queue.claim("report", "mail")) == 1


async def test_a_task_is_given_out_once(queue: Queue) -> None:
    await queue.apply(*(queue.a_submit() for _ in range(10)))
    applied = await queue.apply(*(Claim(f"w{number}", ("work",), 3) for number in range(5)))
    parts = [[one.task.id for one in part] for part in applied.outcomes]  # type: ignore[union-attr]
    assert [len(part) for part in parts] == [3, 3, 3, 1, 0]
    assert len({one for part in parts for one in part}) == 10


async def test_claims_on_different_types_in_one_batch_are_served_in_their_order(
    queue: Queue,
) -> None:
    await queue.apply(queue.a_submit(task_type="a"), queue.a_submit(task_type="b"))
    applied = await queue.apply(
        Claim("w1", ("a", "b"), 1), Claim("w2", ("b",), 2), Claim("w3", ("b", "a"), 2)
    )
    types = [[one.task.task_type for one in part] for part in applied.outcomes]  # type: ignore[union-attr]
    assert types == [["a"], ["b"], []]


async def test_a_claim_is_served_by_a_submit_of_the_same_transaction(queue: Queue) -> None:
    claim = Claim("w", ("work",), 5)
    applied = await queue.apply(claim, queue.a_submit(b"fresh"))
    [claimed] = applied.outcomes[0]  # type: ignore[misc]
    assert claimed.payload == b"fresh"
    assert applied.ready == {}


async def test_a_scheduled_task_waits_for_its_time_and_its_promotion(queue: Queue) -> None:
    task = await queue.submit(delay=10)
    assert await queue.storage.next_due() == task.run_at
    queue.clock.advance(9.999)
    assert await queue.do(Promote(10)) == 0
    assert await queue.claim() == []
    queue.clock.advance(0.001)
    applied = await queue.apply(Promote(10))
    assert (applied.outcomes, applied.ready, applied.next_due) == ([1], {"work": 1}, None)
    assert [one.task.id for one in await queue.claim()] == [task.id]


async def test_promotion_is_sliced_oldest_first_and_says_what_is_left(queue: Queue) -> None:
    tasks = [await queue.submit(delay=seconds) for seconds in (3, 1, 2, 50)]
    queue.clock.advance(10)
    applied = await queue.apply(Promote(2))
    assert (applied.outcomes, applied.next_due) == ([2], tasks[0].run_at)
    assert {one.task.id for one in await queue.claim(limit=9)} == {tasks[1].id, tasks[2].id}
    assert (await queue.apply(Promote(2))).next_due == tasks[3].run_at


async def test_a_failed_task_waits_out_its_delay(queue: Queue) -> None:
    task = await queue.running()
    await queue.do(Fail(task.id, 1, "E", "m"))
    queue.clock.advance(4.99)
    await queue.do(Promote(9))
    assert await queue.claim() == []
    queue.clock.advance(0.01)
    await queue.do(Promote(9))
    assert [one.task.token for one in await queue.claim()] == [2]


async def test_future_tasks_of_high_priority_hide_nothing(queue: Queue) -> None:
    await queue.apply(*(queue.a_submit(priority=255, delay=100) for _ in range(50)))
    low = await queue.submit(priority=0)
    assert [one.task.id for one in await queue.claim(limit=9)] == [low.id]


async def test_running_tasks_can_be_found_by_holder_and_by_deadline(queue: Queue) -> None:
    await queue.apply(*(queue.a_submit(timeout=one * 1_000_000) for one in (5, 10, 15)))
    [first] = await queue.claim(worker_id="a")
    await queue.claim(worker_id="b", limit=2)
    assert await queue.storage.holders() == ["a", "b"]
    assert [one.id for one in await queue.storage.held(["a", "nobody"])] == [first.task.id]
    assert await queue.storage.overdue(queue.clock.steady() + 4_999_999, 10) == []
    late = await queue.storage.overdue(queue.clock.steady() + 10_000_000, 10)
    assert sorted((one.deadline or 0) - queue.clock.steady() for one in late) == [
        5_000_000,
        10_000_000,
    ]
    await queue.do(Complete(first.task.id, 1, b""))
    assert await queue.storage.holders() == ["b"]


async def test_what_a_claim_says_is_what_is_kept(queue: Queue) -> None:
    [claimed] = [await queue.running()]
    detail = await queue.detail(claimed.id)
    assert (detail.task, detail.task.status) == (claimed, Status.IN_PROGRESS)
