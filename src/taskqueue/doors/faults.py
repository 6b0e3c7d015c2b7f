"""Turns what the decoder says about bad input into errors that name the field and the fix."""

import difflib
import re
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, Final

import msgspec
from msgspec import Struct, inspect

from taskqueue.core.errors import InvalidRequest, PayloadTooLarge, TaskQueueError

LONGEST_ECHO: Final = 60
"""Characters of the caller's own input that an error repeats."""

_PATH: Final = re.compile(r" - at (?:`key` in )?`(?:key in )?\$\.?([^`]*)`$")
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_NOT_OBJECT: Final = re.compile(r"Expected `object`, got `(\w+)`$")
_TOO_LONG: Final = re.compile(r"`bytes` of length <= (\d+)")

Sent = Callable[[str], str | None]
"""What the caller sent for a field, in the caller's own notation."""


def invalid(
    error: Exception, request: type[Struct], sent: Sent = lambda _field: None
) -> TaskQueueError:
    """The error to answer when input could not be decoded into `request`.

    `error` is a msgspec error, or what it lets through: UnicodeDecodeError, RecursionError.
    """
    text = str(error)
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest("the request is not valid UTF-8; encode its text as UTF-8")
    if isinstance(error, RecursionError):
        return InvalidRequest("the request is nested too deeply; send the documented fields only")
    if match := _PATH.search(text):
        return bad_value(request, match[1], sent(match[1]), text[: match.start()])
    if match := _UNKNOWN.search(text):
        return unknown_field(match[1], demands(request))
    if match := _MISSING.search(text):
        return missing_field(match[1])
    if match := _NOT_OBJECT.search(text):
        return InvalidRequest(f"the body must be a JSON object, got {match[1]}")
    return InvalidRequest(f"the body is not valid JSON: {text[:200]}")


def bad_value(
    request: type[Struct], field: str, got: str | None, problem: str = ""
) -> TaskQueueError:
    """The error for a field whose value cannot be used; `problem` stands in for no known demand."""
    if match := _TOO_LONG.search(problem):
        return PayloadTooLarge(f"{field} must be at most {match[1]} bytes; send less", field=field)
    # Inside a list or a map: the limits of its entries count.
    base, inside, _ = field.partition("[")
    demand = (_entry_demands(request) if inside else demands(request)).get(base)
    whole = field
    if field.endswith("[...]"):
        field, whole = base, f"each text of {base}"
    message = f"{whole} must be {demand}" if demand else f"{field}: {problem}"
    if got is not None:
        message += f", got {shown(got)}"
    return InvalidRequest(message, field=field)


def unknown_field(name: str, known: Iterable[str]) -> InvalidRequest:
    """The error for a field that the request does not have."""
    names = list(known)
    near = difflib.get_close_matches(name[:100], names, 1)
    if near:
        advice = f"did you mean {near[0]}?"
    else:
        advice = f"it takes {', '.join(names)}" if names else "it takes none"
    return InvalidRequest(f"{shown(name)} is not a field of this request; {advice}", field=name)


def missing_field(name: str) -> InvalidRequest:
    """The error for a required field that was not sent."""
    return InvalidRequest(f"{name} is missing; it is required", field=name)


def repeated_field(name: str) -> InvalidRequest:
    """The error for a field that was sent twice."""
    return InvalidRequest(f"{shown(name)} is given more than once; give it once", field=name)


def shown(text: str) -> str:
    """Caller's input as an error may repeat it: short, in one line, printable."""
    cut = text if len(text) <= LONGEST_ECHO else text[:LONGEST_ECHO] + "…"
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)


@cache
def demands(request: type[Struct]) -> dict[str, str]:
    """What each field of a request must be, in words, from the limits on the struct."""
    info = inspect.type_info(request)
    assert isinstance(info, inspect.StructType)  # noqa: S101  for the type checker
    return {field.encode_name: _demand(field.type) for field in info.fields}


@cache
def _entry_demands(request: type[Struct]) -> dict[str, str]:
    """What each entry of a list or map of a request must be, in words."""
    info = inspect.type_info(request)
    assert isinstance(info, inspect.StructType)  # noqa: S101  for the type checker
    found: dict[str, str] = {}
    for field in info.fields:
        match bare(field.type):
            case inspect.ListType(item_type=entry) | inspect.DictType(value_type=entry):
                found[field.encode_name] = _demand(entry)
            case _:
                pass
    return found


def bare(kind: inspect.Type) -> inspect.Type:
    """A type without its notes and without the `None` it may also be."""
    while True:
        match kind:
            case inspect.Metadata(type=inner):
                kind = inner
            case inspect.UnionType(types=types):
                kind = next(t for t in types if not isinstance(t, inspect.NoneType))
            case _:
                return kind


def _demand(kind: inspect.Type) -> str:
    match bare(kind):
        case inspect.IntType() as number:
            return f"a whole number{_range(number)}"
        case inspect.FloatType() as number:
            return f"a number{_range(number)}"
        case inspect.StrType() as text:
            return _text_demand(text)
        case inspect.EnumType(cls=cls):
            return f"one of {', '.join(str(member.value) for member in cls)}"
        case inspect.ListType(min_length=least, max_length=most):
            return f"a list of {least or 0} to {most} entries"
        case inspect.DictType(max_length=most):
            return f"at most {most} texts, named by 1 to 255 printable characters without spaces"
        case other:
            return _PLAIN_DEMANDS.get(type(other), "valid")


_PLAIN_DEMANDS: Final[dict[type[Any], str]] = {
    inspect.BytesType: "base64 in the standard alphabet with padding, without white space",
    inspect.DateTimeType: "a date and time such as 2024-01-01T12:00:00Z",
    inspect.BoolType: "true or false",
}


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is None or kind.le is None:
        return ""
    return f" between {kind.ge} and {kind.le}"


def _text_demand(kind: inspect.StrType) -> str:
    if kind.pattern is not None and kind.min_length:
        return f"text of {kind.min_length} to {kind.max_length} printable characters without spaces"
    most = "" if kind.max_length is None else f" of at most {kind.max_length} characters"
    return f"text{most}" if kind.pattern is None else f"text{most}, none of them NUL"


READ_FAULTS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoding input can raise."""
