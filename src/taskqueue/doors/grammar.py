"""The grammar of native commands: which word is which field of which request.

A command is its fixed words, then options as keyword and value in any order. The limits of each
field stand on the request structs; here only text becomes numbers, and strictly: Python's own
`int` would take `1_000` or Arabic digits.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from taskqueue.broker.operation import Operation
from taskqueue.broker.operations import BY_NAME
from taskqueue.core.errors import InvalidRequest
from taskqueue.doors.faults import invalid
from taskqueue.wire.messages import LONGEST_ERROR

Words = Sequence[bytes]


_INTEGER: Final = re.compile(rb"-?[0-9]{1,20}")
_DECIMAL: Final = re.compile(rb"-?[0-9]{1,20}(?:\.[0-9]{1,20})?")


class Field(NamedTuple):
    """A field of a request, and how its word is read.

    An option with `usage` may be given several times: its values make a list, or a map if they
    are pairs.
    """

    name: str
    read: Callable[[bytes, str], Any]
    usage: str = ""


class Rest(NamedTuple):
    """A field that takes all words to the end: from its keyword on, or after the fixed ones."""

    name: str
    read: Callable[[Words, str], Any]
    usage: str
    keyword: bytes | None = None


class Grammar(NamedTuple):
    """How the words of one command become the fields of its request."""

    operation: Operation
    fixed: tuple[Field, ...]
    options: dict[bytes, Field]
    rest: Rest | None = None

    @property
    def usage(self) -> str:
        """The command as its documentation writes it."""
        parts = [str(self.operation.native), *(field.name for field in self.fixed)]
        parts += [
            f"[{keyword.decode()} {field.usage or field.name}]" + " …" * bool(field.usage)
            for keyword, field in self.options.items()
        ]
        if self.rest is not None:
            parts.append(self.rest.usage)
        return " ".join(parts)

    @property
    def arity(self) -> int:
        """How many words it has with its name; negative if that is only the least."""
        least = 1 + len(self.fixed)
        return -least if self.options or self.rest is not None else least

    def request(self, words: Words) -> Any:
        """The request that the words after the command's name stand for.

        Raises InvalidRequest, PayloadTooLarge.
        """
        if len(words) < len(self.fixed):
            raise InvalidRequest(f"too few words; usage: {self.usage}")
        values = {
            field.name: field.read(word, field.name)
            for field, word in zip(self.fixed, words, strict=False)
        }
        if len(words) > len(self.fixed):
            self._read_options(words[len(self.fixed) :], values)
        try:
            return msgspec.convert(values, self.operation.request)
        except msgspec.ValidationError as error:
            raise invalid(error, self.operation.request, _sent(values)) from None

    def _read_options(self, words: Words, values: dict[str, Any]) -> None:
        rest = self.rest
        if rest is not None and rest.keyword is None:
            values[rest.name] = rest.read(words, rest.name)
            return
        for place in range(0, len(words), 2):
            keyword = words[place].upper()
            if rest is not None and keyword == rest.keyword:
                values[rest.name] = rest.read(words[place + 1 :], rest.name)
                return
            field = self.options.get(keyword)
            if field is None:
                raise InvalidRequest(f"unknown option {_shown(words[place])}; usage: {self.usage}")
            if place + 1 == len(words):
                raise InvalidRequest(f"option {keyword.decode()} needs a value", field=field.name)
            value = field.read(words[place + 1], field.name)
            if field.usage:
                _add(values, field.name, value)
            elif field.name in values:
                raise InvalidRequest(f"option {keyword.decode()} is given twice", field=field.name)
            else:
                values[field.name] = value


def _add(values: dict[str, Any], name: str, value: Any) -> None:
    if not isinstance(value, tuple):
        values.setdefault(name, []).append(value)
        return
    key, text = value
    if key in values.setdefault(name, {}):
        raise InvalidRequest(f"{name} is given twice for {key[:60]!r}; give it once", field=name)
    values[name][key] = text


def _text(word: bytes, name: str) -> str:
    try:
        return word.decode()
    except UnicodeDecodeError:
        raise InvalidRequest(f"{name} must be UTF-8 text", field=name) from None


def _error_text(word: bytes, _name: str) -> str:
    # Whatever a handler died of shall be on record: what is not UTF-8 is replaced, what is far
    # beyond the part that is kept (`lifecycle.LONGEST_TEXT`) is left out.
    return word[:LONGEST_ERROR].decode(errors="replace")


def _bytes(word: bytes, _name: str) -> bytes:
    return word


def _pair(word: bytes, name: str) -> tuple[str, str]:
    key, sign, value = _text(word, name).partition("=")
    if not sign:
        raise InvalidRequest(f"{name} must be name=value, got {_shown(word)}", field=name)
    return key, value


def _json(word: bytes, name: str) -> Any:
    try:
        return msgspec.json.decode(word)
    except msgspec.MsgspecError:
        raise InvalidRequest(f"{name} must be JSON, got {_shown(word)}", field=name) from None


def _integer(word: bytes, name: str) -> int:
    if not _INTEGER.fullmatch(word):
        raise InvalidRequest(f"{name} must be a whole number, got {_shown(word)}", field=name)
    return int(word)


def _decimal(word: bytes, name: str) -> float:
    if not _DECIMAL.fullmatch(word):
        raise InvalidRequest(f"{name} must be a decimal number, got {_shown(word)}", field=name)
    return float(word)


def _yes_or_no(word: bytes, name: str) -> bool:
    if word.lower() not in (b"yes", b"no"):
        raise InvalidRequest(f"{name} must be yes or no, got {_shown(word)}", field=name)
    return word.lower() == b"yes"


def _texts(words: Words, name: str) -> list[str]:
    return [_text(word, name) for word in words]


def _claims(words: Words, name: str) -> list[tuple[str, int]]:
    if len(words) % 2:
        raise InvalidRequest(f"{name} must be pairs of a task id and its token", field=name)
    return [
        (_text(words[place], "task_id"), _integer(words[place + 1], "token"))
        for place in range(0, len(words), 2)
    ]


def _shown(word: bytes) -> str:
    return ascii(word[:40].decode(errors="replace"))


def _sent(values: dict[str, Any]) -> Callable[[str], str | None]:
    def sent(field: str) -> str | None:
        value = values.get(field)
        return None if value is None or isinstance(value, bytes | list | dict) else str(value)

    return sent


_TASK_ID: Final = Field("task_id", _text)
_TOKEN: Final = Field("token", _integer)
_KEY_ID: Final = Field("key_id", _text)
_WORKER_ID: Final = Field("worker_id", _text)
_LABELS: Final = {
    b"TAG": Field("tags", _text, "tag"),
    b"META": Field("metadata", _pair, "name=value"),
}

GRAMMARS: Final = {
    grammar.operation.native.encode(): grammar
    for grammar in (
        Grammar(
            BY_NAME["submit"],
            (Field("task_type", _text), Field("payload", _bytes)),
            {
                b"ID": _TASK_ID,
                b"PRIORITY": Field("priority", _integer),
                b"AT": Field("schedule_at", _text),
                b"DELAY": Field("delay_seconds", _decimal),
                b"TIMEOUT": Field("timeout_seconds", _integer),
                b"RETRIES": Field("max_retries", _integer),
                b"KEY": Field("idempotency_key", _text),
                **_LABELS,
                b"EXPIREAT": Field("expires_at", _text),
                b"EXPIRES": Field("expires_in_seconds", _decimal),
                b"UNIQUE": Field("unique_key", _text),
                b"WHILE": Field("unique_while", _text),
                b"PERIOD": Field("unique_seconds", _decimal),
                b"REPLACE": Field("replace", _yes_or_no),
                b"BACKOFF": Field("retry_delay_seconds", _decimal),
                b"FACTOR": Field("retry_factor", _decimal),
                b"LONGEST": Field("retry_longest_seconds", _decimal),
                b"JITTER": Field("retry_jitter", _decimal),
                b"KEEP": Field("retention_seconds", _decimal),
            },
        ),
        Grammar(BY_NAME["get"], (_TASK_ID,), {}),
        Grammar(BY_NAME["wait"], (_TASK_ID, Field("wait_ms", _integer)), {}),
        Grammar(
            BY_NAME["list"],
            (),
            {
                b"STATUS": Field("status", _text),
                b"TYPE": Field("task_type", _text),
                b"LIMIT": Field("limit", _integer),
                b"OFFSET": Field("offset", _integer),
                b"CURSOR": Field("cursor", _text),
                **_LABELS,
            },
        ),
        Grammar(BY_NAME["cancel"], (_TASK_ID,), {b"RUNNING": Field("running", _yes_or_no)}),
        Grammar(BY_NAME["retry"], (_TASK_ID,), {}),
        Grammar(
            BY_NAME["change"],
            (_TASK_ID,),
            {
                b"PRIORITY": Field("priority", _integer),
                b"AT": Field("schedule_at", _text),
                b"DELAY": Field("delay_seconds", _decimal),
            },
        ),
        Grammar(BY_NAME["purge"], (_TASK_ID,), {}),
        Grammar(BY_NAME["logs"], (_TASK_ID,), {}),
        Grammar(BY_NAME["stats"], (), {}),
        Grammar(BY_NAME["workers"], (), {}),
        Grammar(BY_NAME["order"], (_WORKER_ID, Field("order", _text)), {}),
        Grammar(BY_NAME["cluster"], (), {}),
        Grammar(BY_NAME["health"], (), {}),
        Grammar(
            BY_NAME["create_key"],
            (Field("name", _text),),
            {
                b"PREFIX": Field("task_type_prefix", _text),
                b"RATE": Field("rate_limit", _integer),
                b"EXPIRES": Field("expires_in_seconds", _integer),
            },
            rest=Rest(
                "permissions", _texts, "PERMISSIONS permission [permission …]", b"PERMISSIONS"
            ),
        ),
        Grammar(BY_NAME["list_keys"], (), {}),
        Grammar(
            BY_NAME["rotate_key"], (_KEY_ID,), {b"OVERLAP": Field("overlap_seconds", _integer)}
        ),
        Grammar(BY_NAME["revoke_key"], (_KEY_ID,), {}),
        Grammar(
            BY_NAME["audit"],
            (),
            {b"LIMIT": Field("limit", _integer), b"BEFORE": Field("before", _integer)},
        ),
        Grammar(
            BY_NAME["claim"],
            (_WORKER_ID,),
            {
                b"COUNT": Field("count", _integer),
                b"BLOCK": Field("wait_ms", _integer),
                b"ID": Field("request_id", _text),
            },
            rest=Rest("task_types", _texts, "TYPES task_type [task_type …]", b"TYPES"),
        ),
        Grammar(BY_NAME["complete"], (_TASK_ID, _TOKEN), {b"RESULT": Field("result", _bytes)}),
        Grammar(
            BY_NAME["fail"],
            (_TASK_ID, _TOKEN, Field("message", _error_text)),
            {
                b"KIND": Field("kind", _error_text),
                b"TRACEBACK": Field("traceback", _error_text),
                b"DELAY": Field("delay_seconds", _decimal),
                b"RETRYABLE": Field("retryable", _yes_or_no),
                b"DIED": Field("process_died", _yes_or_no),
            },
        ),
        Grammar(
            BY_NAME["progress"],
            (_TASK_ID, _TOKEN, Field("fraction", _decimal)),
            {b"NOTE": Field("note", _text)},
        ),
        Grammar(
            BY_NAME["log"],
            (_TASK_ID, _TOKEN, Field("message", _error_text)),
            {b"LEVEL": Field("level", _text)},
        ),
        Grammar(BY_NAME["checkpoint"], (_TASK_ID, _TOKEN, Field("data", _bytes)), {}),
        Grammar(BY_NAME["extend"], (_TASK_ID, _TOKEN, Field("seconds", _integer)), {}),
        Grammar(
            BY_NAME["release"],
            (_TASK_ID, _TOKEN),
            {b"DELAY": Field("delay_seconds", _decimal)},
        ),
        Grammar(
            BY_NAME["beat"],
            (_WORKER_ID,),
            {},
            rest=Rest("held", _claims, "[task_id token …]"),
        ),
        Grammar(BY_NAME["about"], (_WORKER_ID, Field("about", _json)), {}),
        Grammar(BY_NAME["notice"], (_WORKER_ID, Field("wait_ms", _integer)), {}),
        Grammar(BY_NAME["leave"], (_WORKER_ID,), {}),
    )
    if grammar.operation.native is not None
}
"""The grammar of every native command, by its name in capitals."""

SIGNS_OF_LIFE: Final = frozenset({b"TQ.CLAIM", b"TQ.BEAT", b"TQ.ABOUT", b"TQ.NOTICE"})
"""The commands by which a worker says that it is there."""
