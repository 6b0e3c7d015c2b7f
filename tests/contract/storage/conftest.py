from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.storage import ENGINES, Queue, a_queue


@pytest.fixture(params=ENGINES)
async def queue(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Queue]:
    """An empty queue, on each engine in turn."""
    async with a_queue(request.param, tmp_path) as queue:
        yield queue
