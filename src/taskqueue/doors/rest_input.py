"""Reads what a REST client sends into request structs; whatever is not clean is refused by name.

msgspec checks types and ranges. Checked here is what it lets through: repeated keys, base64 that
is not canonical, numbers in a query. See tests/contract/doors for the whole list.
"""

import json
import re
from base64 import b64encode
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, cast
from urllib.parse import parse_qsl

import msgspec
from msgspec import Raw, Struct, inspect
from starlette.types import Receive, Scope

from taskqueue.core.errors import (
    BrokerUnavailable,
    InvalidRequest,
    PayloadTooLarge,
    TaskQueueError,
    UnsupportedMedia,
)
from taskqueue.doors import faults
from taskqueue.wire import messages as m

LARGEST_BODY: Final = 14 * 1024 * 1024
"""Bytes of a request body: room for a payload of 10 MiB in base64 and all other fields."""

LARGEST_ROOM: Final = 256 * 1024 * 1024
"""Bytes of unfinished bodies in memory at any time, over all connections."""

MOST_QUOTES: Final = 10_000
"""More quotation marks than that in one decoded task can only come from repeated fields."""

MOST_COMMAS: Final = 60 * m.LARGEST_BATCH
"""More commas than that are not read: a batch of the allowed length has a few for each task."""

MOST_PARAMETERS: Final = 100
WAIT_PARAMETER: Final = "wait"
LONGEST_WAIT: Final = m.LONGEST_WAIT_MS // 1000

_JSON_TYPE: Final = re.compile(
    rb'application/json\s*(?:;\s*charset\s*=\s*(?:utf-8|"utf-8")\s*)?', re.IGNORECASE
)
_BOOLEANS: Final = {"true": True, "false": False}
_INTEGER: Final = re.compile(r"-?[0-9]{1,19}", re.ASCII)
_SECONDS: Final = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,20})?(?:[eE][-+]?[0-9]{1,3})?", re.ASCII)


class Repeated(Struct):
    """A JSON object in which a key is given twice."""

    name: str


class BatchEnvelope(Struct, forbid_unknown_fields=True):
    """A batch whose tasks are still to be read, one by one."""

    tasks: list[Raw]


def check_media(scope: Scope) -> None:
    """Look at what a body says of itself. Raises UnsupportedMedia, PayloadTooLarge."""
    media = length = None
    for name, value in scope["headers"]:
        if name == b"content-type":
            if media is not None:
                raise UnsupportedMedia("Content-Type is given more than once; give it once")
            media = value
        elif name == b"content-length":
            length = int(value)
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise UnsupportedMedia("Content-Encoding must be identity; send the body as it is")
    if media != b"application/json" and (media is None or not _JSON_TYPE.fullmatch(media)):
        shown = "none" if media is None else faults.shown(media.decode("latin-1"))
        raise UnsupportedMedia(f"Content-Type must be application/json, got {shown}")
    if length is not None and length > LARGEST_BODY:
        raise _body_too_large()


class BodyRoom:
    """The memory that bodies may take up while they arrive, shared by all connections."""

    def __init__(self) -> None:
        self._held = 0

    async def read(self, receive: Receive) -> bytes:
        """The whole of a body. Raises PayloadTooLarge, BrokerUnavailable when room is short."""
        message = await receive()
        part = _part(message)
        if not message.get("more_body"):
            return part
        parts, size = [part], len(part)
        self._held += size
        try:
            while message.get("more_body"):
                message = await receive()
                part = _part(message)
                parts.append(part)
                size += len(part)
                self._held += len(part)
                self._check(size)
            return b"".join(parts)
        finally:
            self._held -= size

    def _check(self, size: int) -> None:
        if size > LARGEST_BODY:
            raise _body_too_large()
        if self._held > LARGEST_ROOM:
            raise BrokerUnavailable(
                "The broker is receiving more than it can hold; try again shortly", retry_after=1
            )


