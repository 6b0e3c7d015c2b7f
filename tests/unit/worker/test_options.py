"""What an app, its handlers and a context offer besides running."""

import asyncio

import pytest

from taskqueue import App, Context, LeaseLost, Worker, WorkerSettings
from taskqueue.core.errors import InvalidRequest
from taskqueue.wire import messages as m
from taskqueue.worker.entry import load_app
from tests.support.broker import claimed
from tests.support.door import until
from tests.unit.worker.conftest import Bench


async def test_a_handler_in_a_thread_tells_its_progress(bench: Bench) -> None:
    @bench.app.task
    def count(ctx: Context) -> str:
        ctx.progress_sync(0.25, "a quarter")
        return "done"

    await bench.work()
    handle = await count.submit()
    await handle.result()
    status = await handle.status()
    assert (status.progress, status.progress_note) == (0.25, "a quarter")


async def test_a_handler_in_a_thread_learns_that_its_claim_is_lost(bench: Bench) -> None:
    learnt: list[type[Exception]] = []

    @bench.app.task
    def count(ctx: Context) -> int:
        if ctx.token == 1:
            asyncio.run_coroutine_threadsafe(bench.take_back(ctx.task_id), loop).result()
            try:
                ctx.progress_sync(0.5)
            except LeaseLost as error:
                learnt.append(type(error))
                raise
        return ctx.token

    loop = asyncio.get_running_loop()
    await bench.work()
    assert await (await count.submit()).result() == 2
    await until(lambda: bool(learnt))  # the first one may still be about to hear it
    assert learnt == [LeaseLost]


async def test_a_coroutine_is_told_to_await_its_progress(bench: Bench) -> None:
    @bench.app.task(retries=0)
    async def count(ctx: Context) -> None:
        ctx.progress_sync(0.5)

    await bench.work()
    assert "use `await ctx.progress" in await bench.failure(await count.submit())


def test_an_option_that_there_is_not_is_refused() -> None:
    app = App()

    @app.task
    def work() -> None: ...

    with pytest.raises(TypeError, match="no option 'prioritty'"):
        work.options(prioritty=1)  # type: ignore[call-arg]


async def test_options_leave_the_task_as_it_was(bench: Bench) -> None:
    @bench.app.task(priority=7)
    def work() -> None: ...

    urgent = work.options(priority=200).options(retries=0)
    first, second = await urgent.submit(), await work.submit()
    assert ((await first.status()).priority, (await first.status()).max_retries) == (200, 0)
    assert ((await second.status()).priority, (await second.status()).max_retries) == (7, 3)


async def test_a_result_that_a_foreign_worker_left_out_is_none(bench: Bench) -> None:
    @bench.app.task
    def work() -> str | None:
        return "never run here"

    handle = await work.submit()
    [one] = await claimed(bench.door.broker)
    await bench.door.broker.complete(m.CompleteRequest(task_id=one.task.id, token=one.task.token))
    assert (await asyncio.to_thread(handle.result_sync)) is None


async def test_a_worker_goes_to_its_apps_broker_unless_told_otherwise(bench: Bench) -> None:
    @bench.app.task
    def work() -> str:
        return "done"

    worker = Worker(bench.app, settings=WorkerSettings(concurrency=1))
    running = asyncio.create_task(worker.run())
    assert await (await work.submit()).result() == "done"
    worker.stop()
    await running


@pytest.mark.parametrize("path", ["", ":app", ".tasks:app", "no_such_module:app", "json:app"])
def test_an_app_that_is_not_there_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest, match="write module:app"):
        load_app(path)
