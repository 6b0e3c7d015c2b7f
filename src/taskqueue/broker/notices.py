"""Workers that wait to be told what they are to stop, instead of for their next heartbeat."""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Final

MOST_KEPT: Final = 500
"""Claims kept for a worker that is between two waits; its heartbeat tells it of any others."""

Claim = tuple[str, int]
"""A task and the token under which it was claimed."""


class Notices:
    """What the workers that ask for it are to be told."""

    def __init__(self) -> None:
        self._news: dict[str, asyncio.Event] = {}
        self._lost: dict[str, deque[Claim]] = {}
        self._waits: dict[str, int] = {}
        self._is_closed = False

    def stopped(self, claims: Iterable[tuple[str, str, int]]) -> None:
        """These claims are over: worker, task, token."""
        for worker_id, task_id, token in claims:
            if worker_id in self._news:
                self._lost[worker_id].append((task_id, token))
                self._news[worker_id].set()

    def ordered(self, worker_id: str) -> None:
        """A worker is to do something else from now on."""
        if worker_id in self._news:
            self._news[worker_id].set()

    async def wait(self, worker_id: str, seconds: float) -> list[Claim]:
        """The claims of a worker that are over, as soon as there are any or it has an order."""
        if self._is_closed:
            return []
        with self._waiting(worker_id) as news:
            try:
                async with asyncio.timeout(seconds):
                    await news.wait()
            except TimeoutError:
                pass
            news.clear()
            lost = list(self._lost[worker_id])
            self._lost[worker_id].clear()
        return lost

    def forget(self, worker_id: str) -> None:
        """A worker has gone."""
        if not self._waits.get(worker_id):
            self._news.pop(worker_id, None)
            self._lost.pop(worker_id, None)

    def close(self) -> None:
        """Answer everybody, and let nobody wait from now on."""
        self._is_closed = True
        for news in self._news.values():
            news.set()

    @contextmanager
    def _waiting(self, worker_id: str) -> Iterator[asyncio.Event]:
        news = self._news.setdefault(worker_id, asyncio.Event())
        self._lost.setdefault(worker_id, deque(maxlen=MOST_KEPT))
        self._waits[worker_id] = self._waits.get(worker_id, 0) + 1
        try:
            yield news
        finally:
            self._waits[worker_id] -= 1
            if not self._waits[worker_id]:
                del self._waits[worker_id]
