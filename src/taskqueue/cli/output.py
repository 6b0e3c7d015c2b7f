"""How commands print data: a table for people, tab-separated lines for pipes, JSON for programs."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec
from cyclopts import Parameter

from taskqueue.core.errors import InvalidRequest

Format = Literal["table", "wide", "json", "jsonl", "yaml", "id"]
Color = Literal["auto", "always", "never"]

Row = Mapping[str, Any]

STATUS_COLORS: Final = {
    "pending": "cyan",
    "in_progress": "yellow",
    "completed": "green",
    "failed": "magenta",
    "dead_letter": "red",
    "cancelled": "bright_black",
    "healthy": "green",
    "degraded": "red",
    "valid": "green",
    "revoked": "red",
    "expired": "bright_black",
}
"""The colour of each word that says how something stands."""

COLORED_COLUMNS: Final = frozenset({"status", "state"})
_ANSI: Final = {
    "red": 31,
    "green": 32,
    "yellow": 33,
    "magenta": 35,
    "cyan": 36,
    "bright_black": 90,
}


@Parameter(name="*")
@dataclass(frozen=True)
class Form:
    """How a command is to print what it has found."""

    output: Annotated[
        Format | None, Parameter(name=["--output", "-o"], help="form of the output")
    ] = None
    fields: Annotated[
        str | None, Parameter(help="only these fields, with commas, in this order")
    ] = None
    color: Annotated[
        Color, Parameter(help="colours: on a terminal (NO_COLOR, CLICOLOR_FORCE), or as said")
    ] = "auto"

    @property
    def is_colored(self) -> bool:
        """Whether to colour what is printed."""
        if self.color != "auto":
            return self.color == "always"
        if os.environ.get("NO_COLOR"):
            return False
        if os.environ.get("CLICOLOR_FORCE", "0") != "0":
            return True
        return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"

    @property
    def names(self) -> list[str]:
        """The fields that were asked for; none if all of them are wanted."""
        return [name.strip() for name in (self.fields or "").split(",") if name.strip()]


PLAIN: Final = Form()


def print_rows(rows: Sequence[Row], form: Form | Format | None, columns: Sequence[str]) -> None:
    """Print records: `columns` of them as a table, all of them in the other forms.

    The first column is what `-o id` prints. Raises InvalidRequest for a field that
    they have not.
    """
    asked = _form(form)
    names = asked.names
    if names and rows:
        _require_fields(names, rows[0])
    if asked.output in ("table", "wide", None):
        every = list(rows[0]) if rows and asked.output == "wide" else columns
        _print_table(rows, names or every, asked)
    elif asked.output == "id":
        for row in rows:
            print(row[columns[0]])
    else:
        _print_data([_picked(row, names) for row in rows], asked.output)


def print_line(row: Row, form: Form, columns: Sequence[str]) -> None:
    """Print one of the records that come one after the other: tab-separated, or a line of JSON.

    Raises InvalidRequest for a field that it has not, and for another form.
    """
    _require_fields(form.names, row)
    if form.output in ("table", "wide", None):
        names = form.names or columns
        print("\t".join(_painted(name, _cell(row[name]), form) for name in names), flush=True)
    elif form.output in ("json", "jsonl"):
        print(msgspec.json.encode(_picked(row, form.names)).decode(), flush=True)
    else:
        raise InvalidRequest(f"lines that come one by one cannot be {form.output}; use jsonl")


def print_record(record: Row, form: Form | Format | None) -> None:
    """Print one record: a line for each field, or one of the other forms.

    Raises InvalidRequest for a field that it has not, and for `-o id` if it has no id.
    """
    asked = _form(form)
    _require_fields(asked.names, record)
    picked = _picked(record, asked.names)
    if asked.output in ("table", "wide", None):
        _print_fields(picked, asked)
    elif asked.output == "id":
        print(_id_of(record))
    elif asked.output == "jsonl":
        print(msgspec.json.encode(picked).decode())
    else:
        _print_data(picked, asked.output)


def _print_fields(record: Row, form: Form) -> None:
    width = max((len(name) for name in record), default=0)
    for name, value in record.items():
        shown = _painted(name, _cell(value), form)
        print(f"{name:<{width}}  {shown}" if sys.stdout.isatty() else f"{name}\t{shown}")


def as_row(struct: msgspec.Struct) -> dict[str, Any]:
    """A struct's fields as JSON has them."""
    row: dict[str, Any] = msgspec.to_builtins(struct)
    return row


def is_for_programs(form: Form | Format | None) -> bool:
    """Whether JSON, YAML or ids are wanted rather than a table."""
    return _form(form).output not in ("table", "wide", None)


def _form(form: Form | Format | None) -> Form:
    return form if isinstance(form, Form) else Form(output=form)


def _require_fields(names: Sequence[str], record: Row) -> None:
    unknown = [name for name in names if name not in record]
    if unknown:
        raise InvalidRequest(
            f"there is no field {unknown[0]!r} here; --fields can have {', '.join(record)}",
            field="fields",
        )


def _picked(record: Row, names: Sequence[str]) -> dict[str, Any]:
    return {name: record[name] for name in names} if names else dict(record)


def _id_of(record: Row) -> Any:
    for name, value in record.items():
        if name == "id" or name.endswith("_id"):
            return value
    raise InvalidRequest("there are no ids here; choose another form for -o", field="output")


def _print_data(value: Any, form: Format) -> None:
    match form:
        case "jsonl":
            for row in value:
                print(msgspec.json.encode(row).decode())
        case "yaml":
            print(msgspec.yaml.encode(msgspec.to_builtins(value)).decode(), end="")
        case _:
            print(msgspec.json.format(msgspec.json.encode(value)).decode())


def _print_table(rows: Sequence[Row], columns: Sequence[str], form: Form) -> None:
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(_painted(name, _cell(row[name]), form) for name in columns))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, header_style="bold" if form.is_colored else "")
    for name in columns:
        table.add_column(name.replace("_", " ").upper(), overflow="fold")
    for row in rows:
        cells = {name: _cell(row[name]) for name in columns}
        table.add_row(*(Text(text, _color(name, text) or "") for name, text in cells.items()))
    # Without markup and highlighting: what tasks are called is no language of rich's.
    console = Console(
        force_terminal=form.is_colored, no_color=not form.is_colored, highlight=False, markup=False
    )
    console.print(table)


def _painted(name: str, text: str, form: Form) -> str:
    color = _color(name, text)
    if color is None or not form.is_colored:
        return text
    return f"\x1b[{_ANSI[color]}m{text}\x1b[0m"


def _color(name: str, text: str) -> str | None:
    return STATUS_COLORS.get(text) if name in COLORED_COLUMNS else None


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    return "".join(c if c.isprintable() else " " for c in str(value))
