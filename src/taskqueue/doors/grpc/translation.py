"""Messages of the gRPC API to requests and back: fields go by their names.

What a request may contain is said on the structs of `wire.messages`; here is only what protobuf
has a form of its own for: moments, fields that are not set, messages within messages.
"""

from datetime import datetime, timedelta
from typing import Any, Final, Generic, TypeVar, get_type_hints

import msgspec
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp
from msgspec import Struct

from taskqueue.core.clock import EPOCH
from taskqueue.core.errors import InvalidRequest
from taskqueue.doors import faults
from taskqueue.wire import messages as m

M = TypeVar("M", bound=Message)
R = TypeVar("R", bound=Struct)

_NANOS: Final = 1_000_000_000


def parse(kind: type[M], data: bytes) -> M:
    """The message that `data` is. Raises InvalidRequest."""
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidRequest(
            f"the request cannot be read as a {kind.DESCRIPTOR.full_name}; "
            "make it with code from the published taskqueue.proto"
        ) from None


class MessageReader(Generic[R]):
    """Turns messages of one kind into requests."""

    def __init__(self, kind: type[Message], request: type[R]) -> None:
        self._request = request
        hints = get_type_hints(request, include_extras=True)
        fields = kind.DESCRIPTOR.fields
        self._always = tuple(
            field.name for field in fields if not field.is_repeated and not field.has_presence
        )
        self._lists = tuple(
            field.name for field in fields if field.is_repeated and field.message_type is None
        )
        self._optional = tuple(
            field.name for field in fields if field.has_presence and field.message_type is None
        )
        self._moments = tuple(field.name for field in fields if _is_moment(field))
        self._structs = {
            field.name: tuple(inner.name for inner in field.message_type.fields)
            for field in fields
            if field.is_repeated and field.message_type is not None and not _is_map(field)
        }
        self._maps = tuple(field.name for field in fields if _is_map(field))
        self._inner = {
            field.name: tuple(field.message_type.fields)
            for field in fields
            if not field.is_repeated and field.message_type is not None and not _is_moment(field)
        }
        # Whatever a handler died of shall be on record: what is far beyond the part that is kept
        # is left out, not refused.
        self._cut = tuple(name for name, hint in hints.items() if hint == m.ErrorText)
        self._has_parts = bool(
            self._lists or self._structs or self._cut or self._maps or self._inner
        )

    def read(self, message: Message) -> R:
        """The request that a message stands for. Raises InvalidRequest, PayloadTooLarge."""
        values = {name: getattr(message, name) for name in self._always}
        for name in self._optional:
            if message.HasField(name):
                values[name] = getattr(message, name)
        for name in self._moments:
            if message.HasField(name):
                values[name] = self._moment(name, getattr(message, name))
        if self._has_parts:
            self._read_parts(message, values)
        try:
            return msgspec.convert(values, self._request)
        except msgspec.ValidationError as error:
            raise faults.invalid(error, self._request, _sent(values)) from None

    def _read_parts(self, message: Message, values: dict[str, Any]) -> None:
        for name in self._lists:
            values[name] = list(getattr(message, name))
        for name, inner in self._structs.items():
            values[name] = [
                tuple(getattr(one, part) for part in inner) for one in getattr(message, name)
            ]
        for name in self._maps:
            values[name] = dict(getattr(message, name))
        for name, fields in self._inner.items():
            values[name] = _plain(getattr(message, name), fields)
        for name in self._cut:
            values[name] = values[name][: m.LONGEST_ERROR]

    def _moment(self, name: str, stamp: Timestamp) -> datetime:
        try:
            if not 0 <= stamp.nanos < _NANOS:
                raise ValueError
            return EPOCH + timedelta(seconds=stamp.seconds, microseconds=stamp.nanos // 1_000)
        except (ValueError, OverflowError):
            sent = f"{stamp.seconds} s and {stamp.nanos} ns"
            raise faults.bad_value(self._request, name, sent) from None


class MessageWriter(Generic[M]):
    """Turns replies into messages of one kind. A field that is None is left unset."""

    def __init__(self, kind: type[M]) -> None:
        self._kind = kind
        self._inner: dict[str, MessageWriter[Any]] = {}
        self._lists: dict[str, MessageWriter[Any]] = {}
        fields: Any = kind.DESCRIPTOR.fields
        for field in fields:
            if field.message_type is not None and not (_is_moment(field) or _is_map(field)):
                writers = self._lists if field.is_repeated else self._inner
                writers[field.name] = MessageWriter(GetMessageClass(field.message_type))
        written = self._lists.keys() | self._inner.keys()
        self._plain = tuple(field.name for field in fields if field.name not in written)

    def write(self, reply: object) -> M:
        """The message for a reply."""
        values = {name: getattr(reply, name) for name in self._plain}
        for name, writer in self._lists.items():
            values[name] = [writer.write(one) for one in getattr(reply, name)]
        for name, writer in self._inner.items():
            one = getattr(reply, name)
            values[name] = None if one is None else writer.write(one)
        return self._kind(**values)


def _plain(message: Message, fields: tuple[Any, ...]) -> dict[str, Any]:
    """What is set in a message without messages in it."""
    return {
        field.name: list(value) if field.is_repeated else value
        for field in fields
        if not field.has_presence or message.HasField(field.name)
        for value in (getattr(message, field.name),)
    }


def _is_moment(field: Any) -> bool:
    kind = field.message_type
    return kind is not None and bool(kind.full_name == Timestamp.DESCRIPTOR.full_name)


def _is_map(field: Any) -> bool:
    kind = field.message_type
    return kind is not None and bool(kind.GetOptions().map_entry)


def _sent(values: dict[str, Any]) -> faults.Sent:
    def sent(name: str) -> str | None:
        value = values.get(name)
        return None if value is None or isinstance(value, bytes | list | dict) else str(value)

    return sent
