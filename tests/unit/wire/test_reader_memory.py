"""What a stream of requests may cost in memory: as much as has arrived, and no more than that."""

import tracemalloc
from collections.abc import Iterable

from taskqueue.wire import resp

MIB = 1024 * 1024


def read_and_measure(pieces: Iterable[bytes]) -> tuple[list[list[bytes]], int]:
    """The commands in a stream, and the most bytes that were taken while they were read."""
    tracemalloc.start()
    try:
        reader = resp.RequestReader()
        commands = [one for piece in pieces for one in reader.feed(piece)]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reader.fault is None
    return commands, peak


def test_a_promise_of_bytes_takes_no_memory() -> None:
    promise = b"*%d\r\n$%d\r\n" % (resp.MOST_WORDS, resp.LARGEST_WORD)
    commands, peak = read_and_measure([promise])
    assert commands == []
    assert peak < 16 * 1024


def test_a_large_payload_in_small_pieces_is_put_together_once() -> None:
    payload = bytes(range(256)) * (10 * MIB // 256)
    stream = resp.command(b"TQ.SUBMIT", b"work", payload)
    pieces = [stream[at : at + 65_536] for at in range(0, len(stream), 65_536)]
    commands, peak = read_and_measure(pieces)
    assert commands == [[b"TQ.SUBMIT", b"work", payload]]
    assert peak < 25 * MIB


def test_a_payload_in_the_smallest_pieces_takes_little_more_than_itself() -> None:
    payload = bytes(200_000)
    stream = resp.command(b"TQ.SUBMIT", b"work", payload)
    commands, peak = read_and_measure(stream[at : at + 1] for at in range(len(stream)))
    assert commands == [[b"TQ.SUBMIT", b"work", payload]]
    assert peak < 4 * len(payload)


def test_a_read_full_of_line_ends_takes_little_more_than_itself() -> None:
    word = b"\r\n" * (resp.LARGEST_SPLIT // 2 - 64)
    commands, peak = read_and_measure([resp.command(b"ECHO", word)])
    assert commands == [[b"ECHO", word]]
    assert peak < 8 * len(word)
