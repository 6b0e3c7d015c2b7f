"""The pytest plugin. pytest imports it whenever it starts, so it imports nothing of ours then."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from taskqueue.testing.broker import LocalBroker


@pytest.fixture
def taskqueue_broker(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[LocalBroker]":
    """A real broker of this test's own, in a temporary folder and on free ports of this machine."""
    if find_spec("apsw") is None or find_spec("uvicorn") is None:
        pytest.fail(
            "the fixture taskqueue_broker runs a broker: pip install 'taskqueue[server]'",
            pytrace=False,
        )
    from taskqueue.testing.broker import LocalBroker

    with LocalBroker(tmp_path_factory.mktemp("taskqueue")) as broker:
        yield broker
