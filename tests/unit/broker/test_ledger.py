"""Group commit: who is told what, and when."""

import asyncio
from pathlib import Path

import pytest

from taskqueue.broker.ledger import Ledger
from taskqueue.broker.metrics import Metrics
from taskqueue.core.batch import Applied, Batch
from taskqueue.core.clock import ManualClock
from taskqueue.core.commands import Cancel, Complete
from taskqueue.core.errors import BrokerUnavailable, OutcomeUnknown, TaskNotFound
from taskqueue.core.ids import new_task_id
from tests.support.broker import a_broker, submitted, until_parked
from tests.support.gate import GatedStorage


def a_ledger(storage: GatedStorage) -> Ledger:
    return Ledger(storage, ManualClock(), Metrics())


async def test_nothing_is_acknowledged_before_its_transaction_is_durable() -> None:
    storage = GatedStorage()
    answer = a_ledger(storage).record(Cancel("t"))
    await until_parked()
    assert storage.begun == 1
    assert not answer.done()
    storage.commit()
    assert await asyncio.wait_for(answer, 5) == 0


async def test_what_arrives_during_a_sync_shares_the_next_transaction() -> None:
    storage = GatedStorage()
    ledger = a_ledger(storage)
    first = ledger.record(Cancel("first"))
    await until_parked()
    others = [ledger.record(Cancel(str(number))) for number in range(7)]
    storage.commit()
    await first
    await until_parked()
    assert [len(batch.commands) for batch in storage.batches] == [1, 7]
    storage.commit()
    await asyncio.gather(*others)


async def test_a_failed_sync_is_told_as_unknown_to_all_of_its_batch_and_the_next_goes_on() -> None:
    storage = GatedStorage()
    ledger = a_ledger(storage)
    doomed = [ledger.record(Cancel("a")), ledger.record(Cancel("b"))]
    await until_parked()
    storage.fail(OutcomeUnknown("outcome unknown"))
    for answer in doomed:
        with pytest.raises(OutcomeUnknown):
            await answer
    assert not ledger.is_writable
    later = ledger.record(Cancel("c"))
    await until_parked()
    storage.commit()
    await later
    assert ledger.is_writable


async def test_closing_settles_what_was_taken_and_takes_nothing_more() -> None:
    storage = GatedStorage()
    ledger = a_ledger(storage)
    taken = ledger.record(Cancel("t"))
    closing = asyncio.ensure_future(ledger.close())
    await until_parked()
    with pytest.raises(BrokerUnavailable):
        ledger.record(Cancel("late"))
    storage.commit()
    await closing
    assert taken.done()


async def test_memory_is_bounded_when_the_disk_stands_still() -> None:
    storage = GatedStorage()
    ledger = a_ledger(storage)
    result = bytes(8 * 1024 * 1024)
    taken = [ledger.record(Complete("t", 1, result)) for _ in range(33)]
    with pytest.raises(BrokerUnavailable) as refused:
        ledger.record(Complete("t", 1, result))
    assert refused.value.retry_after
    for _ in range(40):
        await until_parked(2)
        storage.commit()
    await asyncio.gather(*taken)


async def test_a_bad_command_spoils_none_of_its_batch(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as broker:
        ledger = broker._ledger
        good = submitted(broker)
        bad = ledger.record(Cancel(new_task_id()))
        assert (await good).status == "pending"
        with pytest.raises(TaskNotFound):
            await bad


async def test_the_caller_may_go_and_the_commit_stays(tmp_path: Path) -> None:
    async with a_broker(tmp_path) as broker:
        task = await submitted(broker)
        gone = broker._ledger.record(Cancel(task.id))
        gone.cancel()
        await until_parked()
        assert (await broker._storage.get(task.id)).task.status == "cancelled"  # type: ignore[union-attr]


def test_the_hooks_are_called_before_anyone_is_told() -> None:
    async def story() -> list[str]:
        storage, told = GatedStorage(), list[str]()
        ledger = a_ledger(storage)

        def note(_batch: Batch, _applied: Applied) -> None:
            told.append("hook")

        ledger.on_commit = note
        answer = ledger.record(Cancel("t"))
        answer.add_done_callback(lambda _: told.append("caller"))
        await until_parked()
        storage.commit()
        await answer
        return told

    assert asyncio.run(story()) == ["hook", "caller"]
