from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.postgres import RELEASES, shared_server
from tests.support.storage import ENGINES, Queue, a_queue


@pytest.fixture(scope="session", autouse=True)
def _postgres_servers() -> Iterator[None]:
    """Servers that last as long as the tests of this folder, not just for one of them."""
    with ExitStack() as servers:
        for release in RELEASES:
            servers.enter_context(shared_server(release))
        yield


@pytest.fixture(params=ENGINES)
async def queue(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Queue]:
    """An empty queue, on each engine in turn."""
    async with a_queue(request.param, tmp_path) as queue:
        yield queue
