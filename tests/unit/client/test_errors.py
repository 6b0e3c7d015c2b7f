"""The errors that a client adds to the broker's own."""

import pickle

import pytest

from taskqueue import Status, TaskFailed


@pytest.mark.parametrize(
    ("message", "kind"),
    [("RuntimeError: a: b", "RuntimeError"), ("it was cancelled", ""), ("no such: thing", "")],
)
def test_a_failure_says_what_kind_of_error_it_was(message: str, kind: str) -> None:
    error = TaskFailed(message, task_id="id", status=Status.DEAD_LETTER, traceback="at line 1")
    assert error.kind == kind
    assert str(error) == f"task id ended as dead_letter: {message}\n\nat line 1"


def test_a_failure_comes_through_pickle() -> None:
    error = TaskFailed("it broke", task_id="id", status=Status.CANCELLED, traceback="at line 1")
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.task_id) == (TaskFailed, str(error), "id")
