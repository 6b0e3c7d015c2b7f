"""The engine against the model on random histories, with time, failures and restarts in them."""

from hypothesis import HealthCheck, settings

from tests.support.histories import QueueHistory

TestHistories = QueueHistory.TestCase
TestHistories.settings = settings(
    max_examples=100,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