class BodyReader:
    """Reads JSON bodies of one request struct."""

    def __init__(self, request: type[Struct]) -> None:
        self._request = request
        self._decoder = msgspec.json.Decoder(request)
        self._bytes_fields = _fields_of_kind(request, inspect.BytesType)

    def read(self, body: bytes) -> Any:
        """The request in `body`. Raises InvalidRequest, PayloadTooLarge."""
        request = self._decode(body)
        if body.count(b'"') > MOST_QUOTES:
            raise InvalidRequest("the body has more fields than the request; give each one once")
        self._check(request, read_pairs(body))
        return request

    def read_entry(self, body: Raw, sent: object) -> Any:
        """The request in one entry of a batch; `sent` is the same entry out of `read_pairs`."""
        request = self._decode(bytes(body))
        self._check(request, sent)
        return request

    def _decode(self, body: bytes) -> Any:
        try:
            return self._decoder.decode(body)
        except faults.READ_FAULTS as error:
            raise faults.invalid(error, self._request, _sent_in(body)) from None

    def _check(self, request: Any, sent: object) -> None:
        if isinstance(sent, Repeated):
            raise faults.repeated_field(sent.name)
        texts = cast("dict[str, str]", sent)  # the decoder took it for an object with texts there
        for field in self._bytes_fields & texts.keys():
            if not is_canonical(texts[field], getattr(request, field)):
                raise faults.bad_value(self._request, field, texts[field])


class BatchReader:
    """Reads a batch; an entry that is wrong is an error of its own."""

    def __init__(self) -> None:
        self._envelope = msgspec.json.Decoder(BatchEnvelope)
        self._entry = BodyReader(m.SubmitRequest)

    def read(self, body: bytes) -> list[m.SubmitRequest | TaskQueueError]:
        """The tasks in `body`, or what is wrong with each. Raises for the batch as a whole."""
        if body.count(b",") > MOST_COMMAS:
            raise _batch_length()
        try:
            raws = self._envelope.decode(body).tasks
        except faults.READ_FAULTS as error:
            raise faults.invalid(error, m.SubmitBatchRequest) from None
        if not 1 <= len(raws) <= m.LARGEST_BATCH:
            raise _batch_length(f", got {len(raws)}")
        if body.count(b'"') > MOST_QUOTES * len(raws):
            raise InvalidRequest("the body has more fields than its tasks; give each one once")
        pairs = read_pairs(body)
        if isinstance(pairs, Repeated):
            raise faults.repeated_field(pairs.name)
        return [self._read_entry(raw, sent) for raw, sent in zip(raws, pairs["tasks"], strict=True)]

    def _read_entry(self, raw: Raw, sent: object) -> m.SubmitRequest | TaskQueueError:
        try:
            return self._entry.read_entry(raw, sent)  # type: ignore[no-any-return]
        except TaskQueueError as error:
            return error


class QueryReader:
    """Reads a request struct out of the path and the query."""

    def __init__(self, request: type[Struct], path_fields: frozenset[str]) -> None:
        self._request = request
        self._integers = _fields_of_kind(request, inspect.IntType)
        self._booleans = _fields_of_kind(request, inspect.BoolType)
        self._maps = _fields_of_kind(request, inspect.DictType)
        self._repeated = self._maps | _fields_of_kind(request, inspect.ListType)
        fields = set(request.__struct_fields__) - path_fields
        self.has_wait = "wait_ms" in fields
        if self.has_wait:
            fields = (fields - {"wait_ms"}) | {WAIT_PARAMETER}
        self.names = sorted(fields)

    def read(self, query: bytes, path: Mapping[str, str]) -> Any:
        """The request. Raises InvalidRequest."""
        pairs = _query_pairs(query) if query else []
        for name, _ in pairs:
            if name not in self.names:
                raise faults.unknown_field(name, self.names)
        sent = _single([pair for pair in pairs if pair[0] not in self._repeated])
        values: dict[str, Any] = {**sent, **path}
        self._read_words(values)
        for name in self._repeated:
            texts = [text for key, text in pairs if key == name]
            if texts:
                values[name] = _named(name, texts) if name in self._maps else texts
        if self.has_wait:
            values["wait_ms"] = _wait_ms(values.pop(WAIT_PARAMETER, "0"))
        try:
            return msgspec.convert(values, self._request)
        except faults.READ_FAULTS as error:
            raise faults.invalid(error, self._request, sent.get) from None

    def _read_words(self, values: dict[str, Any]) -> None:
        """Put numbers and truth values in the place of the texts that stand for them."""
        for name in self._integers & values.keys():
            if _INTEGER.fullmatch(values[name]):
                values[name] = int(values[name])
        for name in self._booleans & values.keys():
            values[name] = _BOOLEANS.get(values[name], values[name])


