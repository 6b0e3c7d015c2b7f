"""The words that a task is submitted with, and what is refused before anything is sent."""

from datetime import UTC, datetime
from typing import Any

import pytest

from taskqueue import Backoff, InvalidRequest, Task

PLAIN = [b"TQ.SUBMIT", b"mail", b"x"]
MOMENT = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)


def words(**fields: Any) -> list[bytes]:
    return Task("mail", b"x", **fields).command(None)[len(PLAIN) :]


def test_what_is_as_usual_is_not_said() -> None:
    assert Task("mail", b"x", priority="normal", unique_while="running").command(None) == PLAIN


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"priority": "high"}, [b"PRIORITY", b"200"]),
        ({"tags": ("a", "b-c")}, [b"TAG", b"a", b"TAG", b"b-c"]),
        ({"metadata": {"k": "a=b", "é": ""}}, [b"META", b"k=a=b", b"META", "é=".encode()]),
        ({"expires_at": MOMENT}, [b"EXPIREAT", b"2030-01-02T03:04:05+00:00"]),
        ({"expires_in": 1.5}, [b"EXPIRES", b"1.500000"]),
        ({"unique_key": "k"}, [b"UNIQUE", b"k"]),
        (
            {"unique_key": "k", "unique_while": "pending", "replace": True},
            [b"UNIQUE", b"k", b"WHILE", b"pending", b"REPLACE", b"yes"],
        ),
        (
            {"unique_key": "k", "unique_while": "period", "unique_seconds": 60},
            [b"UNIQUE", b"k", b"WHILE", b"period", b"PERIOD", b"60.000000"],
        ),
        (
            {"backoff": Backoff(first=2, factor=3, longest=600, jitter=0.25)},
            [
                *(b"BACKOFF", b"2.000000", b"FACTOR", b"3.000000"),
                *(b"LONGEST", b"600.000000", b"JITTER", b"0.250000"),
            ],
        ),
        ({"retention": 3600}, [b"KEEP", b"3600.000000"]),
    ],
)
def test_each_option_has_its_word(fields: dict[str, Any], said: list[bytes]) -> None:
    assert words(**fields) == said


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"priority": "urgent"}, "priority"),
        ({"priority": 256}, "priority"),
        ({"tags": ("",)}, "tags"),
        ({"tags": ("x" * 1000,)}, "tags"),
        ({"metadata": {"k": 1}}, "metadata"),
        ({"expires_in": -1.0}, "expires_in"),
        ({"unique_key": ""}, "unique_key"),
        ({"unique_key": "k", "unique_while": "always"}, "unique_while"),
        ({"backoff": Backoff(factor=0.5)}, "backoff.factor"),
        ({"backoff": Backoff(jitter=2)}, "backoff.jitter"),
        ({"retention": -1.0}, "retention"),
    ],
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        words(**fields)
    assert refusal.value.field == field


def test_each_with_gives_a_new_task() -> None:
    plain = Task("mail", b"x")
    changed = (
        plain.with_tags("a")
        .with_tags("b")
        .with_metadata(k="1", n="2")
        .with_metadata(k="3")
        .with_unique_key("u", unique_while="period", seconds=5, replace=True)
        .with_backoff(Backoff(first=1))
        .with_priority("low")
    )
    assert plain == Task("mail", b"x")
    assert (changed.tags, changed.metadata) == (("a", "b"), {"k": "3", "n": "2"})
    unique = changed.unique_key, changed.unique_while, changed.unique_seconds, changed.replace
    assert unique == ("u", "period", 5, True)
    assert changed.backoff == Backoff(first=1)
    assert changed.request().priority == 50


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"backoff": Backoff(first=-1)}, "backoff.first: .* got -1"),
        ({"unique_key": "k", "unique_while": "period", "unique_seconds": -1}, "unique_seconds: "),
        ({"timeout": 0}, "timeout: .* got 0"),
        ({"tags": ("a", "")}, "tags: .* got "),
    ],
)
def test_what_is_wrong_is_named_as_it_is_written(options: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=f"^{named}") as refused:
        Task("work", b"", **options).request()
    assert refused.value.field == named.partition(":")[0]
