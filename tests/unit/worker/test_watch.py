"""An event loop that a handler keeps busy is named in the log."""

import asyncio
import ctypes
import threading

import pytest

from taskqueue.worker.watch import LoopWatch
from tests.support.door import PATIENCE, until
from tests.unit.worker.conftest import Bench

SECONDS = 0.1


def said(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [one.message for one in list(caplog.records) if words in one.message]


def block_until_named(caplog: pytest.LogCaptureFixture) -> None:
    """Keep the loop busy for as long as nobody says so."""
    for _ in range(round(PATIENCE / 0.005)):
        if said(caplog, "blocks the event loop"):
            break
        threading.Event().wait(0.005)


async def test_a_handler_that_blocks_the_loop_is_named_once_and_its_end_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    @bench.app.task
    async def rude() -> None:
        block_until_named(caplog)
        threading.Event().wait(3 * SECONDS)  # long enough for a second word, which must not come

    await bench.work(stall_seconds=SECONDS)
    handle = await rude.submit()
    await handle.result()
    await until(lambda: bool(said(caplog, "was blocked for")))
    [named] = [one for one in caplog.records if "blocks the event loop" in one.message]
    assert f"task {handle.task_id} (rude) blocks the event loop, for 0.1 s now" in named.message
    assert "in rude" in named.message
    assert "in block_until_named" in named.message
    assert (vars(named)["task_id"], vars(named)["task_type"]) == (handle.task_id, "rude")
    [ended] = [one for one in caplog.records if "was blocked for" in one.message]
    assert vars(ended)["task_id"] == handle.task_id
    assert float(ended.message.split()[-2]) >= 2 * SECONDS


async def test_each_stall_is_named(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    @bench.app.task
    async def rude() -> None:
        block_until_named(caplog)

    await bench.work(stall_seconds=SECONDS)
    for _ in range(2):
        await (await rude.submit()).result()
        await until(lambda: bool(said(caplog, "was blocked for")))
        assert len(said(caplog, "(rude) blocks the event loop")) == 1
        caplog.clear()


async def test_what_is_no_task_is_shown_by_its_stack(caplog: pytest.LogCaptureFixture) -> None:
    watch = LoopWatch(asyncio.get_running_loop(), SECONDS, lambda _task: None)
    watch.start()
    block_until_named(caplog)
    watch.stop()
    [named] = said(caplog, "blocks the event loop")
    assert named.startswith("something blocks the event loop")
    assert "in block_until_named" in named


async def test_an_interpreter_that_stood_still_is_told_afterwards(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = LoopWatch(asyncio.get_running_loop(), SECONDS, lambda _task: None)
    watch.start()
    # It holds the interpreter's lock, so that nobody can name it while it lasts.
    await until(lambda: bool(ctypes.PyDLL(None).usleep(500_000) or said(caplog, "was blocked for")))
    watch.stop()


async def test_nobody_watches_where_it_is_not_wanted(bench: Bench) -> None:
    @bench.app.task
    async def polite() -> list[str]:
        return [thread.name for thread in threading.enumerate()]

    await bench.work(stall_seconds=0)
    assert "tq-watch" not in await (await polite.submit()).result()


async def test_the_watch_ends_with_its_worker(bench: Bench) -> None:
    @bench.app.task
    async def polite() -> list[str]:
        return [thread.name for thread in threading.enumerate()]

    worker = await bench.work(stall_seconds=SECONDS)
    assert "tq-watch" in await (await polite.submit()).result()
    worker.stop()
    await until(lambda: "tq-watch" not in {thread.name for thread in threading.enumerate()})
