"""`tq top`: one frame when it is piped, a live view on a terminal that is left as it was."""

import asyncio
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from taskqueue import AsyncClient, SyncClient, Task
from taskqueue.cli.gauges import Gauges
from taskqueue.client.address import broker_addresses
from taskqueue.client.connection import Connection
from taskqueue.wire.figures import HealthReply, StatsReply
from tests.cli_ops.conftest import Tq
from tests.support.broker import BrokerProcess

PATIENCE = 20.0
ALTERNATE_SCREEN, SCREEN_AS_IT_WAS = b"\x1b[?1049h", b"\x1b[?1049l"
CURSOR_SHOWN = b"\x1b[?25h"


class Terminal:
    """A terminal with `tq top` on it."""

    def __init__(self, tq: Tq, *words: str) -> None:
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self.before = self.attributes
        self.shown = b""
        self.process = tq.start(
            *("top", *words), stdin=self._theirs, stdout=self._theirs, stderr=self._theirs
        )

    @property
    def attributes(self) -> list[Any]:
        """How the terminal is set."""
        return termios.tcgetattr(self._theirs)

    def until(self, text: bytes) -> None:
        """Read until something is shown that was not before."""
        ends_at = time.monotonic() + PATIENCE
        begin = len(self.shown)
        while text not in self.shown[begin:]:
            assert time.monotonic() < ends_at, self.shown[-2000:]
            if select.select([self._ours], [], [], 0.1)[0]:
                self.shown += os.read(self._ours, 65_536)

    def end(self) -> int:
        """Read on until it has ended, as a terminal does; its exit code."""
        ends_at = time.monotonic() + PATIENCE
        while self.process.poll() is None:
            assert time.monotonic() < ends_at, self.shown[-2000:]
            if select.select([self._ours], [], [], 0.05)[0]:
                self.shown += os.read(self._ours, 65_536)
        return self.process.returncode

    def press(self, key: bytes) -> None:
        """Type."""
        os.write(self._ours, key)

    def close(self) -> None:
        """End it, if it has not ended."""
        self.process.kill()
        self.process.wait(PATIENCE)
        os.close(self._ours)
        os.close(self._theirs)


@contextmanager
def a_terminal(tq: Tq, *words: str) -> Iterator[Terminal]:
    """A terminal for the block."""
    terminal = Terminal(tq, *words)
    try:
        yield terminal
    finally:
        terminal.close()


def test_piped_it_is_one_frame_of_plain_text(tq: Tq, broker: BrokerProcess) -> None:
    with SyncClient(broker.native) as client:
        client.submit_task(Task("top-me", b"x", priority=250, delay=3600))
    shown = tq("top").out
    assert "\x1b" not in shown
    assert "healthy" in shown
    assert "leader 1, term 1" in shown
    assert "high (200-255)" in shown
    assert shown.count("█") > 0
    assert "0.0/s" in shown  # rates, from two looks
    assert broker.native in shown


async def test_workers_are_shown_with_what_they_tell_of_themselves(
    tq: Tq, broker: BrokerProcess
) -> None:
    (address,) = broker_addresses(broker.native)
    connection = await Connection.connect(address)
    about = b'{"host": "of-the-top", "slots": 4, "busy": 3, "memory_bytes": 52428800}'
    await connection.send(b"TQ.BEAT", b"w-top")
    await connection.send(b"TQ.ABOUT", b"w-top", about)
    shown = (await asyncio.to_thread(tq, "top", "--once")).out
    await connection.send(b"TQ.LEAVE", b"w-top")
    connection.close()
    [line] = [line for line in shown.splitlines() if line.startswith("w-top")]
    assert line.split() == ["w-top", "of-the-top", "3/4", "0", "%", "50", "MB", "work"]


async def test_what_failed_last_is_shown(tq: Tq, broker: BrokerProcess) -> None:
    async with AsyncClient(broker.native) as client:
        failed = await client.submit_task(Task("top-breaks", b"x", max_retries=0))
    (address,) = broker_addresses(broker.native)
    connection = await Connection.connect(address)
    await connection.send(b"TQ.CLAIM", b"top-worker", b"TYPES", b"top-breaks")
    answer = await connection.send(b"TQ.FAIL", failed.encode(), b"1", b"it\x1b[2Jbroke")
    await connection.send(b"TQ.LEAVE", b"top-worker")
    connection.close()
    assert answer == b"dead_letter"
    shown = (await asyncio.to_thread(tq, "top", "--once")).out
    assert failed in shown
    assert "dead_letter" in shown
    assert "\x1b" not in shown  # what an error says is no language of the terminal


@pytest.mark.parametrize(("end", "code"), [(b"q", 0), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_terminal_is_left_as_it_was(tq: Tq, end: bytes | int, code: int) -> None:
    with a_terminal(tq, "--interval", "0.1") as terminal:
        terminal.until(b"healthy")
        assert terminal.attributes != terminal.before
        if isinstance(end, bytes):
            terminal.press(end)
        else:
            terminal.process.send_signal(end)
        terminal.until(SCREEN_AS_IT_WAS)
        assert terminal.end() == code
        assert terminal.attributes == terminal.before
        assert ALTERNATE_SCREEN in terminal.shown
        assert CURSOR_SHOWN in terminal.shown


def test_without_a_broker_it_says_so_on_the_ordinary_screen(tmp_path: Path) -> None:
    ran = Tq("127.0.0.1:1", tmp_path)("top", code=7)
    assert "BROKER_UNAVAILABLE" in ran.complaints
    assert ran.out == ""


def test_rates_are_differences_by_time() -> None:
    before, after = gauges(10.0, completed=100.0), gauges(12.0, completed=140.0)
    assert after.rates(before)["completed"] == 20.0
    assert after.rates(None)["completed"] is None
    assert before.rates(gauges(9.0, completed=500.0))["completed"] == 0.0  # it counts anew


def gauges(taken_at: float, **counted: float) -> Gauges:
    """What was read at a moment."""
    stats = StatsReply(
        pending_count=0,
        in_progress_count=0,
        completed_last_hour=0,
        failed_last_hour=0,
        worker_count=0,
        avg_processing_time_ms=0.0,
        queue_depth_by_priority={},
    )
    health = HealthReply(
        status="healthy",
        is_leader=True,
        connected_workers=0,
        pending_tasks=0,
        cluster_healthy=True,
    )
    return Gauges(taken_at, stats, health, None, counted, None, [], [])
