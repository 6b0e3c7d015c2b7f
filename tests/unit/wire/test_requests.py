"""Requests as bytes: however they are cut, whatever they hold, nothing is taken on trust."""

import random
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from taskqueue.wire import resp
from taskqueue.wire.resp import ForeignProtocol, ProtocolError, RequestReader

PING = b"*1\r\n$4\r\nPING\r\n"

words = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([b"", b"\r\n", b"$4\r\nPING\r\n", b"*1\r\n", b"\r", b"\n", PING, b"x" * 5_000]),
)
a_command = st.lists(words, min_size=1, max_size=8)
an_inline_command = st.lists(
    st.text("abcXYZ019.:-_", min_size=1, max_size=9).map(str.encode), min_size=1, max_size=6
).filter(lambda line: not line[0].lower().startswith(b"host:") and line[0][:1].isalnum())
nothings = st.sampled_from([b"\r\n", b"\n", b"  \r\n", b"*0\r\n", b"*-1\r\n", b"*-10\r\n"])
parts: st.SearchStrategy[tuple[bytes, list[list[bytes]]]] = st.one_of(
    a_command.map(lambda command: (resp.command(*command), [command])),
    an_inline_command.map(lambda command: (b" ".join(command) + b"\r\n", [command])),
    an_inline_command.map(lambda command: (b"\t".join(command) + b" \n", [command])),
    nothings.map(lambda nothing: (nothing, [])),
)
streams = st.lists(parts, max_size=8).map(
    lambda some: (b"".join(data for data, _ in some), [one for _, many in some for one in many])
)
MALFORMED = [
    (b"*3000000000\r\n", "invalid multibulk length"),
    (b"*1025\r\n", "invalid multibulk length"),
    (b"*blabla\r\n", "invalid multibulk length"),
    (b"*+1\r\n", "invalid multibulk length"),
    (b"* 1\r\n", "invalid multibulk length"),
    (b"*1_0\r\n", "invalid multibulk length"),
    (b"*\xd9\xa1\r\n", "invalid multibulk length"),
    (b"*\r\n", "invalid multibulk length"),
    (b"*-\r\n", "invalid multibulk length"),
    (b"*1\n$4\nPING\n" + b"x" * 16, "invalid multibulk length"),
    (b"*1\r$4\rPING\r" + b"x" * 16, "invalid multibulk length"),
    (b"*" + b"1" * 5_000, "invalid multibulk length"),
    (b"*\x00" + b"A" * 5_000, "invalid multibulk length"),
    (b"*1\r\n$-10\r\n", "invalid bulk length"),
    (b"*1\r\n$-1\r\n", "invalid bulk length"),
    (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$2000000000\r\n", "invalid bulk length"),
    (b"*3\r\n$3\r\nSET\r\n$1\r\nx\r\n$blabla\r\n", "invalid bulk length"),
    (b"*1\r\n$+4\r\nPING\r\n", "invalid bulk length"),
    (b"*1\r\n$4 \r\nPING\r\n", "invalid bulk length"),
    (b"*1\r\n$\xd9\xa4\r\nPING\r\n", "invalid bulk length"),
    (b"*1\r\n$\r\n", "invalid bulk length"),
    (b"*1\r\n$\x00" + b"A" * 5_000, "invalid bulk length"),
    (b"*1\r\n$4\n" + b"A" * 5_000, "invalid bulk length"),
    (b"*1\r\n$%d\r\n" % (resp.LARGEST_WORD + 1), "invalid bulk length"),
    (b"*1\r\n$4\r\nPINGxx", "expected CRLF after a bulk string"),
    (b"*1\r\n$4\r\nPING\n\n", "expected CRLF after a bulk string"),
    (b"*1\r\n$4\r\nPING\rx", "expected CRLF after a bulk string"),
    (b"*1\r\n$3\r\nPING\r\n", "expected CRLF after a bulk string"),
    (b"*2\r\n$4\r\nECHO\r\n*1\r\n$1\r\nx\r\n", "expected '$', got '*'"),
    (b"*1\r\n:5\r\n", "expected '$', got ':'"),
    (b"*1\r\n+PING\r\n", "expected '$', got '+'"),
    (b"*1\r\n%1\r\n", "expected '$', got '%'"),
    (b"*1\r\n>1\r\n", "expected '$', got '>'"),
    (b"*1\r\n,1.5\r\n", "expected '$', got ','"),
    (b"*1\r\n_\r\n", "expected '$', got '_'"),
    (b"*1\r\nPING\r\n", "expected '$', got 'P'"),
    (b"*1\r\n" + b"A" * 5_000, "expected '$', got 'A'"),
    (b"*1\r\n\x00", "expected '$', got '\\x00'"),
    (b"*2\r\n$4\r\nPING\r\n\r\n", "expected '$', got '\\r'"),
    (b"%1\r\n$1\r\na\r\n$1\r\nb\r\n", "expected '*', got '%'"),
    (b">1\r\n$4\r\nPING\r\n", "expected '*', got '>'"),
    (b"~1\r\n$4\r\nPING\r\n", "expected '*', got '~'"),
    (b",1.5\r\n", "expected '*', got ','"),
    (b"$4\r\nPING\r\n", "expected '*', got '$'"),
    (b":5\r\n", "expected '*', got ':'"),
    (b"\x00", "expected '*', got '\\x00'"),
    (b"\xff", "expected '*', got '\\xff'"),
    (b'PING "x\r\n', "unbalanced quotes in request"),
    (b"PING 'x\r\n", "unbalanced quotes in request"),
    (b'PING "x"y\r\n', "unbalanced quotes in request"),
    (b'"""PING"""\r\n', "unbalanced quotes in request"),
    (b"PING \"x'\r\n", "unbalanced quotes in request"),
    (b"A" * resp.LONGEST_LINE, "too big inline request"),
    (b"PING " + b"A" * 1_000_000, "too big inline request"),
    (b"x " * 1_025 + b"\n", "too many words in an inline request"),
]
FOREIGN = [
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /api/v1/health HTTP/1.1\r\n",
    b"POST /x HTTP/1.1\r\nContent-Length: 5\r\n\r\n",
    b"PUT / HTTP/1.1\r\n",
    b"DELETE /x HTTP/1.1\r\n",
    b"HEAD / HTTP/1.0\r\n",
    b"OPTIONS * HTTP/1.1\r\n",
    b"GET http://x/ HTTP/1.1\r\n",
    b"CONNECT x:443 HTTP/1.1\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"Host: 127.0.0.1:6379\r\n",
    b"\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03" + b"x" * 200,
]


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in pairwise(edges)]


