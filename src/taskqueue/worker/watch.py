"""Notices, in a thread of its own, that a handler keeps the event loop busy, and names it."""

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from taskqueue.core.clock import SECOND, SystemClock
from taskqueue.worker.context import Claim

LOOKS_PER_STALL: Final = 4
"""So many times in `seconds` it is asked whether the loop still turns."""

_frames: Final = sys._current_frames  # pyright: ignore[reportPrivateUsage]  it is documented

log = logging.getLogger("taskqueue.worker")


class LoopWatch:
    """Logs each time the loop does not turn for `seconds`, and how long that has lasted; 0: never.

    `claim_of` says, in the watch's thread, for which claim a task of the loop is at work.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        claim_of: Callable[[asyncio.Task[Any]], Claim | None],
    ) -> None:
        self._loop = loop
        self._seconds = seconds
        self._claim_of = claim_of
        self._clock = SystemClock()
        self._stopped = threading.Event()
        self._loop_thread = 0
        self._thread = threading.Thread(target=self._run, name="tq-watch", daemon=True)

    def start(self) -> None:
        """Begin to watch; to be called in the loop's thread."""
        self._loop_thread = threading.get_ident()
        if self._seconds > 0:
            self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopped.set()

    def _run(self) -> None:
        pause = self._seconds / LOOKS_PER_STALL
        with suppress(RuntimeError):  # the loop has ended
            due_at = self._clock.steady() + pause * SECOND
            while not self._stopped.wait(pause):
                self._look(due_at)
                due_at = self._clock.steady() + pause * SECOND

    def _look(self, due_at: float) -> None:
        turned = threading.Event()
        self._loop.call_soon_threadsafe(turned.set)
        about: dict[str, str] = {}
        is_named = not turned.wait(self._seconds)
        if is_named:
            about = self._name_it()
            while not turned.wait(self._seconds) and not self._stopped.is_set():
                pass
        lasted = (self._clock.steady() - due_at) / SECOND
        # Where the whole interpreter stood still there was nobody to name it while it lasted.
        if is_named or lasted > self._seconds:
            log.warning("the event loop was blocked for %.1f s", lasted, extra=about)

    def _name_it(self) -> dict[str, str]:
        frame = _frames().get(self._loop_thread)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else ""
        task = asyncio.current_task(self._loop)
        claim = self._claim_of(task) if task is not None else None
        about = {} if claim is None else {"task_id": claim.task_id, "task_type": claim.task_type}
        culprit = "something" if claim is None else f"task {claim.task_id} ({claim.task_type})"
        log.warning(
            "%s blocks the event loop, for %g s now; run it in a thread or a process:\n%s",
            culprit,
            self._seconds,
            stack,
            extra=about,
        )
        return about
