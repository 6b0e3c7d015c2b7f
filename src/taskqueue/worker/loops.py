"""Which event loop workers and their child processes run on."""

import asyncio
from collections.abc import Callable


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes a loop: uvloop's where it is installed."""
    try:
        import uvloop  # optional: it comes with the server
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop
