"""Keys, the audit log and answers kept for repeats, on every engine."""

from typing import Any

import pytest
from msgspec.structs import replace

from taskqueue.core.audit import Actor
from taskqueue.core.clock import SECOND
from taskqueue.core.commands import (
    Audited,
    Cancel,
    Claim,
    Complete,
    CreateKey,
    NoteKeyUse,
    Purge,
    Release,
    RevokeKey,
    RotateKey,
    Submit,
)
from taskqueue.core.errors import (
    IdempotencyConflict,
    InvalidRequest,
    InvalidStatus,
    KeyExists,
    KeyNotFound,
)
from taskqueue.core.ids import new_task_id
from taskqueue.core.keys import Key, Permission
from taskqueue.core.repeats import Repeat
from taskqueue.core.task import ClaimedTask, Task
from tests.support.storage import Queue

OPERATOR = Actor("key_ops", "ops", "192.0.2.7")


def a_key(queue: Queue, name: str = "ops", *permissions: Permission, **fields: object) -> Key:
    """A key made now, of an administrator unless told otherwise."""
    return Key(
        id=f"key_{name}",
        name=name,
        digest=f"digest of {name}",
        hint="abcd",
        permissions=permissions or (Permission.ADMIN,),
        created_at=queue.clock.wall(),
        **fields,  # type: ignore[arg-type]
    )


def again(queue: Queue, key: str, seconds: int = 60, task_id: str | None = None) -> Repeat:
    """A key under which a request can be repeated for so many seconds."""
    return Repeat(key, queue.clock.wall() + seconds * SECOND, task_id)


async def test_keys_are_kept_with_all_they_have(queue: Queue) -> None:
    ops = await queue.do(CreateKey(a_key(queue)))
    queue.clock.advance(1)
    some = a_key(
        queue,
        "shop",
        Permission.SUBMIT_TASKS,
        Permission.READ_TASKS,
        scope="mail_",
        rate_limit=0,
        expires_at=queue.clock.wall() + SECOND,
    )
    assert await queue.do(CreateKey(some)) == some
    assert await queue.storage.keys() == [ops, some]


async def test_the_rules_for_keys_hold_inside_one_batch(queue: Queue) -> None:
    ops, other = a_key(queue), a_key(queue, "other")
    applied = await queue.apply(
        CreateKey(a_key(queue, "r", Permission.READ_TASKS)),
        CreateKey(ops),
        CreateKey(replace(other, name="ops")),
        CreateKey(other),
        RevokeKey(ops.id),
        RevokeKey(other.id),
        RevokeKey("key_x"),
        RotateKey(ops.id, "d", "h", 1),
        RotateKey(other.id, "d", "h", SECOND),
        NoteKeyUse(other.id, 5),
    )
    first, made, taken, _, revoked, last, unknown, gone, rotated, used = applied.outcomes
    assert isinstance(first, InvalidRequest)
    assert made == ops
    assert isinstance(taken, KeyExists)
    assert isinstance(revoked, Key)
    assert revoked.revoked_at == queue.clock.wall()
    assert isinstance(last, InvalidStatus)
    assert isinstance(unknown, KeyNotFound)
    assert isinstance(gone, InvalidStatus)
    assert isinstance(rotated, Key)
    assert rotated.digests(queue.clock.wall()) == ["d", "digest of other"]
    assert isinstance(used, Key)
    assert (await queue.storage.keys())[1] == used == replace(rotated, used_at=5)


async def test_what_is_audited_is_entered_with_what_came_of_it(queue: Queue) -> None:
    task = await queue.submit()
    await queue.apply(
        Audited(Cancel(task.id), "cancel", OPERATOR),
        Audited(Cancel(task.id), "cancel", Actor(None, None, "192.0.2.8")),
        Audited(CreateKey(a_key(queue)), "create_key", OPERATOR),
    )
    log = await queue.storage.audit_log(before=100, limit=10)
    assert [(one.operation, one.target, one.outcome) for one in log] == [
        ("create_key", "key_ops", "ok"),
        ("cancel", task.id, "INVALID_STATUS"),
        ("cancel", task.id, "ok"),
    ]
    assert [(one.key_id, one.name, one.address) for one in log[1:]] == [
        (None, None, "192.0.2.8"),
        ("key_ops", "ops", "192.0.2.7"),
    ]
    assert {one.at for one in log} == {queue.clock.wall()}
    assert [one.number for one in log] == [3, 2, 1]
    assert await queue.storage.audit_log(before=3, limit=1) == log[1:2]


async def test_old_entries_and_answers_go_with_a_purge(queue: Queue) -> None:
    task = await queue.submit()
    await queue.apply(Audited(Cancel(task.id), "cancel", OPERATOR))
    submit = replace(queue.a_submit(), repeat=again(queue, "k", seconds=10))
    first = await queue.do(submit)
    queue.clock.advance(9)
    await queue.do(Purge(0, 10, audit_before=queue.clock.wall()))
    assert await queue.storage.audit_log(before=100, limit=10) == []
    other = replace(submit, task=replace(submit.task, id=new_task_id()))
    assert (await queue.do(other)).id == first.id
    queue.clock.advance(1)
    await queue.do(Purge(0, 10))
    other = replace(submit, task=replace(submit.task, id=new_task_id()))
    assert (await queue.do(other)).id == other.task.id


