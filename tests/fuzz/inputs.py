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
    b"nan", b"inf", b"1" * 20 + b"." + b"1" * 20, b"\xed\xa0\x80", b"2024-02-30T25:61:61Z", b"yes",
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
    b"*" + b"9" * 5_000 + b"\r\n",
    b"*1\r\n$" + b"0" * 5_000,
    b"*1\r\n$0x10\r\n",
    b"*+1\r\n$4\r\nPING\r\n",
    b"*1\n$4\nPING\n",
    b"*2\r\n$11534336\r\nxx",
    b"*2\r\n$8388608\r\n",
    b"*1024\r\n$1\r\n",
    b"$4\r\nPING\r\n",
    b"\"\\x4\" '\\'",
]

_IDS: Final = [b"0192f0c1-2f8e-7cc2-98b4-1f2d3c4b5a6%d" % last for last in range(8)]
_NUMBERS: Final = [b"0", b"1", b"2", b"7"]
GOOD: Final[dict[str, list[bytes]]] = {
    "task_id": _IDS,
    "token": _NUMBERS,
    "priority": [b"0", b"100", b"255"],
    "schedule_at": [b"2024-01-01T12:00:00Z", b"2030-06-01T00:00:00.5+02:00"],
    "delay_seconds": [b"0", b"1.5", b"3600"],
    "timeout_seconds": [b"1", b"300"],
    "max_retries": [b"0", b"3", b"1000"],
    "wait_ms": [b"0", b"1", b"20"],
    "status": [b"pending", b"dead_letter", b"completed"],
    "limit": [b"1", b"100"],
    "offset": _NUMBERS,
    "permissions": [b"submit_tasks", b"read_tasks", b"work"],
    "rate_limit": [b"1", b"1000"],
    "expires_in_seconds": [b"60", b"86400"],
    "overlap_seconds": _NUMBERS,
    "before": [b"1", b"99"],
    "count": [b"1", b"5", b"100"],
    "retryable": [b"yes", b"no", b"YES"],
    "process_died": [b"yes", b"no"],
    "fraction": [b"0", b"0.5", b"1"],
    "key_id": [b"key_2f6b1c0de4a95d38"],
}
"""Words that a field takes; any other field takes one of the next."""

NAMES_OF_ANYTHING: Final = [b"work", b"mail.send", b"w1", b"w2", b"x"]

EDGES: Final = [4_095, 4_096, 16_382, 16_384, 16_385, 65_535, 65_536, 262_142, 262_144, 300_000]
"""Sizes at which the parser goes another way, and some beside them."""

BYTE_BY_BYTE: Final = 200
"""Longest input that may come one byte at a time."""


def inputs(seed: int, number: int) -> Iterator[bytes]:
    """So many inputs, the same ones for the same seed."""
    rng = random.Random(seed)
    for _ in range(number):
        yield one_input(rng)


def one_input(rng: random.Random) -> bytes:
    """One input: a command, a broken one, noise, something large, or several of them."""
    match rng.choices(range(7), (34, 24, 12, 12, 8, 8, 0.05))[0]:
        case 0:
            return written(rng, a_command(rng))
        case 1:
            return mutated(rng, written(rng, a_command(rng)))
        case 2:
            return rng.choice(BROKEN)
        case 3:
            return rng.randbytes(rng.randrange(1, 40))
        case 4:
            return b"".join(one_input(rng) for _ in range(rng.randrange(2, 4)))
        case 5:
            return nested(rng)
        case _:
            return large(rng)


def a_command(rng: random.Random) -> list[bytes]:
    """The words of a command that is as it should be, nearly so, or makes no sense."""
    kind = rng.random()
    if kind < 0.4:
        return valid(rng)
    if kind < 0.7:
        return spoiled(rng, valid(rng))
    name = rng.choice(NAMES)
    if rng.random() < 0.2:
        name = name.lower()
    return [name, *(rng.choice(WORDS) for _ in range(rng.randrange(8)))]