def path_fields_of(path: str) -> frozenset[str]:
    """The request's fields that are part of the path."""
    return frozenset(part[1:-1] for part in path.split("/") if part.startswith("{"))


def read_query(query: bytes) -> dict[str, str]:
    """The parameters of a query. Raises InvalidRequest for repeated and malformed ones."""
    return _single(_query_pairs(query))


def _query_pairs(query: bytes) -> list[tuple[str, str]]:
    try:
        return parse_qsl(
            query.decode("ascii"),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=MOST_PARAMETERS,
        )
    except ValueError:
        raise InvalidRequest(
            "the query is malformed; write it as name=value&name=value in percent-encoded UTF-8"
        ) from None


def _single(pairs: list[tuple[str, str]]) -> dict[str, str]:
    found = _object(pairs)
    if isinstance(found, Repeated):
        raise faults.repeated_field(found.name)
    return found


def _named(name: str, texts: list[str]) -> dict[str, str]:
    """The map that texts such as name=value make."""
    pairs = [text.partition("=") for text in texts]
    for text, (_, sign, _value) in zip(texts, pairs, strict=True):
        if not sign:
            raise InvalidRequest(f"{name} must be name=value, got {faults.shown(text)}", field=name)
    found = _object([(key, value) for key, _, value in pairs])
    if isinstance(found, Repeated):
        raise InvalidRequest(
            f"{name} is given twice for {faults.shown(found.name)}; give it once", field=name
        )
    return found


def read_pairs(body: bytes) -> Any:
    """JSON as plain objects, with a `Repeated` wherever an object gives a key twice."""
    try:
        return _PAIRS.decode(body.decode())
    except (ValueError, RecursionError) as error:
        raise faults.invalid(error, Struct) from None


def is_canonical(text: str, decoded: bytes) -> bool:
    """Whether base64 that the decoder accepted is the only one for these bytes.

    The decoder takes the standard alphabet with padding only; left to look at are the bits of the
    last group that stand for nothing.
    """
    if not decoded:
        return not text
    return text.endswith(b64encode(decoded[-(len(decoded) % 3 or 3) :]).decode())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any] | Repeated:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for name, _value in pairs:
        if name in seen:
            return Repeated(name)
        seen.add(name)
    return found


# Numbers stay text: they are not used, and Python refuses to read very long ones.
_PAIRS: Final = json.JSONDecoder(object_pairs_hook=_object, parse_int=str, parse_float=str)


def _part(message: Mapping[str, Any]) -> bytes:
    if message["type"] == "http.disconnect":
        raise InvalidRequest("the client went away before the whole request had come")
    part: bytes = message.get("body", b"")
    return part


def _sent_in(body: bytes) -> Callable[[str], str | None]:
    def sent(field: str) -> str | None:
        try:
            found = _single_field(field).decode(body)
        except faults.READ_FAULTS:
            return None
        raw = bytes(found.value)
        return raw[: 4 * faults.LONGEST_ECHO].decode(errors="replace") or None

    return sent


@cache
def _single_field(field: str) -> "msgspec.json.Decoder[Any]":
    # Skips all but one field without building anything, and keeps that one as it was sent.
    one = msgspec.defstruct("One", [("value", Raw, Raw(b""))], rename={"value": field})
    return msgspec.json.Decoder(one)


def _fields_of_kind(request: type[Struct], kind: type[inspect.Type]) -> frozenset[str]:
    info = inspect.type_info(request)
    assert isinstance(info, inspect.StructType)  # noqa: S101  for the type checker
    return frozenset(
        field.encode_name for field in info.fields if isinstance(faults.bare(field.type), kind)
    )


def _wait_ms(text: str) -> int:
    if _SECONDS.fullmatch(text) and float(text) <= LONGEST_WAIT:
        return round(float(text) * 1000)
    raise InvalidRequest(
        f"wait must be a number of seconds between 0 and {LONGEST_WAIT}, got {faults.shown(text)}",
        field=WAIT_PARAMETER,
    )


def _body_too_large() -> PayloadTooLarge:
    return PayloadTooLarge(f"the body must be at most {LARGEST_BODY} bytes; send less at a time")


def _batch_length(got: str = "") -> InvalidRequest:
    return InvalidRequest(
        f"tasks must be a list of 1 to {m.LARGEST_BATCH} entries{got}", field="tasks"
    )
