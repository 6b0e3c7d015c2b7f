from collections.abc import Iterator

import pytest

from tests.conformance.served import KEY, Served, Worker
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
    settings = folder / "tq.toml"
    settings.write_text(f'[access]\nbootstrap_key = "{KEY}"\nrate_limit = 0\n')
    settings.chmod(0o600)
    with a_broker_process(folder / "data", "--config", str(settings)) as broker:
        yield Served(broker, KEY)


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
