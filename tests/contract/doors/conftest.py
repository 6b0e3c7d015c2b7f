"""Which event loops the doors are tested on."""

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

ON_BOTH_LOOPS = {
    "test_grpc_limits.py",
    "test_grpc_session.py",
    "test_grpc_streams.py",
    "test_resp_limits.py",
    "test_resp_order.py",
    "test_tls.py",
}
"""Modules whose tests rest on what transports do, in which the loops differ."""


def pytest_asyncio_loop_factories(
    item: pytest.Item,
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The broker runs on uvloop; asyncio's own loop must do as well."""
    if item.path.name in ON_BOTH_LOOPS:
        return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
    return {"asyncio": asyncio.new_event_loop}
