"""Numbered SQL files: the history of a schema."""

from importlib.resources.abc import Traversable

Migrations = list[tuple[int, str]]
"""Number and SQL of each, oldest first."""


def numbered_files(folder: Traversable) -> Migrations:
    """The migrations in a folder: files such as 0001_queue.sql."""
    files = sorted(
        (file for file in folder.iterdir() if file.name.endswith(".sql")),
        key=lambda file: file.name,
    )
    return [(int(file.name[:4]), file.read_text()) for file in files]


def newest_of(migrations: Migrations) -> int:
    """The number of the latest one."""
    return migrations[-1][0]
