"""RESP without sockets: bytes in, commands out; values in, bytes out.

The format is https://redis.io/docs/latest/develop/reference/protocol-spec. Requests are flat arrays
of bulk strings, or one line as typed into telnet. Anything else is refused before a byte is
reserved for it: a header only ever promises, memory is taken for what has arrived.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from string import ascii_letters, digits
from typing import Final, cast

from msgspec import Struct
from msgspec.structs import fields

MOST_WORDS: Final = 1_024
LARGEST_WORD: Final = 11 * 1024 * 1024
"""Above the largest payload, so that one a little too large is refused by name."""

LARGEST_FRAME: Final = 12 * 1024 * 1024
LONGEST_LINE: Final = 64 * 1024
MOST_WORDS_OF_STRANGERS: Final = 10
LARGEST_WORD_OF_STRANGERS: Final = 16 * 1024
LEAST_PIECE: Final = 16 * 1024
LONGEST_HEADER: Final = 16

LARGEST_SPLIT: Final = 256 * 1024
"""Bytes that are split at line ends in one go: as much as a socket gives in one read."""

_ARRAY, _BULK, _CR, _LF, _TLS = b"*$\r\n\x16"
_COUNTS: Final = {b"*%d" % count: count for count in range(1, MOST_WORDS + 1)}
_HEADERS: Final = [b"$%d" % size for size in range(4_096)]
_FOREIGN: Final = re.compile(
    rb"(?:(?:GET|POST|PUT|DELETE|HEAD|OPTIONS|PATCH|TRACE|PRI) (?:/|\*|https?:)|CONNECT |host:)",
    re.IGNORECASE,
)
_LINE_STARTS: Final = frozenset(b"\r\n\t \"'" + ascii_letters.encode() + digits.encode())
_WORD: Final = re.compile(
    rb"""\s*+([^\s"']*)(?:"((?:[^"\\]|\\.)*+)"|'((?:\\'|[^'])*+)')?(?=\s|\Z)""",
    re.DOTALL,
)
_ESCAPE: Final = re.compile(rb"\\(x[0-9a-fA-F]{2}|.)", re.DOTALL)
_ESCAPED: Final = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"b": b"\b", b"a": b"\a"}


class ProtocolError(Exception):
    """The bytes are not RESP; the connection cannot be trusted any further."""


class ForeignProtocol(ProtocolError):
    """The bytes are another protocol's: HTTP or TLS on the wrong port."""


class RequestReader:
    """Cuts a stream of bytes into commands, however the stream was cut into pieces."""

    def __init__(self) -> None:
        self.fault: ProtocolError | None = None
        """Why nothing more can be read; the commands before it are good."""
        # What is held of a command: pieces, none of them small, and what has come since.
        self._pieces: list[bytes] = []
        self._latest = bytearray()
        self._held = 0
        self._needed = 0
        # Of the command that has arrived in part: its words, how many are to come, their bytes
        # as announced, and the size of the next one once its header is read.
        self._words: list[bytes] = []
        self._missing = 0
        self._announced = 0
        self._size = -1

    @property
    def held(self) -> int:
        """Bytes kept of a command that has not arrived as a whole."""
        return self._held + self._announced - max(self._size, 0)

    @property
    def is_modest(self) -> bool:
        """Whether the command that has arrived in part is no larger than a handshake need be."""
        number = len(self._words) + self._missing
        return number <= MOST_WORDS_OF_STRANGERS and self._size <= LARGEST_WORD_OF_STRANGERS

    def feed(self, data: bytes) -> list[list[bytes]]:
        """The commands that are complete with `data`, up to a fault if there is one."""
        if self.fault is not None:
            return []
        if self._held:
            self._keep(data)
            if self._held < self._needed:
                return []
            data = b"".join([*self._pieces, self._latest])
        commands: list[list[bytes]] = []
        self._needed = 0
        try:
            rest = data[self._cut(data, commands) :]
        except ProtocolError as error:
            self.fault, rest = error, b""
            self._words, self._missing, self._announced, self._size = [], 0, 0, -1
        self._pieces, self._latest, self._held = [], bytearray(), 0
        self._keep(rest)
        return commands

    def _keep(self, data: bytes) -> None:
        self._held += len(data)
        if len(data) < LEAST_PIECE:
            # Many small pieces apart would take many times what they hold.
            self._latest += data
            if len(self._latest) < LEAST_PIECE:
                return
            data = bytes(self._latest)
        elif self._latest:
            self._pieces.append(bytes(self._latest))
        self._latest.clear()
        self._pieces.append(data)

    def _cut(self, buffer: bytes, commands: list[list[bytes]]) -> int:
        """Add the commands in `buffer`, return where what is left of it begins."""
        position = self._read_words(buffer, 0, commands) if self._missing else 0
        if not self._needed and len(buffer) <= LARGEST_SPLIT:
            position += _split(buffer[position:] if position else buffer, commands)
        while not self._needed and position < len(buffer):
            position = self._begin(buffer, position, commands)
            if self._missing:
                position = self._read_words(buffer, position, commands)
        return position

    def _begin(self, buffer: bytes, position: int, commands: list[list[bytes]]) -> int:
        """Read what opens a command: the header of an array, or a whole line."""
        if buffer[position] != _ARRAY:
            return self._read_line(buffer, position, commands)
        end = buffer.find(b"\r\n", position, position + LONGEST_HEADER)
        if end < 0:
            self._want_header(buffer, position, "invalid multibulk length")
            return position
        number = buffer[position + 1 : end]
        if number[:1] == b"-" and number[1:].isdigit():
            return end + 2  # a null array asks for nothing, as in Redis
        if not number.isdigit() or int(number) > MOST_WORDS:
            raise ProtocolError("invalid multibulk length")
        self._missing = int(number)
        return end + 2

    def _read_words(self, buffer: bytes, position: int, commands: list[list[bytes]]) -> int:
        """Read as many words of the present command as have arrived."""
        while self._missing:
            if self._size < 0:
                end = buffer.find(b"\r\n", position, position + LONGEST_HEADER)
                if end < 0:
                    self._want_header(buffer, position, "invalid bulk length")
                    return position
                self._size = self._read_size(buffer, position, end)
                position = end + 2
            stop = position + self._size
            if stop + 2 > len(buffer):
                self._needed = self._size + 2
                return position
            if buffer[stop] != _CR or buffer[stop + 1] != _LF:
                raise ProtocolError("expected CRLF after a bulk string")
            self._words.append(buffer[position:stop])
            self._missing -= 1
            self._size = -1
            position = stop + 2
        commands.append(self._words)
        self._words, self._announced = [], 0
        return position

    def _read_size(self, buffer: bytes, position: int, end: int) -> int:
        if buffer[position] != _BULK:
            raise _unexpected(buffer[position])
        number = buffer[position + 1 : end]
        if not number.isdigit() or int(number) > LARGEST_WORD:
            raise ProtocolError("invalid bulk length")
        self._announced += int(number)
        if self._announced > LARGEST_FRAME:
            raise ProtocolError("the command is too large")
        return int(number)

    def _want_header(self, buffer: bytes, position: int, complaint: str) -> None:
        if self._missing and position < len(buffer) and buffer[position] != _BULK:
            raise _unexpected(buffer[position])
        if len(buffer) - position >= LONGEST_HEADER:
            raise ProtocolError(complaint)
        self._needed = len(buffer) - position + 1

    def _read_line(self, buffer: bytes, position: int, commands: list[list[bytes]]) -> int:
        if buffer[position] == _TLS:
            raise ForeignProtocol("this is a TLS hello; this port speaks RESP without TLS")
        end = buffer.find(b"\n", position, position + LONGEST_LINE)
        if _FOREIGN.match(buffer, position):
            raise ForeignProtocol("this is an HTTP request; this port speaks RESP")
        if buffer[position] not in _LINE_STARTS:
            raise _unexpected(buffer[position], "'*'")
        if end < 0:
            if len(buffer) - position >= LONGEST_LINE:
                raise ProtocolError("too big inline request")
            self._needed = len(buffer) - position + 1
            return position
        words = split_line(buffer[position:end])
        if len(words) > MOST_WORDS:
            raise ProtocolError("too many words in an inline request")
        if words:
            commands.append(words)
        return end + 1


def _split(buffer: bytes, commands: list[list[bytes]]) -> int:
    """Add the plain commands that `buffer` begins with; return where they end.

    Splits at all line ends at once, in C, and then asks of each command whether its headers are
    those that its words would have: if so, this is the one way to read it. The first that is
    otherwise (a line end within a word, a large word, half a command, a fault) is left to the
    scan. Three times as fast as the scan: 1.3 instead of 3.7 µs for a command of seven words.
    """
    lines = buffer.split(b"\r\n")
    counts, headers = _COUNTS, _HEADERS
    place, last = 0, len(lines) - 1
    while place < last:
        count = counts.get(lines[place])
        if count is None:
            break
        end = place + 1 + 2 * count
        if end > last:
            break
        words = lines[place + 2 : end : 2]
        try:
            if [headers[len(word)] for word in words] != lines[place + 1 : end : 2]:
                break
        except IndexError:
            break
        commands.append(words)
        place = end
    return len(buffer) if place == last and not lines[last] else _size_of(lines[:place])


def _size_of(lines: list[bytes]) -> int:
    return sum(map(len, lines)) + 2 * len(lines)


def _unexpected(byte: int, expected: str = "'$'") -> ProtocolError:
    return ProtocolError(f"expected {expected}, got {chr(byte)!a}")


def split_line(line: bytes) -> list[bytes]:
    """The words of a line as typed into telnet, with quotes and escapes as Redis has them."""
    words: list[bytes] = []
    line = line.strip()
    position = 0
    while position < len(line):
        match = _WORD.match(line, position)
        if match is None:
            raise ProtocolError("unbalanced quotes in request")
        word, quoted, single = match.groups(b"")
        words.append(word + _ESCAPE.sub(_unescape, quoted) + single.replace(b"\\'", b"'"))
        position = match.end()
    return words


def _unescape(match: re.Match[bytes]) -> bytes:
    escaped = match[1]
    if len(escaped) == 3:
        return bytes.fromhex(escaped[1:].decode())
    return _ESCAPED.get(escaped, escaped)


OK: Final = b"+OK\r\n"
PONG: Final = b"+PONG\r\n"


def simple(text: str) -> bytes:
    """A short answer without line ends in it."""
    return b"+%s\r\n" % text.encode()


def error(code: str, message: str) -> bytes:
    """An error, on one line whatever the message holds."""
    line = "".join(character if character.isprintable() else " " for character in message)
    return f"-{code} {line}\r\n".encode(errors="replace")


def bulk(data: bytes) -> bytes:
    """A string of bytes."""
    return b"$%d\r\n%s\r\n" % (len(data), data)


def timestamp(date: datetime) -> str:
    """RFC 3339, UTC, with `Z`."""
    return date.isoformat()[:-6] + "Z"


def encode(value: object, *, resp3: bool) -> bytes:
    """A value as a reply: structs and dicts as maps, which RESP2 has as flat arrays."""
    match value:
        case None:
            return b"_\r\n" if resp3 else b"$-1\r\n"
        case bytes():
            return bulk(value)
        case str():
            return bulk(value.encode())
        case bool():
            return (b"#t\r\n" if value else b"#f\r\n") if resp3 else b":%d\r\n" % value
        case int():
            return b":%d\r\n" % value
        case float():
            return b",%r\r\n" % value if resp3 else bulk(repr(value).encode())
        case datetime():
            return bulk(timestamp(value).encode())
        case _:
            return _encode_many(value, resp3=resp3)


def _encode_many(value: object, *, resp3: bool) -> bytes:
    match value:
        case Struct():
            pairs = {field.encode_name: getattr(value, field.name) for field in fields(value)}
            return _encode_many(pairs, resp3=resp3)
        case dict():
            pairs = cast(dict[str, object], value)
            head = b"%%%d\r\n" % len(pairs) if resp3 else b"*%d\r\n" % (2 * len(pairs))
            return head + _joined((part for pair in pairs.items() for part in pair), resp3=resp3)
        case list():
            parts = cast(list[object], value)
            return b"*%d\r\n" % len(parts) + _joined(parts, resp3=resp3)
        case _:
            raise TypeError(f"RESP has no form for {type(value).__name__}")


def _joined(values: Iterable[object], *, resp3: bool) -> bytes:
    return b"".join(encode(value, resp3=resp3) for value in values)


def command(*words: bytes) -> bytes:
    """A command as a client sends it."""
    parts = [b"*%d\r\n" % len(words)]
    parts += [b"$%d\r\n%s\r\n" % (len(word), word) for word in words]
    return b"".join(parts)
