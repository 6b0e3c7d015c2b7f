"""Waits for many tasks as a user does; both type checkers find nothing to say here."""

from typing import assert_type

from taskqueue import (
    App,
    Handle,
    TaskFailed,
    TaskQueueError,
    as_completed,
    as_completed_sync,
    gather,
    gather_sync,
)
from taskqueue.testing import InlineQueue, LocalBroker

app = App("127.0.0.1:6379")


@app.task
async def send_email(to: str) -> str:
    return to


@app.task
async def double(number: int) -> int:
    return 2 * number


@app.task
def add(a: int, b: int = 0) -> int:
    return a + b


@app.task
def ship(order: int) -> bytes | None:
    return b"" if order else None


async def many_in_coroutines() -> None:
    adding, doubling = await add.submit(1), await double.submit(2)
    sending, shipping = await send_email.submit("ada"), await ship.submit(1)
    assert_type(await gather(sending), tuple[str])
    assert_type(await gather(adding, sending), tuple[int, str])
    assert_type(await gather(adding, sending, shipping), tuple[int, str, bytes | None])
    assert_type(
        await gather(adding, sending, shipping, doubling, sending, timeout=5),
        tuple[int, str, bytes | None, int, str],
    )
    assert_type(await gather([adding, doubling]), list[int])
    assert_type(await gather({1: adding}.values()), list[int])
    assert_type(
        await gather([adding], return_exceptions=True),
        list[int | TaskQueueError],
    )
    assert_type(
        await gather(adding, doubling, return_exceptions=True),
        tuple[int | TaskQueueError, ...],
    )
    async for handle in as_completed([adding, doubling], timeout=5):
        assert_type(await handle.result(), int)
    await take_any(adding)


def many_elsewhere() -> None:
    adding, sending = add.submit_sync(1), submit_an_email()
    assert_type(gather_sync(adding, sending), tuple[int, str])
    assert_type(gather_sync([adding, adding], timeout=5), list[int])
    assert_type(gather_sync([adding], return_exceptions=True), list[int | TaskQueueError])
    for handle in as_completed_sync([sending]):
        assert_type(handle.result_sync(), str)


def submit_an_email() -> Handle[str]:
    return send_email.submit_sync("ada")


async def take_any(handle: Handle[int | None]) -> None:
    assert_type(await handle.result(), int | None)


def in_tests(broker: LocalBroker) -> None:
    with InlineQueue(app) as queue, broker.working(app):
        assert_type(queue.run_due_sync(), int)
        assert_type(queue.error("id"), BaseException | None)


def told(failed: TaskFailed) -> None:
    assert_type(failed.kind, str)
