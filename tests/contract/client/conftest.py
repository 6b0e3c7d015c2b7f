"""The client under test: the asyncio one, and the sync one called from threads."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import pytest

from taskqueue import AsyncClient, SyncClient
from tests.support.door import PATIENCE, NativeDoor, a_native_door, no_longer_than

ConnectTo = Callable[..., AsyncClient]


class FromThreads:
    """A SyncClient with AsyncClient's face: each call runs in a thread."""

    def __init__(self, client: SyncClient, threads: ThreadPoolExecutor) -> None:
        self._client = client
        self._threads = threads

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method = getattr(self._client, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            work = functools.partial(method, *args, **kwargs)
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)

        return call


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    with no_longer_than(2 * PATIENCE):
        yield


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[NativeDoor]:
    async with a_native_door(tmp_path / "data") as door:
        yield door


@pytest.fixture(params=["async", "sync"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[ConnectTo]:
    """Makes clients of the kind under test; they are closed at the end."""
    with ThreadPoolExecutor(40) as threads:
        async with AsyncExitStack() as opened:

            def connect(url: str, **settings: Any) -> AsyncClient:
                client: Any
                if request.param == "async":
                    client = AsyncClient(url, **settings)
                else:
                    client = FromThreads(SyncClient(url, **settings), threads)
                opened.push_async_callback(client.close)
                return cast(AsyncClient, client)

            yield connect


@pytest.fixture
async def client(door: NativeDoor, connect: ConnectTo) -> AsyncClient:
    return connect(door.url)
