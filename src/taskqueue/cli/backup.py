"""`tq backup` and `tq restore`: an embedded broker's tasks in one file, and back."""

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from taskqueue.cli.output import PLAIN, Form, print_record
from taskqueue.cli.progress import a_bar
from taskqueue.core.errors import StorageRefused
from taskqueue.settings.sources import load_settings
from taskqueue.storage.sqlite.backup import Copied, Told, back_up
from taskqueue.storage.sqlite.backup import restore as put_back

DataFolder = Annotated[Path | None, Parameter(help="data folder, else that of the settings")]
SettingsFile = Annotated[Path | None, Parameter(help="settings file, instead of ./tq.toml")]


def backup(
    file: Path,
    *,
    data: DataFolder = None,
    config: SettingsFile = None,
    form: Form = PLAIN,
) -> None:
    """Copy an embedded broker's tasks and keys to a new file, while it runs or not.

    The copy is what is committed when it begins; it is checked before it gets its name.
    """
    folder = _folder(data, config)
    _carry_out(file, lambda told: back_up(folder, file, told), form)


def restore(
    file: Path,
    *,
    data: DataFolder = None,
    config: SettingsFile = None,
    form: Form = PLAIN,
) -> None:
    """Put what tq backup has written into an empty data folder; then start a broker on it.

    What happened after the backup is forgotten: tasks that have run since then run again.
    """
    folder = _folder(data, config)
    _carry_out(folder, lambda told: put_back(file, folder, told), form)


def _carry_out(target: Path, copy: Callable[[Told], Copied], form: Form) -> None:
    with ExitStack() as ends:
        draw = ends.enter_context(a_bar()) if sys.stderr.isatty() else None

        def told(done: int, total: int) -> None:
            if draw is not None:
                draw("copied pages", done, total)

        copied = copy(told)
    row = {"written": str(target), "tasks": copied.tasks, "size_bytes": copied.size_bytes}
    print_record(row, form)


def _folder(data: Path | None, config: Path | None) -> Path:
    flags = {"data.folder": None if data is None else str(data)}
    settings = load_settings(flags, os.environ, config).settings
    if settings.storage.engine and data is None:
        raise StorageRefused(
            "the tasks are in PostgreSQL: back them up with its own means, such as pg_basebackup, "
            "pgBackRest or snapshots; or name an embedded broker's folder with --data"
        )
    return Path(settings.data.folder)
