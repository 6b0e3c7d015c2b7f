"""RESP without sockets: bytes in, commands out; values in, bytes out.

The format is https://redis.io/docs/latest/develop/reference/protocol-spec. Requests are flat arrays
of bulk strings, or one line as typed into telnet. Anything else is refused before a byte is
reserved for it: a header only ever promises, memory is taken for what has arrived.
"""

import re
from collections.abc import Iterable
from datetime import datetime
from typing import Final, cast

from msgspec import Struct
from msgspec.structs import fields

MOST_WORDS: Final = 1_024
LARGEST_WORD: Final = 11 * 1024 * 1024
"""Above the largest payload, so that one a little too large is refused by name."""

LARGEST_FRAME: Final = 12 * 1024 * 1024
LONGEST_LINE: Final = 64 * 1024
LONGEST_HEADER: Final = 16

_ARRAY, _BULK, _CR, _LF, _TLS = b"*$\r\n\x16"
_SIZES: Final = {b"$%d" % size: size for size in range(1_024)}
_FOREIGN: Final = re.compile(
    rb"(?:GET|POST|PUT|DELETE|HEAD|OPTIONS|PATCH|PRI) |host:", re.IGNORECASE
)
_WORD: Final = re.compile(
    rb"""[ \t]*(?:"((?:[^"\\]|\\.)*)"(?=\s|$)|'((?:[^'\\]|\\.)*)'(?=\s|$)|([^\s"']\S*))""",
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
        self._pieces: list[bytes] = []
        self._held = 0
        self._needed = 0
        self._words: list[bytes] = []
        self._missing = 0
        self._frame_size = 0

    def feed(self, data: bytes) -> list[list[bytes]]:
        """The commands that are complete with `data`, up to a fault if there is one."""
        if self.fault is not None:
            return []
        self._pieces.append(data)
        self._held += len(data)
        if self._held < self._needed:
            return []
        buffer = data if len(self._pieces) == 1 else b"".join(self._pieces)
        commands: list[list[bytes]] = []
        position, self._needed = 0, 0
        try:
            while not self._needed and position < len(buffer):
                if not self._missing:
                    position = self._begin(buffer, position, commands)
                if self._missing:
                    position = self._read_words(buffer, position)
                    if not self._missing:
                        commands.append(self._words)
        except ProtocolError as error:
            self.fault, position = error, len(buffer)
        rest = buffer[position:]
        self._pieces = [rest] if rest else []
        self._held = len(rest)
        return commands

    def _begin(self, buffer: bytes, position: int, commands: list[list[bytes]]) -> int:
        """Read what opens a command: the header of an array, or a whole line."""
        if buffer[position] != _ARRAY:
            return self._read_line(buffer, position, commands)
        end = buffer.find(b"\r\n", position, position + LONGEST_HEADER)
        if end < 0:
            self._want_header(buffer, position, "invalid multibulk length")
            return position
        digits = buffer[position + 1 : end]
        if not digits.isdigit():
            if digits[:1] == b"-" and digits[1:].isdigit():
                return end + 2  # a null array asks for nothing, as in Redis
            raise ProtocolError("invalid multibulk length")
        number = int(digits)
        if number > MOST_WORDS:
            raise ProtocolError("invalid multibulk length")
        self._missing, self._words, self._frame_size = number, [], 0
        return end + 2

    def _read_words(self, buffer: bytes, position: int) -> int:
        """Read as many words of the present command as have arrived."""
        find, length, words = buffer.find, len(buffer), self._words
        while self._missing:
            end = find(b"\r\n", position, position + LONGEST_HEADER)
            if end < 0:
                self._want_header(buffer, position, "invalid bulk length")
                break
            size = _SIZES.get(buffer[position:end])
            if size is None:
                size = _bulk_size(buffer, position, end)
            start = end + 2
            stop = start + size
            if stop + 2 > length:
                self._add_to_frame(size, only_check=True)
                self._needed = stop + 2 - position
                break
            if buffer[stop] != _CR or buffer[stop + 1] != _LF:
                raise ProtocolError("expected CRLF after a bulk string")
            self._add_to_frame(size)
            words.append(buffer[start:stop])
            position = stop + 2
            self._missing -= 1
        return position

    def _add_to_frame(self, size: int, *, only_check: bool = False) -> None:
        if self._frame_size + size > LARGEST_FRAME:
            raise ProtocolError("the command is too large")
        if not only_check:
            self._frame_size += size

    def _want_header(self, buffer: bytes, position: int, complaint: str) -> None:
        if len(buffer) - position >= LONGEST_HEADER:
            raise ProtocolError(complaint)
        if self._missing and position < len(buffer) and buffer[position] != _BULK:
            raise _unexpected(buffer[position])
        self._needed = len(buffer) - position + 1

    def _read_line(self, buffer: bytes, position: int, commands: list[list[bytes]]) -> int:
        if buffer[position] == _TLS:
            raise ForeignProtocol("this is a TLS hello; this port speaks RESP without TLS")
        end = buffer.find(b"\n", position, position + LONGEST_LINE)
        line = buffer[position:end] if end >= 0 else buffer[position : position + 8]
        if _FOREIGN.match(line):
            raise ForeignProtocol("this is an HTTP request; this port speaks RESP")
        if end < 0:
            if len(buffer) - position >= LONGEST_LINE:
                raise ProtocolError("too big inline request")
            self._needed = len(buffer) - position + 1
            return position
        words = split_line(line)
        if len(words) > MOST_WORDS:
            raise ProtocolError("too many words in an inline request")
        if words:
            commands.append(words)
        return end + 1


def _bulk_size(buffer: bytes, position: int, end: int) -> int:
    if buffer[position] != _BULK:
        raise _unexpected(buffer[position])
    digits = buffer[position + 1 : end]
    if not digits.isdigit() or int(digits) > LARGEST_WORD:
        raise ProtocolError("invalid bulk length")
    return int(digits)


def _unexpected(byte: int) -> ProtocolError:
    return ProtocolError(f"expected '$', got {chr(byte)!a}")


def split_line(line: bytes) -> list[bytes]:
    """The words of a line as typed into telnet, with quotes and escapes as redis-cli has them."""
    words: list[bytes] = []
    line = line.strip()
    position = 0
    while position < len(line):
        match = _WORD.match(line, position)
        if match is None:
            raise ProtocolError("unbalanced quotes in request")
        quoted, single, bare = match.groups()
        if quoted is not None:
            words.append(_ESCAPE.sub(_unescape, quoted))
        else:
            words.append(bare if single is None else single.replace(b"\\'", b"'"))
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
