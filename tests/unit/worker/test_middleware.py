"""What an app puts around executions and submits, and its lifespan."""

import asyncio
import contextvars
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from taskqueue import (
    App,
    CallNext,
    Context,
    ProcessError,
    SubmitNext,
    Task,
    Worker,
    WorkerProcessDied,
    WorkerSettings,
)
from tests.support.door import until
from tests.unit.worker import process_app
from tests.unit.worker.conftest import Bench, a_worker

current: contextvars.ContextVar[str] = contextvars.ContextVar("current", default="nobody")


class Noting:
    """Middleware that is an object: notes what it sees."""

    def __init__(self, name: str, seen: list[str]) -> None:
        self.name = name
        self.seen = seen

    async def __call__(self, ctx: Context, call_next: CallNext) -> bytes:
        self.seen.append(f"{self.name} before {ctx.task_type} {ctx.payload.decode()}")
        try:
            result = await call_next()
        except BaseException as error:
            self.seen.append(f"{self.name} error {type(error).__name__}")
            raise
        self.seen.append(f"{self.name} after {result.decode()}")
        return result


async def test_the_first_middleware_is_outermost(bench: Bench) -> None:
    seen: list[str] = []
    bench.app.middleware(Noting("outer", seen))
    bench.app.middleware(Noting("inner", seen))

    @bench.app.task
    async def double(number: int) -> int:
        seen.append("handler")
        return 2 * number

    await bench.work()
    assert await (await double.submit(4)).result() == 8
    assert seen == [
        'outer before double {"number":4}',
        'inner before double {"number":4}',
        "handler",
        "inner after 8",
        "outer after 8",
    ]


async def test_middleware_sees_errors_of_coroutines_and_threads_and_what_it_sets_is_seen(
    bench: Bench,
) -> None:
    seen: list[str] = []
    bench.app.middleware(Noting("outer", seen))

    @bench.app.middleware
    async def named(ctx: Context, call_next: CallNext) -> bytes:
        current.set(ctx.task_id)
        return await call_next()

    @bench.app.task
    def in_a_thread() -> str:
        return current.get()

    @bench.app.task
    async def on_the_loop() -> str:
        return current.get()

    @bench.app.task(retries=0)
    def broken() -> None:
        raise KeyError(current.get())

    await bench.work()
    for handler in (in_a_thread, on_the_loop):
        handle = await handler.submit()
        assert await handle.result() == handle.task_id
    failing = await broken.submit()
    assert await bench.failure(failing) == f"KeyError: '{failing.task_id}'"
    assert seen[-1] == "outer error KeyError"


