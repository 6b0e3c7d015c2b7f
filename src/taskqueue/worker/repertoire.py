"""What a worker can run: the handlers of its apps, each with what its app brings along."""

from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from typing import NamedTuple

from taskqueue.core.errors import InvalidRequest
from taskqueue.wire.messages import MOST_CLAIM_TYPES
from taskqueue.worker.app import App
from taskqueue.worker.attempt import Means
from taskqueue.worker.children import Children
from taskqueue.worker.context import NO_STATE
from taskqueue.worker.handler import Handler
from taskqueue.worker.place import place_of
from taskqueue.worker.settings import WorkerSettings


class Home:
    """An app: its state, and what its handlers are run with."""

    def __init__(
        self, app: App, handlers: list[Handler], settings: WorkerSettings, threads: Executor
    ) -> None:
        self.state: object = NO_STATE
        self._app = app
        self.children: Children | None = None
        if any(handler.manner.isolation is not None for handler in handlers):
            self.children = Children(place_of(app), settings)
        self.means = Means(threads, self.children, app.execute_middleware)

    async def open(self, stack: AsyncExitStack) -> None:
        """Enter the app's lifespan and start its first processes, until the stack is closed."""
        if self._app.lifespan is not None:
            self.state = await stack.enter_async_context(self._app.lifespan(self._app))
        if self.children is not None:
            stack.push_async_callback(self.children.close)
            await self.children.open()


class Part(NamedTuple):
    """A handler and its app."""

    handler: Handler
    home: Home


class Repertoire:
    """All that a worker can run, by task type.

    Raises InvalidRequest where that is nothing, too much, or two of the same name, and where
    processes could not import an app.
    """

    def __init__(self, apps: Sequence[App], settings: WorkerSettings, threads: Executor) -> None:
        self._parts: dict[str, Part] = {}
        self._homes: list[Home] = []
        for app in apps:
            handlers = [one for one in app.handlers.values() if settings.takes(one.name)]
            home = Home(app, handlers, settings, threads)
            self._homes.append(home)
            for handler in handlers:
                if handler.name in self._parts:
                    raise InvalidRequest(
                        f"two apps have a handler called {handler.name!r}; rename one of them"
                    )
                self._parts[handler.name] = Part(handler, home)
        if not 1 <= len(self._parts) <= MOST_CLAIM_TYPES:
            wanted = " that match" * bool(settings.types or settings.exclude)
            raise InvalidRequest(
                f"a worker takes 1 to {MOST_CLAIM_TYPES} handlers, the app has "
                f"{len(self._parts)}{wanted}"
            )
        self.weights = {name: part.handler.manner.weight for name, part in self._parts.items()}
        self.is_even = set(self.weights.values()) == {1}
        self.lightest = min(self.weights.values())

    def __getitem__(self, task_type: str) -> Part:
        return self._parts[task_type]

    async def open(self, stack: AsyncExitStack) -> None:
        """Enter the lifespans of the apps, until the stack is closed."""
        for home in self._homes:
            await home.open(stack)

    @property
    def pids(self) -> set[int]:
        """The processes that handlers run in now."""
        return {
            pid for home in self._homes if home.children is not None for pid in home.children.pids
        }

    def fitting(self, free: int, slots: int) -> list[str]:
        """The task types of which one fits into so many free slots of all.

        One that is heavier than all of them together has them all to itself.
        """
        return [name for name, weight in self.weights.items() if min(weight, slots) <= free]
