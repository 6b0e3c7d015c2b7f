"""Words and rules alone: the table, delays, clocks, ids, errors."""

import uuid
from datetime import UTC, datetime, timedelta, timezone

import pytest

from taskqueue.client import errors as client_errors
from taskqueue.core import errors, lifecycle
from taskqueue.core.clock import SECOND, ManualClock, SystemClock, microseconds, moment
from taskqueue.core.commands import Cancel, Fail
from taskqueue.core.errors import InvalidStatus, known_errors
from taskqueue.core.ids import canonical_task_id, new_task_id, new_worker_id
from taskqueue.core.lifecycle import LONGEST_TEXT, MOVES
from taskqueue.core.retry import USUAL, RetryPolicy
from taskqueue.core.task import CLAIMABLE, TERMINAL, Event, Status, Tier, tier_of
from tests.support.tasks import START, a_submit


def test_the_table_claims_exactly_what_is_claimable() -> None:
    assert {status for status, event in MOVES if event is Event.CLAIM} == CLAIMABLE


def test_only_an_operators_retry_leads_out_of_a_terminal_status() -> None:
    for status, event in MOVES:
        assert status not in TERMINAL or event is Event.RETRY


def test_every_status_is_reached_and_every_event_but_submit_moves_something() -> None:
    reached = {after for statuses in MOVES.values() for after in statuses}
    assert reached == set(Status)
    assert {event for _, event in MOVES} == set(Event) - {Event.SUBMIT}


def test_a_refusal_says_what_would_be_allowed() -> None:
    task = lifecycle.claim(a_submit().task, "w", wall=START, steady=START)
    with pytest.raises(
        InvalidStatus, match="is in_progress; only a task that is failed or pending"
    ):
        lifecycle.settle(task, Cancel(task.id), wall=START, steady=START)


def test_a_long_error_is_kept_cut_and_says_so() -> None:
    task = lifecycle.claim(a_submit().task, "w", wall=START, steady=START)
    word = Fail(task.id, 1, "E", "m" * 100_000, "t" * 9)
    _, failure = lifecycle.settle(task, word, wall=START, steady=START)
    assert failure is not None
    assert len(failure.message) == LONGEST_TEXT
    assert failure.message.endswith("[cut]")
    assert failure.traceback == "t" * 9


@pytest.mark.parametrize(
    ("priority", "tier"),
    [(0, Tier.LOW), (99, Tier.LOW), (100, Tier.NORMAL), (199, Tier.NORMAL), (200, Tier.HIGH)],
)
def test_tiers_are_bands_of_priority(priority: int, tier: Tier) -> None:
    assert tier_of(priority) is tier


def test_the_delay_is_capped_for_any_count() -> None:
    assert USUAL.delay_before(1, 0) == 5 * SECOND
    assert USUAL.delay_before(10, 0) == 2560 * SECOND
    assert USUAL.delay_before(11, 0) == USUAL.delay_before(1_000, 0) == 3600 * SECOND


def test_a_policy_of_a_task_s_own_says_how_delays_grow() -> None:
    policy = RetryPolicy(first=SECOND, factor=3.0, longest=20 * SECOND, jitter=0.5)
    assert [policy.delay_before(retry, 0) // SECOND for retry in (1, 2, 3, 4, 999)] == [
        *(1, 3, 9, 20, 20)
    ]
    assert policy.delay_before(2, -1) == 1_500_000
    assert policy.delay_before(2, 1) == 4_500_000
    steady = RetryPolicy(first=SECOND, factor=1.0)
    assert steady.delay_before(1, 0) == steady.delay_before(50, 0) == SECOND


def test_the_wall_clock_never_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([2_000_000_000, 1_000_000_000, 3_000_000_000])
    clock = SystemClock()
    monkeypatch.setattr("time.time_ns", lambda: next(readings))
    assert [clock.wall(), clock.wall(), clock.wall()] == [2_000_000, 2_000_000, 3_000_000]


def test_a_jump_of_the_wall_clock_does_not_show_in_the_steady_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = SystemClock()
    before = clock.steady()
    monkeypatch.setattr("time.time_ns", lambda: 10**19)
    assert 0 <= clock.steady() - before < 60 * SECOND


def test_a_forgiven_stall_does_not_count() -> None:
    for clock in (SystemClock(), ManualClock()):
        before = clock.steady()
        clock.forgive(3600 * SECOND)
        assert clock.steady() < before - 3500 * SECOND


def test_a_clock_moved_by_hand_moves_both_readings() -> None:
    clock = ManualClock(5 * SECOND)
    clock.advance(0.5)
    assert (clock.wall(), clock.steady()) == (5_500_000, 5_500_000)
    clock.forgive(SECOND)
    assert (clock.wall(), clock.steady()) == (5_500_000, 4_500_000)


def test_dates_and_readings_are_the_same_moment() -> None:
    date = datetime(2024, 1, 1, 12, 0, 0, 123456, tzinfo=UTC)
    assert moment(microseconds(date)) == date
    assert microseconds(date.replace(tzinfo=None)) == microseconds(date)
    elsewhere = date.astimezone(timezone(timedelta(hours=-5)))
    assert microseconds(elsewhere) == microseconds(date)


def test_a_date_beyond_the_calendar_overflows() -> None:
    with pytest.raises(OverflowError):
        microseconds(datetime(9999, 12, 31, 23, 59, tzinfo=timezone(timedelta(hours=-23))))


def test_task_ids_are_uuids_of_version_seven_in_order() -> None:
    ids = [new_task_id() for _ in range(1000)]
    assert {uuid.UUID(one).version for one in ids} == {7}
    assert len(set(ids)) == 1000
    assert all(canonical_task_id(one) == one for one in ids)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{550e8400-e29b-41d4-a716-446655440000}",
        "urn:uuid:550e8400-e29b-41d4-a716-446655440000",
        "550e8400e29b41d4a716446655440000",
        "550e8400-e29b-41d4-a716-44665544000\uff10",
        "550e8400-e29b-41d4-a716-446655440000\n",
    ],
)
def test_other_spellings_of_a_uuid_are_no_task_id(text: str) -> None:
    assert canonical_task_id(text) is None


def test_upper_case_is_taken_for_lower() -> None:
    assert canonical_task_id("550E8400-E29B-41D4-A716-446655440000") == (
        "550e8400-e29b-41d4-a716-446655440000"
    )


def test_worker_ids_are_names_and_differ() -> None:
    first, second = new_worker_id(), new_worker_id()
    assert first != second
    assert len(first) <= 255
    assert first.isprintable()
    assert " " not in first


def test_the_tree_of_errors_is_drawn_whole() -> None:
    drawn = errors.__doc__ or ""
    own = [one for one in known_errors() if one.__module__ == errors.__name__]
    assert [one.__name__ for one in own if one.__name__ not in drawn] == []


def test_each_code_has_one_meaning() -> None:
    by_code: dict[str, set[tuple[int, str]]] = {}
    for error in known_errors():
        by_code.setdefault(error.code, set()).add((error.http, error.grpc))
    assert all(len(meanings) == 1 for meanings in by_code.values())


def test_a_remote_error_is_of_the_class_of_its_code() -> None:
    for code, kind in errors.ERRORS_BY_CODE.items():
        error = client_errors.remote_error(f"{code} the message")
        assert (type(error), error.message) == (kind, "the message")
    assert type(client_errors.remote_error("ERR odd")) is errors.TaskQueueError
