from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.move.filling import Folder, filled
from tests.support.postgres import PostgresServer, a_database, shared_server

RELEASE = "18"


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """One server; what a move asks of PostgreSQL is the same in all releases."""
    with shared_server(RELEASE) as server:
        yield server


@pytest.fixture
async def dsn(server: PostgresServer) -> AsyncIterator[str]:
    """An empty database."""
    async with a_database(server) as dsn:
        yield dsn


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """What the folders of tests are copied from."""
    return filled(tmp_path_factory.mktemp("template") / "data", 1_120)


@pytest.fixture
def folder(template: Folder, tmp_path: Path) -> Folder:
    """A data folder with tasks in every state."""
    return template.copy(tmp_path / "data")
