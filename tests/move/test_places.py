"""The numbers that moved tasks get."""

from typing import Final

from hypothesis import given
from hypothesis import strategies as st

from taskqueue.storage.move.days import DAYS_BACK, SPAN, Days, old_number
from taskqueue.storage.postgres.days import DAY, EPOCH, bounds_of, first_seq, step_of

TODAY: Final = 2_500
MOMENTS: Final = st.lists(
    st.tuples(
        st.integers(1, 2**40),
        st.integers(EPOCH - DAY, EPOCH + (TODAY + 10) * DAY),
    ),
    min_size=1,
    unique_by=lambda task: task[0],
).map(sorted)


@given(MOMENTS)
def test_they_keep_the_order_and_tell_the_old_ones(tasks: list[tuple[int, int]]) -> None:
    days = Days([], 0)
    places = [days.place(seq, created_at, TODAY) for seq, created_at in tasks]
    assert places == sorted(set(places))
    assert [old_number(place) for place in places] == [seq for seq, _ in tasks]
    assert places[-1] < bounds_of(TODAY)[1]


@given(MOMENTS, st.data())
def test_they_do_not_change_when_tasks_were_purged_or_days_went_by(
    tasks: list[tuple[int, int]], data: st.DataObject
) -> None:
    days = Days([], 0)
    places = {seq: days.place(seq, created_at, TODAY) for seq, created_at in tasks}
    again = Days([list(pair) for pair in days.boundaries], days.reached)
    left = data.draw(st.lists(st.sampled_from(tasks), unique=True).map(sorted))
    assert {seq: again.place(seq, created_at, TODAY + 1) for seq, created_at in left} == {
        seq: places[seq] for seq, _ in left
    }


@given(st.integers(0, 100_000), st.integers(1, 2**40))
def test_a_place_lies_in_its_day(day: int, seq: int) -> None:
    low, high = bounds_of(day)
    assert low <= day * SPAN + seq < high


@given(st.integers(0, DAY - 1), st.integers(1, 10**6))
def test_tasks_of_today_come_before_those_of_the_new_engine(since: int, seq: int) -> None:
    now = EPOCH + TODAY * DAY + since
    place = Days([], 0).place(seq, now, TODAY)
    latest = place >> (first_seq(1, 0).bit_length() - 1)
    assert first_seq(max(latest + 1, step_of(now)), 1) > place


def test_days_that_are_long_past_get_no_partition() -> None:
    days = Days([], 0)
    for seq, day in enumerate((TODAY - 400, TODAY - DAYS_BACK, TODAY - 3), start=1):
        days.place(seq, EPOCH + day * DAY, TODAY)
    assert days.recent(TODAY) == [TODAY - 3, TODAY]