def valid(rng: random.Random) -> list[bytes]:
    """A command of the queue as its grammar has it, with some of its options."""
    name, grammar = rng.choice(list(GRAMMARS.items()))
    words = [name, *(_good(rng, field.name) for field in grammar.fixed)]
    for keyword, field in grammar.options.items():
        if rng.random() < 0.3:
            words += [keyword, _good(rng, field.name)]
    if grammar.rest is not None:
        words += [grammar.rest.keyword] if grammar.rest.keyword else []
        for _ in range(rng.randrange(1, 4)):
            parts = ["task_id", "token"] if grammar.rest.name == "held" else [grammar.rest.name]
            words += [_good(rng, part) for part in parts]
    return words


def _good(rng: random.Random, field: str) -> bytes:
    return rng.choice(GOOD.get(field, NAMES_OF_ANYTHING))


def spoiled(rng: random.Random, words: list[bytes]) -> list[bytes]:
    """The same with a word that does not fit, left out, said twice, or in another place."""
    place, other = rng.randrange(len(words)), rng.randrange(len(words))
    match rng.randrange(5):
        case 0:
            return words[:place] + words[place + 1 :] or [b""]
        case 1:
            return [*words[:place], words[place], *words[place:]]
        case 2:
            words[place], words[other] = words[other], words[place]
            return words
        case _:
            return [*words[:place], rng.choice(WORDS), *words[place + 1 :]]


def written(rng: random.Random, words: list[bytes]) -> bytes:
    """A command as it travels; now and then as somebody types it."""
    if rng.random() < 0.1:
        return b" ".join(words) + rng.choice([b"\r\n", b"\n"])
    return encoded(words)


def encoded(words: list[bytes]) -> bytes:
    """An array of bulk strings."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)


def nested(rng: random.Random) -> bytes:
    """Arrays within arrays, many headers, or counts and sizes that do not fit what follows."""
    match rng.randrange(4):
        case 0:
            return b"*1\r\n" * rng.choice([2, 100, 10_000])
        case 1:
            return rng.choice([b"*0\r\n", b"*-1\r\n", b"\r\n"]) * rng.choice([3, 500]) + b"PING\r\n"
        case 2:
            size = rng.choice([0, 1, 3, 5, 10**6, 11 * 2**20, 11 * 2**20 + 1, 2**31, 2**63, 10**12])
            return b"*1\r\n$%d\r\nPING\r\n" % size
        case _:
            count = rng.choice([2, 10, 1_024, 1_025, 2**31 - 1, 2**32, 2**64, 10**13])
            return b"*%d\r\n$4\r\nPING\r\n" % count


def large(rng: random.Random) -> bytes:
    """Large words, many words, long lines, many commands."""
    size = rng.choice(EDGES) + rng.randrange(-2, 3)
    match rng.randrange(5):
        case 0:
            return encoded([b"TQ.SUBMIT", b"work", rng.randbytes(size), b"PRIORITY", b"1"])
        case 1:
            return encoded([b"TQ.BEAT", b"w1"] + [b"x"] * rng.choice([1_021, 1_022, 1_023]))
        case 2:
            return b"PING " + b"x" * size + rng.choice([b"", b"\n", b"\r\n"])
        case 3:
            return b"".join(written(rng, a_command(rng)) for _ in range(size // 100))
        case _:
            return encoded([b"ECHO", b"\r\n$4\r\nPING\r\n" * (size // 13)])


def mutated(rng: random.Random, data: bytes) -> bytes:
    """The same with a byte changed, left out or put in, or with its end cut off."""
    place = rng.randrange(len(data))
    match rng.randrange(5):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + rng.randbytes(1) + data[place + 1 :]
        case 2:
            return data[:place] + data[place + 1 :]
        case 3:
            return data[:place] + b"%d" % rng.randrange(12) + data[place + 1 :]
        case _:
            return data[:place] + rng.choice(BROKEN) + data[place:]


def pieces(rng: random.Random, data: bytes) -> list[bytes]:
    """The same bytes as several reads may bring them: at any place, or so many at a time."""
    if rng.random() < 0.1:
        step = 1 if len(data) <= BYTE_BY_BYTE else rng.randrange(len(data) // 40, len(data))
        return [data[start : start + step] for start in range(0, len(data), step)]
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.randrange(4)))
    edges = [0, *cuts, len(data)]
    return [data[a:b] for a, b in pairwise(edges)]
