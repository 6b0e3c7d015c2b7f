"""Each deliberate bug is switched on in turn; the suite's own checks must fail with it."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.planted import bugs
from tests.planted.table import ERRORS, FOUND_AT_RANDOM, PLANTED, carry_out
from tests.support.histories import QueueHistory

FAILURES = (AssertionError, ValueError, pytest.fail.Exception)
"""How a test fails: an assertion, a list of another length, or an error that did not come."""


@pytest.mark.parametrize("bug", PLANTED, ids=lambda bug: bug.__name__)
def test_the_suite_catches(bug: bugs.Bug, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check = PLANTED[bug]
    carry_out(check, tmp_path / "sound")
    bug(monkeypatch)
    with pytest.raises(ERRORS.get(bug, FAILURES)):
        carry_out(check, tmp_path / "planted")


@pytest.mark.parametrize("bug", FOUND_AT_RANDOM, ids=lambda bug: bug.__name__)
def test_random_histories_find(bug: bugs.Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            QueueHistory,
            settings=settings(
                max_examples=100,
                stateful_step_count=50,
                deadline=None,
                derandomize=True,
                database=None,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_every_bug_is_in_the_table() -> None:
    planted = {
        value
        for name, value in vars(bugs).items()
        if not name.startswith("_") and getattr(value, "__module__", "") == bugs.__name__
    }
    assert planted == set(PLANTED)
