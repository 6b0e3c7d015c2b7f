"""Replies as bytes, read back by a Redis client's own parser."""

import math
from datetime import UTC, datetime
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct

from taskqueue.wire import resp


class Pair(Struct):
    first: int
    second: str | None


MOMENT = datetime(2024, 1, 1, 12, 0, 0, 500, tzinfo=UTC)


@pytest.mark.parametrize(
    ("value", "resp2", "resp3"),
    [
        (None, b"$-1\r\n", b"_\r\n"),
        (b"\x00\r\n", b"$3\r\n\x00\r\n\r\n", b"$3\r\n\x00\r\n\r\n"),
        ("grün", b"$5\r\ngr\xc3\xbcn\r\n", b"$5\r\ngr\xc3\xbcn\r\n"),
        ("", b"$0\r\n\r\n", b"$0\r\n\r\n"),
        (True, b":1\r\n", b"#t\r\n"),
        (False, b":0\r\n", b"#f\r\n"),
        (-5, b":-5\r\n", b":-5\r\n"),
        (2**63 - 1, b":9223372036854775807\r\n", b":9223372036854775807\r\n"),
        (0.5, b"$3\r\n0.5\r\n", b",0.5\r\n"),
        (
            MOMENT,
            b"$27\r\n2024-01-01T12:00:00.000500Z\r\n",
            b"$27\r\n2024-01-01T12:00:00.000500Z\r\n",
        ),
        ([1, [b"x"]], b"*2\r\n:1\r\n*1\r\n$1\r\nx\r\n", b"*2\r\n:1\r\n*1\r\n$1\r\nx\r\n"),
        ([], b"*0\r\n", b"*0\r\n"),
        ({"a": 1}, b"*2\r\n$1\r\na\r\n:1\r\n", b"%1\r\n$1\r\na\r\n:1\r\n"),
        (
            Pair(1, None),
            b"*4\r\n$5\r\nfirst\r\n:1\r\n$6\r\nsecond\r\n$-1\r\n",
            b"%2\r\n$5\r\nfirst\r\n:1\r\n$6\r\nsecond\r\n_\r\n",
        ),
    ],
)
def test_values_are_written_as_both_protocols_have_them(
    value: object, resp2: bytes, resp3: bytes
) -> None:
    assert resp.encode(value, resp3=False) == resp2
    assert resp.encode(value, resp3=True) == resp3


values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.binary(max_size=20)
    | st.text(max_size=20).map(lambda text: text.encode(errors="replace")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.binary(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values)
def test_a_redis_client_reads_back_what_was_written(value: Any) -> None:
    reader = hiredis.Reader()
    reader.feed(resp.encode(value, resp3=True))
    assert reader.gets() == value
    assert reader.gets() is False


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_endless_numbers_are_written_as_resp3_has_them(value: float) -> None:
    reader = hiredis.Reader()
    reader.feed(resp.encode(value, resp3=True))
    assert reader.gets() == value


@pytest.mark.parametrize("value", [object(), {1, 2}, 1j])
def test_what_has_no_form_is_a_fault_of_the_caller(value: object) -> None:
    with pytest.raises(TypeError, match="RESP has no form"):
        resp.encode(value, resp3=True)


@given(st.text())
def test_an_error_is_one_line_whatever_it_holds(message: str) -> None:
    line = resp.error("CODE", message)
    assert line.startswith(b"-CODE ")
    assert line.endswith(b"\r\n")
    assert not any(byte < 32 or byte == 127 for byte in line[:-2])
    line.decode()


@pytest.mark.parametrize(
    "message", ["a\r\n+OK\r\n", "\x00", "\x1b[31m", "\u2028", "\x85", "\ud800", "a\tb", "\x7f"]
)
def test_nothing_gets_out_of_an_error(message: str) -> None:
    line = resp.error("ERR", f"<{message}>")
    assert line.count(b"\r") == line.count(b"\n") == 1
    assert line[:-2].decode().isprintable()
    assert line.decode().startswith("-ERR <")


@given(st.lists(st.binary(max_size=50), min_size=1, max_size=10))
def test_a_command_is_written_as_it_is_read(words: list[bytes]) -> None:
    assert resp.RequestReader().feed(resp.command(*words)) == [words]


def test_short_answers() -> None:
    assert resp.simple("pending") == b"+pending\r\n"
    assert resp.bulk(b"") == b"$0\r\n\r\n"
    assert (resp.OK, resp.PONG) == (b"+OK\r\n", b"+PONG\r\n")
    assert resp.timestamp(MOMENT) == "2024-01-01T12:00:00.000500Z"
