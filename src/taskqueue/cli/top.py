"""`tq top`: the queue on the terminal, live."""

import asyncio
import os
import signal
import sys
import termios
import tty
from collections.abc import Coroutine, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

from cyclopts import Parameter

from taskqueue.cli.gauges import Gauges, read_gauges
from taskqueue.cli.options import HERE, Target
from taskqueue.cli.output import Color, Form
from taskqueue.client.address import BrokerAddress, broker_addresses
from taskqueue.client.aio import AsyncClient
from taskqueue.core.errors import BrokerUnavailable, InvalidRequest

if TYPE_CHECKING:
    from rich.console import Console

LEAST_INTERVAL: Final = 0.1
CALL_SECONDS: Final = 2.0
ONCE_SECONDS: Final = 0.5
"""Between the two looks that the rates of a single frame come from."""

PIPED_WIDTH: Final = 100
ENDINGS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def top(
    *,
    interval: Annotated[float, Parameter(help="seconds between two frames")] = 1.0,
    once: Annotated[
        bool, Parameter(negative="", help="print one frame and end, as it is where it is piped")
    ] = False,
    color: Annotated[
        Color, Parameter(help="colours: on a terminal (NO_COLOR, CLICOLOR_FORCE), or as said")
    ] = "auto",
    target: Target = HERE,
) -> None:
    """Watch the queue: rates, depth, workers, brokers and what failed last; q or Ctrl-C ends it."""
    if not interval >= LEAST_INTERVAL:
        raise InvalidRequest(
            f"interval must be {LEAST_INTERVAL} seconds or more, got {interval:g}",
            field="interval",
        )
    chosen = target.chosen()
    addresses = broker_addresses(chosen.url, chosen.api_key)
    client = AsyncClient(chosen.url, api_key=chosen.api_key, timeout=CALL_SECONDS)
    console = _console(Form(color=color))
    view = View(client, addresses)
    if once or not sys.stdout.isatty():
        asyncio.run(_print_once(view, console))
    else:
        number = asyncio.run(_run(view, console, interval))
        if number:
            raise SystemExit(128 + number)


class View:
    """What was read last, and the moment before it."""

    def __init__(self, client: AsyncClient, addresses: tuple[BrokerAddress, ...]) -> None:
        self.client = client
        self.before: Gauges | None = None
        self.latest: Gauges | None = None
        self.complaint = ""
        """Why nothing newer can be read."""
        self.name = ", ".join(map(str, addresses))
        self._address = addresses[0]

    async def look(self) -> None:
        """Read it anew. Raises BrokerUnavailable where nothing has been read yet."""
        try:
            read = await read_gauges(self.client, self._address)
        except BrokerUnavailable as error:
            if self.latest is None:
                raise
            self.complaint = error.message
        else:
            self.before, self.latest = self.latest, read
            self.complaint = ""


async def _print_once(view: View, console: "Console") -> None:
    from taskqueue.cli.frame import frame

    async with view.client:
        await view.look()
        await asyncio.sleep(ONCE_SECONDS)
        await view.look()
    console.print(frame(view.name, view.latest, view.before, view.complaint))


async def _run(view: View, console: "Console", interval: float) -> int:
    """Draw until told to end; the number of the signal that told so, 0 for a key."""
    from rich.live import Live

    from taskqueue.cli.frame import frame

    async with view.client:
        await view.look()  # what is wrong with the address is told on the ordinary screen
        ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        with (
            _signals(ended),
            _keys(ended),
            Live(console=console, screen=True, auto_refresh=False) as live,
        ):
            while not ended.done():
                picture = frame(view.name, view.latest, view.before, view.complaint)
                live.update(picture, refresh=True)
                await _wait(asyncio.sleep(interval), ended)
                await _wait(view.look(), ended)
    return ended.result()


async def _wait(work: Coroutine[Any, Any, None], ended: asyncio.Future[int]) -> None:
    """Wait for work, but not once it has been told to end. Raises what the work raises."""
    task = asyncio.ensure_future(work)
    await asyncio.wait((task, ended), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    else:
        task.cancel()
        await asyncio.wait((task,))


@contextmanager
def _signals(ended: asyncio.Future[int]) -> Generator[None, None, None]:
    """A signal settles `ended` instead of ending the process in the middle of a frame."""
    loop = asyncio.get_running_loop()
    for number in ENDINGS:
        loop.add_signal_handler(number, _settle, ended, number)
    try:
        yield
    finally:
        for number in ENDINGS:
            loop.remove_signal_handler(number)


@contextmanager
def _keys(ended: asyncio.Future[int]) -> Generator[None, None, None]:
    """The key q settles `ended`, without Enter; afterwards the terminal is as it was."""
    if not sys.stdin.isatty():
        yield
        return
    loop, descriptor = asyncio.get_running_loop(), sys.stdin.fileno()
    kept = termios.tcgetattr(descriptor)

    def read() -> None:
        data = os.read(descriptor, 64)
        if not data or b"q" in data.lower():
            _settle(ended, 0)

    tty.setcbreak(descriptor)
    loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        loop.remove_reader(descriptor)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, kept)


def _settle(ended: asyncio.Future[int], number: int) -> None:
    if not ended.done():
        ended.set_result(number)


def _console(form: Form) -> "Console":
    from rich.console import Console

    return Console(
        force_terminal=form.is_colored or None,
        no_color=not form.is_colored,
        width=None if sys.stdout.isatty() else PIPED_WIDTH,
        highlight=False,
        markup=False,
    )
