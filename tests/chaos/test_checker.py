"""The checker itself: a sound history passes, each kind of forgery is found by its name."""

import zlib
from collections.abc import Callable

import pytest
from msgspec.structs import replace

from taskqueue.core.task import Event, Failure, Status, Task, TaskDetail
from tests.chaos.checker import Books, Kept, check, double_executions
from tests.chaos.history import Line, digest_of

PAYLOAD = b"payload"
DIGEST = digest_of(PAYLOAD)

History = list[Line]
Forgery = Callable[[History, Books], tuple[History, Books]]


def a_line(op: str, task_id: str, at_ns: int, **fields: object) -> Line:
    values = {"outcome": "ok", "token": 0, "digest": DIGEST} | fields
    return Line("c", op, task_id, at_ns=at_ns, **values)  # type: ignore[arg-type]


def kept(task_id: str, status: Status, token: int, **fields: object) -> Kept:
    event = Event.COMPLETE if status is Status.COMPLETED else Event.CANCEL
    crc = zlib.crc32(PAYLOAD)
    task = Task(1, task_id, "chaos", 100, status, 0, 1, 9, crc, 0, 0, event, 0, token)
    result = DIGEST.encode() if status is Status.COMPLETED else None
    detail = TaskDetail(replace(task, **fields), result, list[Failure]())
    return Kept(detail, PAYLOAD)


def sound() -> tuple[History, Books]:
    """One task completed in its second attempt, one cancelled, one whose submit is in doubt."""
    history = [
        a_line("submit", "done", 1),
        a_line("run", "done", 2, token=1),
        a_line("run", "done", 3, token=2),
        a_line("complete", "done", 4, token=1, outcome="fail", answer="LEASE_LOST …"),
        a_line("complete", "done", 5, token=2),
        a_line("complete", "done", 6, token=2),
        a_line("submit", "cancelled", 1),
        a_line("cancel", "cancelled", 2),
        a_line("submit", "doubtful", 1, outcome="unknown"),
    ]
    books = {
        "done": kept("done", Status.COMPLETED, 2),
        "cancelled": kept("cancelled", Status.CANCELLED, 0),
    }
    return history, books


def test_a_sound_history_passes() -> None:
    assert check(*sound()) == []
    assert double_executions(sound()[0]) == 1


def lost(history: History, books: Books) -> tuple[History, Books]:
    return history, {one: kept for one, kept in books.items() if one != "done"}


def left_open(history: History, books: Books) -> tuple[History, Books]:
    return history, books | {"done": kept("done", Status.PENDING, 2)}


def phantom(history: History, books: Books) -> tuple[History, Books]:
    return history, books | {"phantom": kept("phantom", Status.CANCELLED, 0)}


def refused_and_there(history: History, books: Books) -> tuple[History, Books]:
    return [
        replace(line, outcome="fail") if line.op == "submit" else line for line in history
    ], books


def ended_and_not(history: History, books: Books) -> tuple[History, Books]:
    return history, books | {"done": kept("done", Status.CANCELLED, 2)}


def given_out_twice(history: History, books: Books) -> tuple[History, Books]:
    return [*history, a_line("run", "done", 7, token=2)], books


def token_from_nowhere(history: History, books: Books) -> tuple[History, Books]:
    return [*history, a_line("run", "done", 7, token=5)], books


def stale_accepted(history: History, books: Books) -> tuple[History, Books]:
    return [replace(line, outcome="ok") for line in history if line.token != 2], books


def completed_twice(history: History, books: Books) -> tuple[History, Books]:
    return [*history, a_line("complete", "done", 7, token=1)], books


def completed_by_nobody(history: History, books: Books) -> tuple[History, Books]:
    return [line for line in history if line.op != "run"], books


def payload_changed(history: History, books: Books) -> tuple[History, Books]:
    return history, books | {"done": replace(books["done"], payload=b"other")}


def result_changed(history: History, books: Books) -> tuple[History, Books]:
    detail = replace(books["done"].detail, result=b"other")
    return history, books | {"done": replace(books["done"], detail=detail)}


def too_many_retries(history: History, books: Books) -> tuple[History, Books]:
    return history, books | {"done": kept("done", Status.COMPLETED, 2, retry_count=10)}


def cancelled_and_ran(history: History, books: Books) -> tuple[History, Books]:
    return [*history, a_line("run", "cancelled", 7, token=0)], books


def cancelled_and_completed(history: History, books: Books) -> tuple[History, Books]:
    return history, books | {"cancelled": kept("cancelled", Status.COMPLETED, 0)}


@pytest.mark.parametrize(
    ("invariant", "forgery"),
    [
        ("I1", lost),
        ("I1", left_open),
        ("I2", phantom),
        ("I23", refused_and_there),
        ("I4", ended_and_not),
        ("I5", given_out_twice),
        ("I5", token_from_nowhere),
        ("I6", stale_accepted),
        ("I7", completed_twice),
        ("I7", completed_by_nobody),
        ("I8", payload_changed),
        ("I8", result_changed),
        ("I13", too_many_retries),
        ("I18", cancelled_and_ran),
        ("I18", cancelled_and_completed),
    ],
)
def test_a_forgery_is_found(invariant: str, forgery: Forgery) -> None:
    found = check(*forgery(*sound()))
    assert invariant in {violation.invariant for violation in found}
    assert all(str(violation) for violation in found)
