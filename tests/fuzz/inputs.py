"""Hostile and nearly valid input for the native door, made from a seed."""

import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from taskqueue.doors.grammar import GRAMMARS
from taskqueue.doors.handshake import HANDSHAKES

NAMES: Final = [*GRAMMARS, *HANDSHAKES, b"GET", b"EVAL", b"MULTI", b"SUBSCRIBE", b""]
WORDS: Final = [
    b"", b"0", b"-1", b"1", b"255", b"256", b"1_000", b" 5", b"1e3", b"9" * 40, b"-0",
    b"\xd9\xa5", b"\xff\xfe", b"\x00", b"\r\n", b"work", b"TYPES", b"ID", b"KEY", b"BLOCK",
    b"COUNT", b"PRIORITY", b"PERMISSIONS", b"admin", b"3", b"2", b"AUTH", b"SETNAME", b"x" * 300,
    b"0192f0c1-2f8e-7cc2-98b4-1f2d3c4b5a69", b"2024-01-01T12:00:00Z", b"9999-12-31T23:59:59-23:59",
]  # fmt: skip
BROKEN: Final = [
    b"*-10\r\n",
    b"*3000000000\r\n",
    b"*1\r\n$-10\r\n",
    b"*1\r\n$2000000000\r\n",
    b"*1\r\n$blabla\r\n",
    b"*1\r\n+PING\r\n",
    b"*1\r\n$4\r\nPINGxx",
    b"\x00",
    b"*\x00",
    b"*1\r\n$\x00",
    b'"unbalanced\r\n',
    b"*2\r\n*1\r\n$1\r\na\r\n",
    b"%1\r\n",
    b">1\r\n",
    b"GET / HTTP/1.1\r\n\r\n",
    b"\x16\x03\x01\x02\x00",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"*1025\r\n",
    b"*01\r\n$4\r\nPING\r\n",
    b"host: x\r\n",
    b"\r\n",
    b"*0\r\n",
    b"*-1\r\n",
    b" \t \r\n",
    b"'a' \"b\\x41\" c\r\n",
    b"\xff" * 50,
]


def inputs(seed: int, number: int) -> Iterator[bytes]:
    """So many inputs, the same ones for the same seed."""
    rng = random.Random(seed)
    for _ in range(number):
        yield one_input(rng)


def one_input(rng: random.Random) -> bytes:
    """One input: a command, a broken one, noise, or several of them."""
    kind = rng.random()
    if kind < 0.45:
        return command(rng)
    if kind < 0.65:
        return mutated(rng, command(rng))
    if kind < 0.8:
        return rng.choice(BROKEN)
    if kind < 0.9:
        return rng.randbytes(rng.randrange(1, 40))
    return b"".join(one_input(rng) for _ in range(rng.randrange(2, 4)))


def command(rng: random.Random) -> bytes:
    """A well-formed command of words that may make no sense."""
    name = rng.choice(NAMES)
    if rng.random() < 0.2:
        name = name.lower()
    words = [name, *(rng.choice(WORDS) for _ in range(rng.randrange(8)))]
    if rng.random() < 0.1:
        return b" ".join(words) + b"\r\n"
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The same with a byte changed, left out or put in, or with its end cut off."""
    place = rng.randrange(len(data))
    match rng.randrange(4):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + rng.randbytes(1) + data[place + 1 :]
        case 2:
            return data[:place] + data[place + 1 :]
        case _:
            return data[:place] + rng.choice(BROKEN) + data[place:]


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """The same bytes as several reads may bring them."""
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
    edges = [0, *cuts, len(data)]
    return [data[a:b] for a, b in pairwise(edges)]
