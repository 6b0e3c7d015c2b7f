"""What a worker and its child processes say to each other: frames of msgpack on a socket pair."""

import asyncio
import socket
import struct
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Struct

from taskqueue.worker.child_logs import Logged
from taskqueue.worker.context import Claim
from taskqueue.worker.notes import Note
from taskqueue.worker.outcomes import Failure
from taskqueue.worker.place import AppPlace

_LENGTH: Final = struct.Struct("!I")


class Start(Struct, tag=True, frozen=True):
    """To a child, once: the app to import, and the least level to log."""

    place: AppPlace
    log_level: int


class Order(Struct, tag=True, frozen=True):
    """To a child: run the handler of a claim."""

    claim: Claim


class Heard(Struct, tag=True, frozen=True):
    """To a child: what became of its word number `number`; `error` is empty if it was taken."""

    number: int
    error: str


class Stop(Struct, tag=True, frozen=True):
    """To a child: what it runs is to end."""


class Leave(Struct, tag=True, frozen=True):
    """To a child: end in good order."""


class Ready(Struct, tag=True, frozen=True):
    """From a child: it takes orders; `memory` is what it has resident, in bytes."""

    memory: int


class Unable(Struct, tag=True, frozen=True):
    """From a child: it cannot run the app's handlers."""

    failure: Failure


class Said(Struct, tag=True, frozen=True):
    """From a child: what an attempt says while it goes on."""

    number: int
    task_id: str
    token: int
    note: Note


class Completed(Struct, tag=True, frozen=True):
    """From a child: the result of its order."""

    result: bytes
    memory: int


class Failed(Struct, tag=True, frozen=True):
    """From a child: its order's failure."""

    failure: Failure
    memory: int


ToChild = Start | Order | Stop | Heard | Leave
FromChild = Ready | Unable | Said | Logged | Completed | Failed

_encoder = msgspec.msgpack.Encoder()
to_child: Final[msgspec.msgpack.Decoder[ToChild]] = msgspec.msgpack.Decoder(ToChild)
from_child: Final[msgspec.msgpack.Decoder[FromChild]] = msgspec.msgpack.Decoder(FromChild)

Message = TypeVar("Message")


def frame(message: ToChild | FromChild) -> bytes:
    """The bytes of a message."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


async def read(reader: asyncio.StreamReader, decoder: msgspec.msgpack.Decoder[Message]) -> Message:
    """The next message. Raises EOFError at the end of the connection, ConnectionError."""
    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
    return decoder.decode(await reader.readexactly(length))


def receive(connection: socket.socket, decoder: msgspec.msgpack.Decoder[Message]) -> Message:
    """As `read`, for a thread that has nothing else to do."""
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return decoder.decode(_exactly(connection, length))


def _exactly(connection: socket.socket, length: int) -> Any:
    data = bytearray(length)
    view = memoryview(data)
    while view:
        count = connection.recv_into(view)
        if not count:
            raise EOFError("the other side has hung up")
        view = view[count:]
    return data
