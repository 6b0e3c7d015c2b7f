"""What submits can have, and what is done to tasks later, at every door alike."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.three_doors import WAYS, Refused, ThreeDoors, three_doors

pytestmark = pytest.mark.parametrize("way", WAYS)
NO_TASK = "550e8400-e29b-41d4-a716-446655440000"
WORK = ("TYPES", "work")


@pytest.fixture
async def doors(tmp_path: Path) -> AsyncIterator[ThreeDoors]:
    async with three_doors(tmp_path) as doors:
        yield doors


async def run(doors: ThreeDoors, task_id: str, *end: Any) -> None:
    """Have the next task run, which must be this one, and end it in this way."""
    [claimed] = await doors.native.ask("TQ.CLAIM", "w1", *WORK)
    assert claimed[0].decode() == task_id
    word, *rest = end or ("TQ.COMPLETE",)
    await doors.native.ask(word, task_id, claimed[1], *rest)


async def test_labels_are_told_and_found(doors: ThreeDoors, way: str) -> None:
    door = doors.way(way)
    both = await door.submit(tags=["a", "é=1"], metadata={"customer": "ada", "k": "=x"})
    one = await door.submit(tags=["a"])
    none = await door.submit()
    shown = await door.get(both)
    assert shown["tags"] == ["a", "é=1"]
    for other in WAYS:
        found = doors.way(other).find
        assert await found("a") == [one, both]
        assert await found("a", "é=1") == [both]
        assert await found(customer="ada") == [both]
        assert await found("a", k="=x") == [both]
        assert await found("A") == await found(customer="bob") == await found("a", k="x") == []
        assert await found() == [none, one, both]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tags": ["x"] * 21}, "tags"),
        ({"tags": ["x" * 256]}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"metadata": {"k": "x" * 4_097}}, "metadata"),
        ({"metadata": {f"k{number}": "" for number in range(51)}}, "metadata"),
        ({"expires_in_seconds": -1}, "expires_in_seconds"),
        ({"unique_key": "two words"}, "unique_key"),
        ({"unique_key": "k", "unique_while": "always"}, "unique_while"),
        ({"unique_key": "k", "unique_while": "period"}, "unique_seconds"),
        ({"unique_while": "pending"}, "unique_key"),
        ({"retry_jitter": 1.5}, "retry_jitter"),
        ({"retention_seconds": -1}, "retention_seconds"),
    ],
)
async def test_what_cannot_be_is_refused_and_leaves_nothing(
    doors: ThreeDoors, way: str, fields: dict[str, Any], named: str
) -> None:
    with pytest.raises(Refused, match=named) as refused:
        await doors.way(way).submit(**fields)
    assert refused.value.code == "INVALID_REQUEST"
    assert await doors.rest.find() == []


async def test_what_is_not_begun_in_time_is_cancelled_and_says_so(
    doors: ThreeDoors, way: str
) -> None:
    door = doors.way(way)
    begun = await door.submit(expires_in_seconds=5)
    await doors.native.ask("TQ.CLAIM", "w1", *WORK)
    late = await door.submit(expires_in_seconds=5)
    await doors.pass_seconds(4)
    assert (await door.get(late))["status"] == "pending"
    await doors.pass_seconds(2)
    assert (await door.get(begun))["status"] == "in_progress"
    shown = await door.get(late)
    assert (shown["status"], shown["error"].split(":")[0]) == ("cancelled", "Expired")
    assert await doors.native.ask("TQ.CLAIM", "w1", *WORK) == []


async def test_a_unique_key_answers_for_as_long_as_it_is_said_to(
    doors: ThreeDoors, way: str
) -> None:
    door = doors.way(way)
    spans: dict[str, dict[str, Any]] = {
        "pending": {"unique_while": "pending"},
        "running": {},
        "period": {"unique_while": "period", "unique_seconds": 60},
    }
    for name, span in spans.items():
        first = await door.submit(unique_key=name, **span)
        assert await door.submit(unique_key=name, **span) == first
        [claimed] = await doors.native.ask("TQ.CLAIM", "w1", *WORK)
        again = await door.submit(unique_key=name, **span)
        assert (again == first) == (name != "pending")
        if name == "pending":
            await doors.native.ask("TQ.CANCEL", again)
        await doors.native.ask("TQ.COMPLETE", first, claimed[1])
        again = await door.submit(unique_key=name, **span)
        assert (again == first) == (name == "period")
        if name == "period":
            await doors.pass_seconds(61)
            again = await door.submit(unique_key=name, **span)
            assert again != first
        await doors.native.ask("TQ.CANCEL", again)


async def test_the_latest_one_may_take_the_place_of_one_that_waits(
    doors: ThreeDoors, way: str
) -> None:
    door = doors.way(way)
    first = await door.submit(unique_key="k", replace=True)
    second = await door.submit(unique_key="k", replace=True)
    assert (await door.get(first))["status"] == "cancelled"
    await run(doors, second)


async def test_retries_come_after_the_delay_of_the_task(doors: ThreeDoors, way: str) -> None:
    task_id = await doors.way(way).submit(retry_delay_seconds=90, retry_jitter=0)
    await run(doors, task_id, "TQ.FAIL", "not yet")
    await doors.pass_seconds(89)
    assert await doors.native.ask("TQ.CLAIM", "w1", *WORK) == []
    await doors.pass_seconds(1)
    await run(doors, task_id)


async def test_a_task_is_kept_for_as_long_as_it_says(doors: ThreeDoors, way: str) -> None:
    door = doors.way(way)
    brief, usual = await door.submit(retention_seconds=10), await door.submit()
    await run(doors, brief)
    await run(doors, usual)
    await doors.pass_seconds(9)
    assert (await door.get(brief))["status"] == "completed"
    await doors.pass_seconds(2)
    assert await door.find() == [usual]


async def test_ten_thousand_come_in_one_request(doors: ThreeDoors, way: str) -> None:
    ids = await doors.way(way).submit_many(10_000)
    assert len(set(ids)) == 10_000
    assert (await doors.rest.get(ids[-1]))["status"] == "pending"


async def test_what_waits_can_be_given_another_priority_or_time(
    doors: ThreeDoors, way: str
) -> None:
    door = doors.way(way)
    first, second = await door.submit(), await door.submit()
    await door.change(second, priority=255)
    await run(doors, second)
    await door.change(first, delay_seconds=30)
    assert await doors.native.ask("TQ.CLAIM", "w1", *WORK) == []
    await doors.pass_seconds(30)
    await run(doors, first)
    with pytest.raises(Refused, match="completed") as refused:
        await door.change(first, priority=1)
    assert refused.value.code == "INVALID_STATUS"
    with pytest.raises(Refused) as refused:
        await door.change(NO_TASK, priority=1)
    assert refused.value.code == "TASK_NOT_FOUND"
    with pytest.raises(Refused) as refused:
        await door.change(first)
    assert refused.value.code == "INVALID_REQUEST"


async def test_what_has_ended_can_be_deleted_with_all_that_is_its(
    doors: ThreeDoors, way: str
) -> None:
    door = doors.way(way)
    task_id = await door.submit(tags=["t"])
    with pytest.raises(Refused) as refused:
        await door.purge(task_id)
    assert refused.value.code == "INVALID_STATUS"
    await run(doors, task_id, "TQ.FAIL", "no", "RETRYABLE", "no")
    await door.purge(task_id)
    for asked in (door.logs(task_id), door.purge(task_id)):
        with pytest.raises(Refused) as refused:
            await asked
        assert refused.value.code == "TASK_NOT_FOUND"
    assert await door.find("t") == []
    assert await door.submit(task_id=task_id) == task_id  # its id is free again
    assert (await door.get(task_id))["status"] == "pending"


async def test_the_log_of_a_task_has_its_lines_in_order_up_to_a_thousand(
    doors: ThreeDoors, way: str
) -> None:
    door = doors.way(way)
    task_id = await door.submit()
    await doors.native.ask("TQ.CLAIM", "w1", *WORK)
    for number in range(1_005):
        doors.native.client.send("TQ.LOG", task_id, 1, f"{number}", "LEVEL", "warning")
    assert set(await doors.native.client.answers(1_005)) == {b"in_progress"}
    lines = await door.logs(task_id)
    assert lines == [(1, "warning", str(number)) for number in range(1_000)]
    with pytest.raises(Refused) as refused:
        await doors.native.ask("TQ.LOG", task_id, 1, "x" * 8_193)
    assert refused.value.code == "INVALID_REQUEST"
