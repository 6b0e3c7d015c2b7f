"""The rate limiter against the plainest token bucket there is."""

from hypothesis import given
from hypothesis import strategies as st

from taskqueue.broker import limits
from taskqueue.broker.limits import RateLimiter, caller_of
from taskqueue.core.clock import SECOND, ManualClock


class Bucket:
    """A token bucket that is filled as time passes, in exact fractions of a token."""

    def __init__(self, rate: int, burst: int) -> None:
        self.rate = rate
        self.most = burst * SECOND
        self.tokens = self.most

    def pass_time(self, microseconds: int) -> None:
        self.tokens = min(self.most, self.tokens + microseconds * self.rate)

    def take(self) -> bool:
        if self.tokens < SECOND:
            return False
        self.tokens -= SECOND
        return True


@given(
    st.sampled_from([1, 2, 5, 10, 100, 1000]),
    st.integers(1, 20),
    st.lists(st.integers(0, 2 * SECOND), max_size=60),
)
def test_it_lets_in_what_a_token_bucket_lets_in(rate: int, burst: int, pauses: list[int]) -> None:
    clock = ManualClock()
    limiter, bucket = RateLimiter(clock), Bucket(rate, burst)
    for pause in pauses:
        clock.advance(pause / SECOND)
        bucket.pass_time(pause)
        allowance = limiter.take("a", rate, burst)
        assert (allowance.retry_after == 0) == bucket.take()
        assert allowance.remaining == bucket.tokens // SECOND
        assert 0 <= allowance.remaining < burst


@given(st.integers(1, 1000), st.integers(1, 50))
def test_the_wait_it_names_is_true_and_the_shortest(rate: int, burst: int) -> None:
    clock = ManualClock()
    limiter = RateLimiter(clock)
    while not (refused := limiter.take("a", rate, burst)).retry_after:
        pass
    wait = round(refused.retry_after * SECOND)
    clock.advance((wait - 1) / SECOND)
    assert limiter.take("a", rate, burst).retry_after
    clock.advance(1 / SECOND)
    assert not limiter.take("a", rate, burst).retry_after


def test_a_refused_request_costs_nothing_and_asking_neither() -> None:
    limiter = RateLimiter(ManualClock())
    assert limiter.take("a", 10, 2).remaining == 1
    assert limiter.take("a", 10, 2, cost=0).remaining == 1
    assert limiter.take("a", 10, 2).remaining == 0
    waits = [limiter.take("a", 10, 2).retry_after for _ in range(5)]
    assert set(waits) == {0.1}


def test_callers_do_not_share() -> None:
    limiter = RateLimiter(ManualClock())
    assert not limiter.take("a", 1, 1).retry_after
    assert not limiter.take("b", 1, 1).retry_after
    assert limiter.take("a", 1, 1).retry_after


def test_it_says_when_the_bucket_is_full_again() -> None:
    clock = ManualClock()
    limiter = RateLimiter(clock)
    for _ in range(3):
        allowance = limiter.take("a", 10, 100)
    assert allowance.full_at == clock.wall() + 3 * SECOND // 10


def test_a_million_callers_take_bounded_memory_and_the_busy_ones_are_kept() -> None:
    clock = ManualClock()
    limiter = RateLimiter(clock)
    for number in range(200_000):
        if number % 1000 == 0:
            limiter.take("busy", 1, 1_000_000)
        limiter.take(str(number), 1, 1)
    assert len(limiter._full_at) <= limits.MOST_CALLERS
    assert limiter.take("busy", 1, 1_000_000, cost=0).remaining == 1_000_000 - 200


def test_penalties_are_none_at_first_then_grow_up_to_the_longest() -> None:
    clock = ManualClock()
    limiter = RateLimiter(clock)
    seconds = [limiter.penalty("a", 1, 3, 2.0) for _ in range(8)]
    assert seconds == [0, 0, 0, 1, 2, 2, 2, 2]
    clock.advance(60)
    assert limiter.penalty("a", 1, 3, 2.0) == 0


def test_one_network_of_64_bits_is_one_caller() -> None:
    assert caller_of("2001:db8:1:2:3::4") == caller_of("2001:db8:1:2:ffff::1")
    assert caller_of("2001:db8:1:2::1") != caller_of("2001:db8:1:3::1")
    assert caller_of("::ffff:192.0.2.1") == caller_of("192.0.2.1") == "192.0.2.1"
    assert caller_of("192.0.2.1") != caller_of("192.0.2.2")
    assert caller_of("?") == "?"
