"""Handlers that do to their worker whatever handlers have done to workers."""

import asyncio
import ctypes
import dataclasses
import functools
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from taskqueue import App, Context

MEBIBYTE: Final = 1024 * 1024
LARGEST: Final = 10 * MEBIBYTE

app = App()
hoard: list[bytes] = []


def three_ways(function: Callable[..., Any]) -> Callable[..., Any]:
    """Register a function three times: for the event loop, for a thread, for a process."""

    @functools.wraps(function)
    async def on_loop(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    name = function.__name__
    app.task(name=f"{name}_loop")(on_loop)
    app.task(name=f"{name}_thread")(function)
    app.task(name=f"{name}_process", isolation="process")(function)
    return function


@three_ways
def fine(text: str) -> str:
    """Do what it should."""
    return text


@app.task
async def noop() -> None:
    """Do nothing."""


@three_ways
def give(what: str) -> Any:
    """Return what can hardly be kept."""
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    keyed: dict[str, Any] = {}
    keyed["self"] = keyed
    return {
        "nan": float("nan"),
        "infinity": [{"in": (float("-inf"),)}],
        "5,000 digits": 10**5000,
        "cycle": cyclic,
        "cycle of maps": keyed,
        "lone surrogate": "\ud800",
        "lone surrogate as a key": {"\ud800": 1},
        "object": object(),
        "file": sys.stdout,
        "generator": (number for number in range(3)),
        "one byte too many": "x" * (LARGEST - 1),  # and two quotation marks
        "2 ** 63": 2**63,
        "2 ** 64": 2**64,
        "2 ** 200": 2**200,
        "all that fits": "x" * (LARGEST - 2),
    }[what]


@app.raw("raw_thread")
def raw(payload: bytes) -> bytes:
    """Return so many bytes."""
    return b"x" * int(payload)


app.raw("raw_process", isolation="process")(raw)


class Unpicklable(Exception):
    """Holds what no other process can have, and cannot be made anew from its `args`."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)
        self.second = second
        self.lock = threading.Lock()

    def __reduce__(self) -> Any:
        raise TypeError("not to be pickled")


class Mute(Exception):
    """Has no words."""

    def __str__(self) -> str:
        raise SystemExit("no words")

    __repr__ = __str__


class Wordless(Exception):
    """Says something that is no text."""

    def __str__(self) -> Any:
        return 42


class Own(BaseException):
    """Not an Exception."""


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Lets nobody change it, as people write who like their classes frozen."""

    code: int

    def __str__(self) -> str:
        return f"code {self.code}"


def _round() -> BaseException:
    """An error that is its own cause, by way of another."""
    one, other = ValueError("round"), ValueError("about")
    one.__cause__, other.__cause__ = other, one
    return one


ERRORS: Final[dict[str, Callable[[], BaseException]]] = {
    "unpicklable": lambda: Unpicklable("one", "two"),
    "mute": Mute,
    "wordless": Wordless,
    "own": lambda: Own("own"),
    "frozen": lambda: Frozen(7),
    "exit": lambda: SystemExit(0),
    "exit with an object": lambda: SystemExit(object()),
    "interrupt": KeyboardInterrupt,
    "cancelled": lambda: asyncio.CancelledError("own"),
    "generator's end": GeneratorExit,
    "a cycle of causes": _round,
    "surrogates": lambda: ValueError("\ud800 \x00"),
    "5 MB of words": lambda: ValueError("x" * 5_000_000),
    "group": lambda: BaseExceptionGroup("both", [KeyboardInterrupt(), Mute()]),
}


@three_ways
def fail(how: str) -> None:
    """Raise what can hardly be told."""
    raise ERRORS[how]()


@three_ways
def say_much(megabytes: int) -> int:
    """Print a lot, in lines and without any end of line."""
    for number in range(megabytes):
        print("x" * (MEBIBYTE - 1), end="\n" if number % 2 else "")
    return megabytes


@three_ways
def log_much(megabytes: int) -> int:
    """Log a lot, in records of a mebibyte."""
    for _ in range(megabytes):
        logging.getLogger("jobs").warning("%s", "x" * MEBIBYTE)
    return megabytes


@three_ways
def fork_and_return(text: str) -> list[Any]:
    """Fork, and have the child go on as if it were the handler."""
    child = os.fork()
    if child:
        return [text, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
    return [text + ", twice", 0]


@three_ways
def fork_and_raise(text: str) -> list[Any]:
    """Fork, and have the child raise."""
    child = os.fork()
    if child:
        return [text, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]
    raise SystemExit(text)


@app.task
def fork_and_submit() -> list[Any]:
    """Submit here and in a fork: that must not use the connection of this process."""
    here = noop.submit_sync().task_id
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:
        os.write(theirs, noop.submit_sync().task_id.encode())
        os._exit(0)
    os.close(theirs)
    with os.fdopen(ours) as reader:
        there = reader.read()
    os.waitpid(child, 0)
    return [here, there, noop.submit_sync().task_id]


@app.task(isolation="process")
def die(how: str) -> None:
    """End the process that this runs in."""
    match how:
        case "os._exit(0)":
            os._exit(0)
        case "segfault":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "out of memory":
            _be_killed_for_memory()
        case _:
            os.kill(os.getpid(), signal.Signals[how])


def _be_killed_for_memory() -> None:
    """Take more than a cgroup of its own allows, where there may be one, or be killed as if."""
    group = memory_cgroup()
    if group is None:
        os.kill(os.getpid(), signal.SIGKILL)
        return
    (group / "cgroup.procs").write_text(str(os.getpid()))
    while True:
        hoard.append(os.urandom(MEBIBYTE))


def memory_cgroup() -> Path | None:
    """A new cgroup that allows 64 MiB; None where this user may not make one."""
    for root, limit in (("memory", "memory.limit_in_bytes"), ("", "memory.max")):
        group = Path("/sys/fs/cgroup") / root / f"tq-faults-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        if (group / limit).exists():
            (group / limit).write_text(str(64 * MEBIBYTE))
            return group
        group.rmdir()
    return None


@app.task(isolation="process")
def take_all_memory() -> int:
    """Ask for more than a limit allows: Python says MemoryError."""
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    return len(bytearray(2**31))


@app.task(isolation="process")
def leak(megabytes: int) -> int:
    """Keep what it takes; its process."""
    hoard.append(b"x" * (megabytes * MEBIBYTE))
    return os.getpid()


@app.task
def end_the_worker() -> None:
    """Take the whole worker along."""
    os._exit(0)


@three_ways
def hold(beside: str) -> str:
    """Say in a file who runs, and wait until the file is gone."""
    mark = Path(beside)
    part = mark.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
    part.write_text(str(os.getpid()))
    part.rename(mark)
    while mark.exists():
        time.sleep(0.01)
    return f"done by {os.getpid()}"


@app.task
async def wait(ctx: Context, folder: str) -> int:
    """Say in files when it begins and when it is stopped, and wait until there is `go`."""
    place = Path(folder)
    (place / f"begun {ctx.token}").touch()
    try:
        while not (place / "go").exists():  # noqa: ASYNC110  the event is a file
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        (place / f"stopped {ctx.token}").touch()
        raise
    return ctx.token


@app.task
def note(ctx: Context, folder: str) -> int:
    """As `wait`, in a thread, which nobody can stop."""
    place = Path(folder)
    (place / f"begun {ctx.token}").touch()
    while not (place / "go").exists():
        time.sleep(0.01)
    return ctx.token


@app.task
async def block(ctx: Context, seconds: float) -> int:
    """Keep the event loop busy."""
    if ctx.token == 1:
        time.sleep(seconds)  # noqa: ASYNC251  as people do
    return ctx.token


@app.task
async def block_all(ctx: Context, seconds: int) -> int:
    """Keep the whole interpreter, all its threads, from doing anything."""
    if ctx.token == 1:
        ctypes.PyDLL(None).sleep(seconds)
    return ctx.token


def mark(beside: str) -> None:
    """Make a file."""
    Path(beside).touch()


def is_marked(beside: str) -> bool:
    """Whether nobody has taken it away."""
    return Path(beside).exists()


@app.task
async def ignore_loop(beside: str) -> None:
    """Take no notice of being cancelled."""
    mark(beside)
    while is_marked(beside):
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            continue


@app.task
def ignore_thread(beside: str) -> None:
    """Have nobody look whether it is cancelled."""
    Path(beside).touch()
    while Path(beside).exists():
        time.sleep(0.01)


@app.task(isolation="process")
async def ignore_process(beside: str) -> None:
    """Take no notice of being cancelled, in a process."""
    await ignore_loop.function(beside)
