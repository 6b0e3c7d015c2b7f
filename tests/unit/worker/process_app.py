"""Handlers in processes of their own: a child process imports them from here."""

import asyncio
import ctypes
import faulthandler
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from taskqueue import App, Context, Fail, LeaseLost, Retry, Snooze


@asynccontextmanager
async def lifespan(_app: App) -> AsyncIterator[dict[str, int]]:
    yield {"pid": os.getpid()}


app = App("127.0.0.1:1", lifespan=lifespan)
process = app.task(isolation="process", retries=0)
kept: list[bytes] = []


@process
def where() -> list[int]:
    return [os.getpid(), os.getppid()]


@process
async def where_async(ctx: Context[dict[str, int]]) -> list[int]:
    return [os.getpid(), os.getppid(), ctx.state["pid"]]


@app.raw("turn", isolation="process")
def turn(payload: bytes) -> bytes:
    return payload[::-1]


@app.task
def in_a_thread() -> int:
    return os.getpid()


@process
async def about(ctx: Context, text: str) -> list[Any]:
    await ctx.progress(0.25, "a quarter")
    return [ctx.task_id, ctx.task_type, ctx.attempt, ctx.token, ctx.timeout, text]


@process
def tell(ctx: Context, fraction: float) -> str:
    ctx.progress_sync(fraction, "half \ud800")
    return "told"


@process
def tell_when_lost(ctx: Context, beside: str) -> str:
    if ctx.token > 1:
        return Path(beside).read_text()
    wait_beside(beside)
    try:
        ctx.progress_sync(0.5)
    except LeaseLost:
        Path(beside).write_text("learnt it")
    return ""


@process
def end(how: str) -> None:
    match how:
        case "exit":
            os._exit(0)
        case "segfault":
            faulthandler.disable()  # or else its report is among what the tests print
            ctypes.string_at(0)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)


@process
def raising(what: str) -> None:
    errors: dict[str, BaseException] = {
        "value": ValueError("no such user \ud800"),
        "exit": SystemExit(0),
        "interrupt": KeyboardInterrupt(),
        "cancelled": asyncio.CancelledError("own"),
    }
    raise errors[what]


@process
async def raising_async(what: str) -> None:
    raising.function(what)


@process
def give(what: str) -> Any:
    return {
        "object": object(),
        "nan": float("nan"),
        "surrogate": "\ud800",
        "large": "x" * (10 * 1024 * 1024),
    }[what]


@process
def large(payload: str) -> str:
    return payload


@process
def keep(megabytes: int) -> int:
    kept.append(b"x" * (megabytes * 1024 * 1024))
    return os.getpid()


def _begin(beside: str) -> None:
    part = Path(beside + ".part")
    part.write_text(str(os.getpid()))
    part.rename(beside)


def wait_beside(beside: str) -> None:
    """Make a file that says who waits, and wait until somebody takes it away."""
    _begin(beside)
    while Path(beside).exists():
        threading.Event().wait(0.01)


@process
def stuck(beside: str) -> None:
    Path(beside).write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(3600)  # it holds the interpreter's lock: only SIGKILL ends it


@process
def take_notes(ctx: Context) -> list[Any]:
    if ctx.attempt == 1:
        ctx.log("begun \ud800")
        ctx.checkpoint_sync({"page": 1})
        ctx.checkpoint_sync({"page": 2})
        raise Retry("half-way", delay=0)
    ctx.extend_sync(900)
    ctx.log("about to end", "warning")
    return told_of(ctx)


@process
async def take_notes_async(ctx: Context) -> list[Any]:
    if ctx.attempt == 1:
        ctx.log("begun \ud800")
        await ctx.checkpoint({"page": 1})
        await ctx.checkpoint({"page": 2})
        raise Retry("half-way", delay=0)
    await ctx.extend(900)
    ctx.log("about to end", "warning")
    return told_of(ctx)


app.task(name="take_notes_in_a_thread")(take_notes.function)
app.task(name="take_notes_on_the_loop")(take_notes_async.function)


def told_of(ctx: Context) -> list[Any]:
    """What an attempt knows that has been given 900 seconds more."""
    left = (ctx.deadline - datetime.now(UTC)).total_seconds()
    return [ctx.saved_as(dict), dict(ctx.metadata), 600 < ctx.remaining <= 900, 600 < left <= 901]


@process
def heed(ctx: Context, beside: str, heard: str) -> None:
    _begin(beside)
    ctx.cancelled.wait_sync()
    Path(heard).touch()


@process
async def heed_async(beside: str, heard: str) -> None:
    _begin(beside)
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await asyncio.to_thread(Path(heard).touch)


@process
def ignore(beside: str, heard: str) -> str:
    _begin(beside)
    while True:
        threading.Event().wait(3600)
    return heard


@process
async def ignore_all(beside: str, heard: str) -> str:
    _begin(beside)
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue  # as nobody should
    return heard


@app.task(isolation="process", retries=0, timeout=1)
async def too_long(beside: str) -> None:
    await asyncio.sleep(0)
    stuck.function(beside)


@process
def with_company(beside: str) -> None:
    with subprocess.Popen(["sleep", "3600"]) as company:
        Path(beside).write_text(str(company.pid))


@process
def sockets() -> list[str]:
    return sorted(open_sockets("self"))


def open_sockets(pid: int | str) -> set[str]:
    """The sockets that a process has open, by the names the system gives them."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found.add(str(descriptor.readlink()))
        except FileNotFoundError:
            continue
    return {name for name in found if name.startswith("socket:")}


@process
def forked() -> int:
    child = os.fork()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if child else -1


@process
def say_much(megabytes: int) -> int:
    for _ in range(megabytes):
        print("x" * (1024 * 1024 - 1))
    print("the end", file=sys.stderr)
    logging.getLogger("jobs").warning("said %d MB", megabytes)
    return megabytes


@process
def log(message: str) -> str:
    logger = logging.getLogger("jobs")
    logger.debug("not asked for")
    logger.info("%s \ud800", message)
    try:
        raise ValueError("in between")
    except ValueError:
        logger.exception("went wrong")
    if os.fork() == 0:
        logger.error("from a fork")
        os._exit(0)
    os.wait()
    logger.info("x" * 200_000)
    return message


def ordered(how: str) -> None:
    match how:
        case "retry":
            raise Retry("the mail server is full", delay=7.5)
        case "fail":
            raise Fail("no such address")
        case "snooze":
            raise Snooze(7.5)
        case _:
            raise ValueError(how)


app.task(name="ordered_thread", retries=3)(ordered)
app.task(name="ordered_process", retries=3, isolation="process")(ordered)


@app.task(name="ordered_async", retries=3)
async def ordered_async(how: str) -> None:
    ordered(how)
