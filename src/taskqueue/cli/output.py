"""How commands print data: a table for people, tab-separated lines for pipes, JSON for programs."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

Format = Literal["table", "json", "jsonl", "id"]

Row = Mapping[str, Any]


def print_rows(rows: Sequence[Row], form: Format | None, columns: Sequence[str]) -> None:
    """Print records: `columns` of them as a table, all of them as JSON."""
    match form or "table":
        case "json":
            _print_json([dict(row) for row in rows])
        case "jsonl":
            for row in rows:
                print(msgspec.json.encode(row).decode())
        case "id":
            for row in rows:
                print(row["task_id"])
        case _:
            _print_table(rows, columns)


def print_record(record: Row, form: Format | None) -> None:
    """Print one record: a line for each field, or JSON."""
    match form or "table":
        case "json":
            _print_json(dict(record))
        case "jsonl":
            print(msgspec.json.encode(record).decode())
        case "id":
            print(record["task_id"])
        case _:
            for name, value in record.items():
                print(f"{name}\t{_cell(value)}" if not sys.stdout.isatty() else _field(name, value))


def as_row(struct: msgspec.Struct) -> dict[str, Any]:
    """A struct's fields as JSON has them."""
    row: dict[str, Any] = msgspec.to_builtins(struct)
    return row


def _print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value)).decode())


def _print_table(rows: Sequence[Row], columns: Sequence[str]) -> None:
    cells = [[_cell(row[column]) for column in columns] for row in rows]
    if not sys.stdout.isatty():
        for line in cells:
            print("\t".join(line))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for column in columns:
        table.add_column(column.replace("_", " ").upper(), overflow="fold")
    for line in cells:
        table.add_row(*line)
    Console().print(table, markup=False)


def _field(name: str, value: Any) -> str:
    return f"{name:<18} {_cell(value)}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict | list):
        return msgspec.json.encode(value).decode()
    return "".join(c if c.isprintable() else " " for c in str(value))