def read(*pieces: bytes) -> tuple[list[list[bytes]], RequestReader]:
    """The commands in a stream that comes in pieces, and the reader after it."""
    reader = RequestReader()
    commands: list[list[bytes]] = []
    for piece in pieces:
        commands += reader.feed(piece)
    return commands, reader


def cuts_of(data: bytes) -> list[list[bytes]]:
    """A stream as a whole, in single bytes, and in some ways between."""
    chance = random.Random(len(data))
    ways = [[data], [data[place : place + 1] for place in range(min(len(data), 200))]]
    ways[1].append(data[200:])
    some = [[chance.randrange(len(data) + 1) for _ in range(number)] for number in range(1, 6)]
    return ways + [cut(data, places) for places in some]


@given(streams, st.lists(st.integers(0, 100_000), max_size=20))
@example((b"", []), [])
@example((PING * 3, [[b"PING"]] * 3), [1, 2, 14, 15, 16])
def test_any_cut_of_a_stream_gives_the_same_commands(
    stream: tuple[bytes, list[list[bytes]]], places: list[int]
) -> None:
    data, expected = stream
    commands, reader = read(*cut(data, places))
    assert (commands, reader.fault, reader.held) == (expected, None, 0)


@given(streams)
def test_single_bytes_give_the_same_commands(stream: tuple[bytes, list[list[bytes]]]) -> None:
    data, expected = stream
    data, expected = data[:600], expected if len(data) <= 600 else read(data[:600])[0]
    assert read(*(data[place : place + 1] for place in range(len(data))))[0] == expected


@given(streams, st.sampled_from(MALFORMED), st.lists(st.integers(0, 100_000), max_size=8))
def test_commands_before_a_fault_are_given_whatever_the_cut(
    stream: tuple[bytes, list[list[bytes]]], bad: tuple[bytes, str], places: list[int]
) -> None:
    data, expected = stream
    commands, reader = read(*cut(data + bad[0], places))
    assert commands == expected
    assert str(reader.fault) == bad[1]


@pytest.mark.parametrize(("data", "complaint"), MALFORMED, ids=lambda value: repr(value[:40]))
def test_what_is_not_resp_is_refused_and_nothing_after_it_is_read(
    data: bytes, complaint: str
) -> None:
    for pieces in cuts_of(data):
        commands, reader = read(PING, *pieces)
        assert commands == [[b"PING"]]
        assert isinstance(reader.fault, ProtocolError)
        assert not isinstance(reader.fault, ForeignProtocol)
        assert str(reader.fault) == complaint
        assert (reader.feed(PING), reader.held) == ([], 0)


@pytest.mark.parametrize("data", FOREIGN, ids=lambda value: repr(value[:20]))
def test_other_protocols_are_recognised(data: bytes) -> None:
    for pieces in cuts_of(data):
        commands, reader = read(*pieces, PING)
        assert commands == []
        assert isinstance(reader.fault, ForeignProtocol)


@pytest.mark.parametrize("line", [b"get x\r\n", b"POST x y\r\n", b"hosts: x\r\n", b"CONNECTED\r\n"])
def test_words_that_only_resemble_http_are_commands(line: bytes) -> None:
    commands, reader = read(line)
    assert (commands, reader.fault) == ([line.split()], None)


