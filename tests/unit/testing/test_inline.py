"""An app's tasks in line: the real handlers, codec, retries and delays, at the test's time."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from msgspec import Struct

from taskqueue import (
    App,
    BrokerUnavailable,
    Context,
    IdempotencyConflict,
    InvalidRequest,
    InvalidStatus,
    Status,
    SyncClient,
    Task,
    TaskFailed,
    TaskNotFound,
    WaitTimeout,
)
from taskqueue.core.clock import SECOND
from taskqueue.core.retry import USUAL
from taskqueue.testing import InlineQueue
from taskqueue.worker.middleware import CallNext


class User(Struct):
    name: str
    joined: datetime


ADA = User("Ada", datetime(2024, 1, 1, tzinfo=UTC))


def an_app(seen: list[Any]) -> App:
    """An app whose handlers say in `seen` what they were called with."""
    app = App("127.0.0.1:1")

    @app.task
    async def greet(user: User, *, loud: bool = False) -> str:
        seen.append(user)
        return user.name.upper() if loud else user.name

    @app.task(retries=2, timeout=60)
    def fragile(failures: int, ctx: str = "") -> int:
        seen.append(failures)
        if len(seen) <= failures:
            raise RuntimeError(f"failure {len(seen)}")
        return len(seen)

    @app.task
    async def again(ctx: Context, count: int) -> int:
        await ctx.progress(0.5, "half")
        if count > 0:
            await app.client.submit_task(Task("again", b'{"count": %d}' % (count - 1)))
        return ctx.attempt

    @app.raw("reverse")
    def reverse(payload: bytes) -> bytes:
        return payload[::-1]

    return app


async def test_submits_run_when_the_test_says_so() -> None:
    seen: list[Any] = []
    app = an_app(seen)
    greet: Any = app.handlers["greet"]
    async with InlineQueue(app) as queue:
        handle = await greet.submit(ADA, loud=True)
        assert (await handle.status()).status is Status.PENDING
        assert seen == []
        assert await queue.run_due() == 1
        assert seen == [ADA]  # through JSON and back
        assert seen[0] is not ADA
        assert await handle.result() == "ADA"
        assert [task.status for task in queue.tasks] == [Status.COMPLETED]
        assert queue.calls(greet) == [{"user": ADA, "loud": True}]
        assert await queue.run_due() == 0


def test_tests_without_asyncio_have_the_same() -> None:
    seen: list[Any] = []
    app = an_app(seen)
    greet: Any = app.handlers["greet"]
    fragile: Any = app.handlers["fragile"]
    with InlineQueue(app) as queue:
        assert greet.submit_sync(ADA).result_sync() == "Ada"
        handle = fragile.submit_sync(3)
        assert queue.run_due_sync() == 1
        assert queue.advance_sync(5) == 1
        assert handle.status_sync().status is Status.FAILED
        assert queue.advance_sync(10) == 1
        assert handle.result_sync() == 4
        assert queue.sync_client.submit_many([Task("reverse", b"abc")])
        task_id = queue.tasks_of("reverse")[0].task_id
        assert queue.sync_client.wait_for_result(task_id) == b"cba"


async def test_retries_come_after_the_delays_of_the_core() -> None:
    seen: list[Any] = []
    app = an_app(seen)
    fragile: Any = app.handlers["fragile"]
    async with InlineQueue(app) as queue:
        handle = await fragile.submit(100)
        await queue.run_due()
        for retry in (1, 2):
            seconds = USUAL.delay_before(retry, 0) / SECOND
            assert await queue.advance(seconds - 0.001) == 0
            with pytest.raises(WaitTimeout, match="advance"):
                await handle.result()
            assert await queue.advance(0.001) == 1
        [dead] = queue.dead_letters
        assert [failure.error for failure in dead.failures] == [
            f"RuntimeError: failure {number}" for number in (1, 2, 3)
        ]
        assert "in fragile" in dead.failures[0].traceback
        with pytest.raises(TaskFailed) as failed:
            await handle.result()
        assert isinstance(failed.value.__cause__, RuntimeError)
        await app.client.retry(handle.task_id)
        assert await queue.run_due() == 1


async def test_time_passes_in_steps() -> None:
    """A chain of tasks, each due a while after the one before, runs within one `advance`."""
    app = App("127.0.0.1:1")
    at: list[datetime] = []
    queue = InlineQueue(app, start=datetime(2030, 5, 1, tzinfo=UTC))

    @app.task
    async def tick(left: int) -> None:
        at.append(queue.now)
        if left:
            await tick.options(delay=60).submit(left - 1)

    async with queue:
        await tick.options(delay=30).submit(3)
        assert await queue.advance(100) == 2
        assert at == [queue.now - timedelta(seconds=seconds) for seconds in (70, 10)]
        assert queue.now == datetime(2030, 5, 1, 0, 1, 40, tzinfo=UTC)
        assert await queue.advance(3600) == 2
        due = datetime(2030, 6, 1, tzinfo=UTC)
        await tick.options(schedule_at=due).submit(0)
        await queue.advance((due - queue.now).total_seconds())
        assert at[-1] == due
    with pytest.raises(ValueError, match="does not go back"):
        await queue.advance(-1)


async def test_the_most_urgent_task_runs_first() -> None:
    app = App("127.0.0.1:1")
    order: list[str] = []

    @app.task
    def note(name: str) -> None:
        order.append(name)

    async with InlineQueue(app) as queue:
        for name, priority in (("low", 1), ("first", 200), ("second", 200)):
            await note.options(priority=priority).submit(name)
        await queue.run_due()
    assert order == ["first", "second", "low"]


async def test_an_attempt_that_takes_too_long_is_timed_out() -> None:
    app = App("127.0.0.1:1")
    queue = InlineQueue(app)

    @app.task(timeout=30, retries=0)
    async def slow(seconds: float) -> str:
        queue.clock.advance(seconds)
        return "done"

    async with queue:
        quick = await slow.submit(29.9)
        late = await slow.submit(30)
        await queue.run_due()
        assert await quick.result() == "done"
        with pytest.raises(TaskFailed, match="TimedOut: the attempt took longer than its 30 s"):
            await late.result()


async def test_handlers_wait_for_tasks_they_submit() -> None:
    app = App("127.0.0.1:1")

    @app.task
    def double(number: int) -> int:
        return 2 * number

    @app.task
    def quadruple(number: int) -> int:
        first = double.submit_sync(number).result_sync()
        return double.submit_sync(first).result_sync()

    @app.task
    async def both(number: int) -> int:
        handles = [await double.submit(number), await quadruple.submit(number)]
        return sum([await handle.result() for handle in handles])

    async with InlineQueue(app):
        assert await (await both.submit(1)).result() == 6
    with InlineQueue(app):
        assert both.submit_sync(2).result_sync() == 12


async def test_waits_at_once_share_the_work() -> None:
    app = App("127.0.0.1:1")
    gate = asyncio.Event()

    @app.task
    async def wait_for_gate() -> int:
        await gate.wait()
        return 1

    @app.task
    async def open_gate() -> int:
        gate.set()
        return 2

    async with InlineQueue(app):
        handles = [await wait_for_gate.submit(), await open_gate.submit()]
        results = await asyncio.gather(*(one.result() for one in handles), handles[0].result())
        assert results == [1, 2, 1]


async def test_what_runs_for_ever_is_told() -> None:
    app = App("127.0.0.1:1")

    @app.task
    async def endless() -> None:
        await endless.submit()

    async with InlineQueue(app) as queue:
        await endless.submit()
        with pytest.raises(RuntimeError, match="without an end"):
            await queue.run_due()


async def test_repeats_and_cancels_are_as_at_a_broker() -> None:
    app = an_app([])
    async with InlineQueue(app) as queue:
        client = app.client
        task = Task("reverse", b"x").with_idempotency_key("once")
        task_id = await client.submit_task(task)
        assert await client.submit_task(task) == task_id
        with pytest.raises(IdempotencyConflict):
            await client.submit_task(Task("reverse", b"y").with_task_id(task_id))
        with pytest.raises(InvalidRequest):
            await client.submit_task(Task("reverse", b"x", priority=256))
        await client.cancel(task_id)
        with pytest.raises(InvalidStatus):
            await client.cancel(task_id)
        with pytest.raises(TaskFailed, match="cancelled"):
            await client.wait_for_result(task_id)
        with pytest.raises(TaskNotFound):
            await client.get_status("0" * 8 + "-0000-0000-0000-" + "0" * 12)
        await queue.advance(86_401)
        assert await client.submit_task(task) != task_id


async def test_progress_and_lists_are_as_at_a_broker() -> None:
    app = an_app([])
    async with InlineQueue(app) as queue:
        client = app.client
        await client.submit_task(Task("again", b'{"count": 2}'))
        assert await queue.run_due() == 3
        assert [one.progress_note for one in queue.tasks_of("again")] == ["half"] * 3
        page = await client.list_tasks(task_type="again", limit=2)
        assert (page.total, len(page.tasks)) == (3, 2)
        rest = await client.list_tasks(task_type="again", limit=2, cursor=page.next_cursor)
        assert [one.task_id for one in rest.tasks] == [queue.tasks_of("again")[0].task_id]
        with pytest.raises(BrokerUnavailable, match="in line"):
            await client.stats()
        with pytest.raises(WaitTimeout, match="no handler called 'nobody'"):
            await client.wait_for_end(await client.submit_task(Task("nobody", b"")))


async def test_a_task_cancelled_while_it_runs_keeps_no_result() -> None:
    app = App("127.0.0.1:1")

    @app.task
    async def cancelled(ctx: Context) -> str:
        await app.client.cancel(ctx.task_id, running=True)
        return "too late"

    async with InlineQueue(app) as queue:
        handle = await cancelled.submit()
        await queue.run_due()
        status = await handle.status()
        assert (status.status, status.result) == (Status.CANCELLED, None)


async def test_lifespan_and_middleware_are_the_apps() -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(_app: App) -> AsyncIterator[str]:
        seen.append("opened")
        yield "state"
        seen.append("closed")

    app = App("127.0.0.1:1", lifespan=lifespan)

    @app.middleware
    async def around(ctx: Context[Any], call_next: CallNext) -> bytes:
        seen.append(f"before {ctx.task_type}")
        return await call_next()

    @app.task
    def state(ctx: Context[str]) -> str:
        return ctx.state

    async with InlineQueue(app) as queue:
        assert await (await state.submit()).result() == "state"
        with pytest.raises(RuntimeError, match="in line already"):
            await InlineQueue(app).__aenter__()
        await queue.run_due()
    assert seen == ["opened", "before state", "closed"]
    with pytest.raises(RuntimeError, match="in a block"):
        InlineQueue(app).run_due_sync()


async def test_afterwards_the_app_has_its_own_clients_again() -> None:
    app = an_app([])
    async with InlineQueue(app) as queue:
        assert app.client is queue.client
        await app.close()
        assert app.client is queue.client  # also of an app that has been closed
    assert type(app.clients.sync()) is SyncClient
    await app.close()


async def test_sync_calls_on_the_loop_work_unless_they_would_block() -> None:
    app = an_app([])
    greet: Any = app.handlers["greet"]
    async with InlineQueue(app) as queue:
        handle = greet.submit_sync(ADA)
        assert handle.status_sync().status is Status.PENDING
        await queue.run_due()
        assert handle.result_sync() == "Ada"
        sleeper = threading.Event()

        @app.task
        def sleep() -> None:
            sleeper.wait(30)

        sleep.submit_sync()
        with pytest.raises(RuntimeError, match="would block"):
            queue.run_due_sync()
        sleeper.set()


async def test_ending_a_test_gives_its_task_back() -> None:
    app = App("127.0.0.1:1")
    started = asyncio.Event()

    @app.task
    async def hang() -> None:
        started.set()
        await asyncio.Event().wait()

    async with InlineQueue(app) as queue:
        handle = await hang.submit()
        running = asyncio.create_task(queue.run_due())
        await started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert (await handle.status()).status is Status.PENDING
