"""The servers that the reference is held against."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.served import Served, Worker, a_closed_server
from tests.support.broker import a_broker_process


@pytest.fixture(scope="session")
def open_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server without keys."""
    with a_broker_process(tmp_path_factory.mktemp("open") / "data", "--rate-limit", "0") as broker:
        yield Served(broker)


@pytest.fixture(scope="session")
def closed_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that demands a key."""
    folder = tmp_path_factory.mktemp("closed")
    with a_closed_server(folder / "data", "--rate-limit", "0") as served:
        yield served


@pytest.fixture(params=["open", "closed"])
def server(request: pytest.FixtureRequest) -> Served:
    """Each of the two in turn."""
    served: Served = request.getfixturevalue(f"{request.param}_server")
    return served


@pytest.fixture
def worker(server: Served) -> Iterator[Worker]:
    """A worker of that server."""
    worker = server.worker()
    yield worker
    worker.close()


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Served]:
    """A server of one's own, with the default limits."""
    with a_broker_process(tmp_path / "data") as broker:
        yield Served(broker)


@pytest.fixture(params=["open", "closed"])
def fresh_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    """A server of one's own, without keys and with keys required in turn."""
    folder = tmp_path / "data"
    if request.param == "closed":
        with a_closed_server(folder, "--rate-limit", "0") as served:
            yield served
    else:
        with a_broker_process(folder, "--rate-limit", "0") as broker:
            yield Served(broker)