junk = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.sampled_from(
            [b"*", b"$", b"\r\n", b"*2\r\n", b"$3\r\n", b"*1024\r\n", b"$11534336\r\n"]
        ),
        st.sampled_from([b"abc\r\n", b'"', b"'", b"\\", b"\\x4", b"\x16", b"*-1\r\n", PING]),
    ),
    max_size=30,
)


@given(junk)
def test_random_bytes_never_raise_and_never_hold_more_than_was_sent(pieces: list[bytes]) -> None:
    reader = RequestReader()
    sent = 0
    for piece in pieces:
        commands = reader.feed(piece)
        sent += len(piece)
        assert all(commands), "no command is empty"
        sent -= sum(len(word) for command in commands for word in command)
        assert 0 <= reader.held <= sent
        if reader.fault is not None:
            assert reader.held == 0


@given(junk)
def test_random_bytes_mean_the_same_however_they_are_cut(pieces: list[bytes]) -> None:
    whole, one = read(b"".join(pieces))
    parts, other = read(*pieces)
    assert (whole, str(one.fault)) == (parts, str(other.fault))


def test_a_promise_reserves_nothing() -> None:
    reader = RequestReader()
    reader.feed(b"*1024\r\n$%d\r\n" % resp.LARGEST_WORD)
    assert reader.held == 0
    reader.feed(b"x" * 1_000)
    assert reader.held == 1_000


def test_as_many_words_as_allowed_and_no_more() -> None:
    most = [b"%d" % number for number in range(resp.MOST_WORDS)]
    commands, reader = read(resp.command(*most), b" ".join(most) + b"\n", PING)
    assert (commands, reader.fault) == ([most, most, [b"PING"]], None)
    assert read(resp.command(*most, b"x"))[1].fault is not None


@pytest.mark.parametrize("piece", [65_536, 1_000_003, 2**30])
def test_words_and_commands_as_large_as_allowed_and_no_larger(piece: int) -> None:
    largest = b"\r\n" * (resp.LARGEST_WORD // 2)
    rest = b"y" * (resp.LARGEST_FRAME - len(largest))
    data = resp.command(b"", largest, rest) + PING
    commands, reader = read(*(data[at : at + piece] for at in range(0, len(data), piece)))
    assert reader.fault is None
    assert commands == [[b"", largest, rest], [b"PING"]]
    commands, reader = read(PING + resp.command(b"x", largest, rest))
    assert (commands, str(reader.fault)) == ([[b"PING"]], "the command is too large")


def test_a_large_word_in_very_many_pieces_is_put_together_once() -> None:
    reader = RequestReader()
    size = 2_000_000
    reader.feed(b"*1\r\n$%d\r\n" % size)
    for _ in range(size // 10):
        assert reader.feed(b"0123456789") == []
    assert reader.held == size
    assert reader.feed(b"\r\n") == [[b"0123456789" * (size // 10)]]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"PING", [b"PING"]),
        (b"  a \t b  ", [b"a", b"b"]),
        (b"", []),
        (b'ECHO "two words"', [b"ECHO", b"two words"]),
        (b'ECHO ""', [b"ECHO", b""]),
        (b"ECHO ''", [b"ECHO", b""]),
        (rb'"\x00\xfF\n\r\t\b\a\"\\\q"', [b'\x00\xff\n\r\t\b\a"\\q']),
        (rb"'it\'s \n'", [rb"it's \n"]),
        (b'pre"fix ed" x', [b"prefix ed", b"x"]),
        (rb'"\x4"', [b"x4"]),
        ("größe ٣".encode(), ["größe".encode(), "٣".encode()]),
    ],
)
def test_a_typed_line_is_split_as_redis_does(line: bytes, expected: list[bytes]) -> None:
    assert resp.split_line(line) == expected


@given(st.lists(st.binary(max_size=20), max_size=10))
def test_quoted_words_come_back_as_they_were(words: list[bytes]) -> None:
    quoted = (b'"' + b"".join(b"\\x%02x" % byte for byte in word) + b'"' for word in words)
    assert resp.split_line(b" ".join(quoted)) == words


@given(st.text(" \t'\"\\xab\x00é", max_size=60).map(str.encode))
def test_any_line_is_split_or_refused(line: bytes) -> None:
    commands, reader = read(b"x " + line + b"\n")
    assert bool(commands) == (reader.fault is None)
    assert commands == [] or commands[0][0][:1] == b"x"


@pytest.mark.parametrize(
    "line", [b'"' + b"\\" * 65_000, b"'" * 65_001, b'"' * 65_001, b"a" * 65_000, b"\\'" * 32_000]
)
def test_hostile_lines_are_split_in_no_time(line: bytes) -> None:
    commands, reader = read(line + b"\n")
    assert commands or reader.fault is not None or not line.strip()