async def test_a_submit_under_a_known_key_gets_the_first_answer(queue: Queue) -> None:
    submit = replace(queue.a_submit(b"one"), repeat=again(queue, "order-1"))
    first: Task = await queue.do(submit)
    queue.clock.advance(5)
    for _ in range(2):
        repeat = replace(queue.a_submit(b"one"), repeat=again(queue, "order-1"))
        answer: Task = await queue.do(repeat)
        assert (answer.id, answer.created_at) == (first.id, first.created_at)
    assert await queue.storage.count(None, None) == 1


@pytest.mark.parametrize(
    "change", [{"task_type": "other"}, {"priority": 1}, {"timeout": 1}, {"max_retries": 9}]
)
async def test_a_key_stands_for_one_content(queue: Queue, change: dict[str, Any]) -> None:
    await queue.do(replace(queue.a_submit(), repeat=again(queue, "k")))
    other = replace(queue.a_submit(**change), repeat=again(queue, "k"))
    with pytest.raises(IdempotencyConflict):
        await queue.do(other)
    with pytest.raises(IdempotencyConflict):
        await queue.do(replace(queue.a_submit(b"other"), repeat=again(queue, "k")))
    chosen = replace(queue.a_submit(), repeat=again(queue, "k", task_id=new_task_id()))
    with pytest.raises(IdempotencyConflict):
        await queue.do(chosen)
    assert await queue.storage.count(None, None) == 1


async def test_many_submits_under_one_key_in_one_batch_make_one_task(queue: Queue) -> None:
    submits = [replace(queue.a_submit(), repeat=again(queue, "k")) for _ in range(50)]
    applied = await queue.apply(*submits)
    assert {one.id for one in applied.outcomes if isinstance(one, Task)} == {submits[0].task.id}
    assert await queue.storage.count(None, None) == 1


async def test_a_key_outlives_its_task_and_ends_with_its_time(queue: Queue) -> None:
    submit = replace(queue.a_submit(), repeat=again(queue, "k", seconds=100))
    first: Task = await queue.do(submit)
    await queue.do(Cancel(first.id))
    queue.clock.advance(50)
    assert await queue.do(Purge(queue.clock.wall(), 10)) == 1
    repeat = replace(queue.a_submit(), repeat=again(queue, "k", seconds=100))
    assert (await queue.do(repeat)).id == first.id
    queue.clock.advance(50)
    late = replace(queue.a_submit(), repeat=again(queue, "k", seconds=100))
    assert (await queue.do(late)).id == late.task.id
    after = replace(queue.a_submit(), repeat=again(queue, "k"))
    assert (await queue.do(after)).id == late.task.id


async def claim_as(queue: Queue, key: str, worker_id: str = "w", limit: int = 2) -> list[str]:
    """The ids a repeatable claim gets."""
    claim = Claim(worker_id, ("work",), limit, again(queue, key))
    claimed: list[ClaimedTask] = await queue.do(claim)
    assert all(one.payload == b"x" for one in claimed)
    return [one.task.id for one in claimed]


async def test_a_repeated_claim_gets_the_same_tasks(queue: Queue) -> None:
    tasks = [(await queue.submit()).id for _ in range(5)]
    assert await claim_as(queue, "c1") == tasks[:2]
    assert await claim_as(queue, "c1") == tasks[:2]
    assert await claim_as(queue, "c2") == tasks[2:4]
    assert await claim_as(queue, "c2", worker_id="other") == tasks[4:]


async def test_a_repeated_claim_gets_what_is_still_its_workers(queue: Queue) -> None:
    tasks = [(await queue.submit()).id for _ in range(4)]
    assert await claim_as(queue, "c1") == tasks[:2]
    await queue.do(Complete(tasks[0], 1, b""))
    assert await claim_as(queue, "c1") == tasks[1:2]
    await queue.do(Release(tasks[1], 1))
    # Nothing of it is left: it is a claim like any other.
    assert await claim_as(queue, "c1") == tasks[1:3]


async def test_a_repeat_that_names_other_types_gets_nothing_of_it(queue: Queue) -> None:
    tasks = [(await queue.submit()).id for _ in range(2)]
    assert await claim_as(queue, "c1") == tasks
    other = Claim("w", ("other",), 2, again(queue, "c1"))
    assert await queue.do(other) == []


async def test_a_claim_that_got_nothing_leaves_nothing_behind(queue: Queue) -> None:
    assert await claim_as(queue, "c1") == []
    task = await queue.submit()
    assert await claim_as(queue, "c1") == [task.id]


async def test_a_submit_and_claims_on_it_with_repeats_fit_in_one_batch(queue: Queue) -> None:
    submit: Submit = replace(queue.a_submit(), repeat=again(queue, "k"))
    claim = Claim("w", ("work",), 1, again(queue, "c"))
    applied = await queue.apply(submit, claim, claim)
    assert isinstance(applied.outcomes[1], list)
    assert [one.task.id for one in applied.outcomes[1]] == [submit.task.id]
