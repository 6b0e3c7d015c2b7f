"""What other brokers on the same engine do, as far as it concerns those who wait at this one."""

import asyncio
from typing import Final

import structlog

from taskqueue.broker.notices import Notices
from taskqueue.broker.updates import Updates
from taskqueue.broker.upkeep import Upkeep
from taskqueue.broker.waiting import ClaimRoom, EndWatch
from taskqueue.core.errors import TaskQueueError
from taskqueue.storage.cluster import News
from taskqueue.storage.port import Storage

LARGEST_LOOK: Final = 1_000
"""Watched tasks that are looked at in one read."""

LOOK_SECONDS: Final = 0.05
"""Least time between two looks at what other brokers made of watched tasks."""

log = structlog.get_logger(component="broker")


class Neighbours:
    """Passes their news on to the claims, the waits and the followers of this broker."""

    def __init__(
        self,
        storage: Storage,
        upkeep: Upkeep,
        claims: ClaimRoom,
        watch: EndWatch,
        updates: Updates,
        notices: Notices,
    ) -> None:
        self._storage = storage
        self._upkeep = upkeep
        self._claims = claims
        self._watch = watch
        self._updates = updates
        self._notices = notices
        self._looking: asyncio.Task[None] | None = None
        self._must_look = False

    def listen(self) -> None:
        """Hear their news from now on."""
        self._storage.cluster.on_news = self._on_news

    def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()

    def _on_news(self, news: News) -> None:
        self._upkeep.note_due(news.next_due)
        self._notices.stopped(news.stopped)
        if news.ready is None:
            self._claims.wake_all()
        else:
            self._claims.hear(news.ready)
        self._must_look = True
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().create_task(self._look())

    async def _look(self) -> None:
        """Tell those who wait for tasks or follow them what became of these."""
        while self._must_look:
            self._must_look = False
            watched = list({*self._watch.watched, *self._updates.followed})
            for start in range(0, len(watched), LARGEST_LOOK):
                try:
                    tasks = await self._storage.look(watched[start : start + LARGEST_LOOK])
                except TaskQueueError as error:
                    log.warning("watched tasks could not be looked at yet", error=error.message)
                    return
                self._watch.see(tasks)
                self._updates.see(tasks)
            if watched:
                await asyncio.sleep(LOOK_SECONDS)
