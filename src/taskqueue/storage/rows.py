"""A task as a row of a table: its fields in their order, what is no plain value as JSON."""

from typing import Any, Final

import msgspec
from msgspec.structs import astuple, fields

from taskqueue.core.task import Task

TASK_FIELDS: Final = tuple(field.name for field in fields(Task))
OPTIONS: Final = TASK_FIELDS.index("options")


def row_of_task(task: Task) -> tuple[Any, ...]:
    """The row that a task is stored as."""
    row = astuple(task)
    if task.options is None:
        return row
    return (*row[:OPTIONS], msgspec.json.encode(task.options).decode(), *row[OPTIONS + 1 :])


def decoded(row: tuple[Any, ...]) -> tuple[Any, ...]:
    """A row with its JSON decoded. Raises msgspec.DecodeError for what is none."""
    options = row[OPTIONS]
    if options is None:
        return row
    return (*row[:OPTIONS], msgspec.json.decode(options), *row[OPTIONS + 1 :])
