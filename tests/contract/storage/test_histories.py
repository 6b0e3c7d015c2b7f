"""The engines against the model on random histories, with time, failures and restarts in them.

`HISTORIES=1000` in the environment asks for so many of each, and for other ones each time.
"""

import pytest

from tests.support.histories import QueueHistory, run_histories
from tests.support.postgres import RELEASES, shared_server


def test_the_embedded_engine_is_as_the_model() -> None:
    run_histories(QueueHistory, 60)


@pytest.mark.parametrize("release", RELEASES)
def test_the_engine_on_postgresql_is_as_the_model(release: str) -> None:
    with shared_server(release) as server:
        run_histories(lambda: QueueHistory(server), 4)
