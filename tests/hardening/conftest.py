"""One broker for all attacks: what one of them breaks, the next one notices."""

from collections.abc import Iterator

import pytest

from tests.support.broker import BrokerProcess, a_broker_process


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    """A `tq serve` of its own process that waits for nobody longer than a second."""
    folder = tmp_path_factory.mktemp("hardening") / "data"
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TQ_HTTP_RECEIVE_SECONDS", "1")
        environment.setenv("TQ_NATIVE_SLOW_READER_SECONDS", "1")
        with a_broker_process(folder, "--rate-limit", "0") as process:
            yield process