async def test_middleware_is_around_processes_too(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    caught: list[ProcessError] = []

    async def catching(ctx: Context, call_next: CallNext) -> bytes:
        try:
            return await call_next()
        except ProcessError as error:
            caught.append(error)
            raise

    monkeypatch.setattr(process_app.app, "execute_middleware", [Noting("outer", seen), catching])
    async with a_worker(process_app.app, bench.door, concurrency=1):
        for task_type, arguments in [
            ("large", {"payload": "x"}),
            ("raising", {"what": "value"}),
            ("end", {"how": "exit"}),
        ]:
            payload = json.dumps(arguments).encode()
            task_id = await bench.app.client.submit_task(Task(task_type, payload, max_retries=0))
            await bench.app.client.wait_for_end(task_id)
    assert [one for one in seen if "before" not in one] == [
        'outer after "x"',
        "outer error ProcessError",
        "outer error WorkerProcessDied",
    ]
    assert str(caught[0]) == "ValueError: no such user ?"
    assert caught[0].failure.traceback.endswith("ValueError: no such user ?\n")
    assert isinstance(caught[1], WorkerProcessDied)


async def test_middleware_may_answer_itself_change_the_result_and_the_error(bench: Bench) -> None:
    @bench.app.middleware
    async def deciding(ctx: Context, call_next: CallNext) -> bytes:
        answers: dict[str, Any] = {
            "skip": b'"skipped"',
            "none": None,
            "large": b'"' + b"x" * (10 * 1024 * 1024) + b'"',
        }
        what = json.loads(ctx.payload)["what"]
        if what in answers:
            return answers[what]  # type: ignore[no-any-return]
        try:
            return (await call_next()).upper()
        except ValueError as error:
            raise RuntimeError("told otherwise") from error

    @bench.app.task(retries=0)
    async def work(what: str) -> str:
        if what == "fail":
            raise ValueError("in the handler")
        return "done"

    await bench.work()
    assert await (await work.submit("skip")).result() == "skipped"
    assert await (await work.submit("change")).result() == "DONE"
    assert "PayloadTooLarge" in await bench.failure(await work.submit("large"))
    assert "must return the bytes of" in await bench.failure(await work.submit("none"))
    handle = await work.submit("fail")
    assert await bench.failure(handle) == "RuntimeError: told otherwise"
    assert "ValueError: in the handler" in (await handle.status()).failures[0].traceback


async def test_middleware_does_not_outlive_the_time_limit(bench: Bench) -> None:
    ended = asyncio.Event()

    @bench.app.middleware
    async def slow(ctx: Context, call_next: CallNext) -> bytes:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return await call_next()

    @bench.app.task(retries=0, timeout=1)
    async def work() -> None: ...

    await bench.work()
    assert (await bench.failure(await work.submit())).startswith("TimedOut")
    assert ended.is_set()


async def test_submit_middleware_sees_and_changes_the_task_in_both_forms(bench: Bench) -> None:
    seen: list[tuple[str, str, int | str]] = []
    ids: list[str] = []

    @bench.app.submit_middleware
    async def urgent(task: Task, call_next: SubmitNext) -> str:
        seen.append(("outer", current.get(), task.priority))
        ids.append(await call_next(task.with_priority(200)))
        return ids[-1]

    @bench.app.submit_middleware
    async def inner(task: Task, call_next: SubmitNext) -> str:
        seen.append(("inner", task.task_type, task.priority))
        return await call_next(task)

    @bench.app.task(priority=7)
    async def work(number: int) -> None: ...

    def elsewhere() -> str:
        current.set("somebody")
        return work.submit_sync(1).task_id

    handles = [(await work.submit(1)).task_id, await asyncio.to_thread(elsewhere)]
    assert handles == ids
    for task_id in ids:
        assert (await bench.app.client.get_status(task_id)).priority == 200
    assert seen == [
        ("outer", "nobody", 7),
        ("inner", "work", 200),
        ("outer", "somebody", 7),
        ("inner", "work", 200),
    ]


async def test_submit_middleware_may_refuse(bench: Bench) -> None:
    @bench.app.submit_middleware
    async def refusing(task: Task, call_next: SubmitNext) -> str:
        raise PermissionError(task.task_type)

    @bench.app.task
    async def work() -> None: ...

    with pytest.raises(PermissionError, match="work"):
        await work.submit()
    with pytest.raises(PermissionError, match="work"):
        await asyncio.to_thread(work.submit_sync)
    assert (await bench.app.client.stats()).pending_count == 0


class Database:
    """What a lifespan opens."""

    def __init__(self) -> None:
        self.is_open = True


async def test_a_lifespan_is_around_the_first_and_the_last_handler(bench: Bench) -> None:
    opened: list[Database] = []
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    @asynccontextmanager
    async def lifespan(app: App) -> AsyncIterator[Database]:
        assert app is bench.app
        opened.append(Database())
        yield opened[0]
        opened[0].is_open = False

    bench.app.lifespan = lifespan

    @bench.app.task
    async def work(ctx: Context[Database]) -> bool:
        has_begun.set()
        await may_end.wait()
        return ctx.state.is_open

    @bench.app.task
    def in_a_thread(ctx: Context[Database], number: int) -> list[Any]:
        return [ctx.state.is_open, number]

    worker = Worker(bench.app, bench.door.addresses, WorkerSettings())
    running = asyncio.create_task(worker.run())
    assert await (await in_a_thread.submit(3)).result() == [True, 3]
    handle = await work.submit()
    await has_begun.wait()
    worker.stop()
    await asyncio.sleep(0)
    assert opened[0].is_open
    may_end.set()
    await running
    assert not opened[0].is_open
    assert await handle.result() is True
    assert len(opened) == 1


async def test_a_lifespan_that_fails_is_the_end_of_the_worker(bench: Bench) -> None:
    @asynccontextmanager
    async def lifespan(_app: App) -> AsyncIterator[None]:
        raise ConnectionError("no database")
        yield

    bench.app.lifespan = lifespan

    @bench.app.task
    async def work() -> None: ...

    handle = await work.submit()
    worker = Worker(bench.app, bench.door.addresses, WorkerSettings())
    with pytest.raises(ConnectionError, match="no database"):
        await worker.run()
    assert (await handle.status()).status == "pending"
    assert worker.worker_id not in bench.door.broker.workers


async def test_a_worker_told_to_stop_while_it_starts_claims_nothing(bench: Bench) -> None:
    may_start, left = threading.Event(), asyncio.Event()

    @asynccontextmanager
    async def lifespan(_app: App) -> AsyncIterator[None]:
        await until(may_start.is_set)
        yield
        left.set()

    bench.app.lifespan = lifespan

    @bench.app.task
    async def work() -> None: ...

    handle = await work.submit()
    worker = Worker(bench.app, bench.door.addresses, WorkerSettings())
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(0)
    worker.stop()
    may_start.set()
    await running
    assert left.is_set()
    assert (await handle.status()).status == "pending"


async def test_without_a_lifespan_there_is_no_state(bench: Bench) -> None:
    @bench.app.task(retries=0)
    async def work(ctx: Context) -> None:
        print(ctx.state)

    await bench.work()
    assert "without a lifespan" in await bench.failure(await work.submit())
