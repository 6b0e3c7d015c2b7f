"""For the test suites of programs that use taskqueue: a queue in the test's own process."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskqueue.testing.broker import LocalBroker
    from taskqueue.testing.inline import InlineQueue

__all__ = ["InlineQueue", "LocalBroker"]

_PLACES = {
    "InlineQueue": "taskqueue.testing.inline",
    "LocalBroker": "taskqueue.testing.broker",
}


if not TYPE_CHECKING:  # a type checker would take any name at all for one of ours

    def __getattr__(name: str) -> object:
        # pytest imports this package whenever it starts, for the plugin: it must cost nothing.
        if name not in _PLACES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return __all__
