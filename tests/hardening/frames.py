"""HTTP/2 by hand: frames as RFC 9113 has them, and such as no library would send."""

import asyncio
from collections.abc import Mapping

from tests.hardening.attacker import Streams, open_streams

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW, CONTINUATION = range(10)

END_STREAM, END_HEADERS = 0x1, 0x4
ACK = 0x1

INITIAL_WINDOW_SIZE = 4


def frame(kind: int, stream: int, payload: bytes = b"", flags: int = 0) -> bytes:
    """One frame."""
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return head + payload


def setting(name: int, value: int) -> bytes:
    """A frame of one setting."""
    return frame(SETTINGS, 0, name.to_bytes(2, "big") + value.to_bytes(4, "big"))


def hello(*settings: bytes) -> bytes:
    """How a connection begins."""
    return PREFACE + frame(SETTINGS, 0) + b"".join(settings)


def header(name: str, value: str | bytes) -> bytes:
    """A header line, not compressed and not to be remembered."""
    content = value if isinstance(value, bytes) else value.encode()
    return b"\x00" + _text(name.encode()) + _text(content)


def _text(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes([len(text)]) + text
    rest, digits = len(text) - 127, b""
    while rest >= 128:
        digits += bytes([rest % 128 + 128])
        rest //= 128
    return b"\x7f" + digits + bytes([rest]) + text


def call_head(path: str, more: Mapping[str, str | bytes] | None = None) -> bytes:
    """The header lines of a gRPC call."""
    lines = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "broker",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(header(name, value) for name, value in (lines | dict(more or {})).items())


def message(content: bytes, *, is_compressed: bool = False) -> bytes:
    """A message as gRPC frames it."""
    return bytes([is_compressed]) + len(content).to_bytes(4, "big") + content


def call(stream: int, path: str, content: bytes = b"") -> bytes:
    """A whole call with a short request."""
    head = frame(HEADERS, stream, call_head(path), END_HEADERS)
    return head + frame(DATA, stream, message(content), END_STREAM)


async def connected(address: str, *settings: bytes) -> Streams:
    """A connection that has begun as it should."""
    reader, writer = await open_streams(address)
    writer.write(hello(*settings))
    return reader, writer


async def sent_all(writer: asyncio.StreamWriter, data: bytes) -> bool:
    """Send in portions; whether the other side took them all."""
    try:
        for start in range(0, len(data), 65_536):
            writer.write(data[start : start + 65_536])
            await writer.drain()
    except ConnectionError:
        return False
    return True
