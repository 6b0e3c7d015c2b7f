"""`tq move`: brings an embedded broker's tasks to a PostgreSQL database."""

import asyncio
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter

from taskqueue.cli.output import PLAIN, Form, print_rows
from taskqueue.cli.progress import a_bar
from taskqueue.settings.errors import SettingsError
from taskqueue.settings.sources import load_settings
from taskqueue.storage.move.move import Lines, Outcome, move_tasks, plan
from taskqueue.storage.postgres.connections import database_at

COLUMNS: Final = ("what", "number", "checksum")
REPORT_SECONDS: Final = 1.0
STILL_RUNNING: Final = 6
"""The exit code for a wait that was in vain."""


def move(
    *,
    from_: Annotated[
        Path | None, Parameter(name="--from", help="data folder, else that of the settings")
    ] = None,
    to: Annotated[
        str | None,
        Parameter(help="postgresql://… of the database, else TQ_ENGINE or the settings file"),
    ] = None,
    wait: Annotated[
        float, Parameter(help="seconds to wait until a broker that uses the folder has stopped")
    ] = 0.0,
    dry_run: Annotated[
        bool, Parameter(negative="", help="say what would be moved, and change nothing")
    ] = False,
    config: Annotated[Path | None, Parameter(help="settings file, instead of ./tq.toml")] = None,
    form: Form = PLAIN,
) -> None:
    """Copy everything in a data folder to a database, check it, and switch.

    While a broker runs on the folder, most is copied; what it changed since then is copied when it
    has stopped. Killed half-way, it can be repeated. Exit code 6: the broker still runs.
    """
    flags = {"storage.engine": to, "data.folder": None if from_ is None else str(from_)}
    settings = load_settings(flags, os.environ, config).settings
    url, folder = settings.storage.engine, Path(settings.data.folder)
    if not url:
        raise SettingsError(
            "no database is named: give --to postgresql://…, set TQ_ENGINE, or engine in "
            "section [storage] of the settings file"
        )
    database = database_at(url)
    if dry_run:
        outcome = asyncio.run(plan(folder, database))
        _print(outcome.lines, form)
        _tell("these would be moved" if not outcome.is_finished else "all is moved already")
        return
    with ExitStack() as ends:
        outcome = asyncio.run(move_tasks(folder, database, wait, Progress(ends)))
    _print(outcome.lines, form)
    _tell_end(outcome, folder, str(database))


class Progress:
    """Tells on stderr how far a move is: a bar on a terminal, elsewhere a line in each second."""

    def __init__(self, ends: ExitStack) -> None:
        """`ends` takes the bar away."""
        self._ends = ends
        self._next = 0.0
        self._total = 0
        self._latest = ""
        self._bar: Callable[[str, int, int], None] | None = None

    def __call__(self, what: str, number: int) -> None:
        """Told of each step; `waiting` comes with the seconds that are left."""
        if what == "counted":
            self._total = number
        elif what == "waiting":
            _tell(
                "the tasks are copied; a broker still uses the folder. Stop it, and what it "
                f"changed meanwhile is copied too (waiting for {number} seconds)"
            )
        elif sys.stderr.isatty():
            self._bar = self._bar or self._ends.enter_context(a_bar())
            self._bar(f"{what} tasks", number, self._total)
        elif what != self._latest or time.monotonic() >= self._next:
            self._latest, self._next = what, time.monotonic() + REPORT_SECONDS
            _tell(f"{what} {number:,} tasks")


def _print(lines: Lines, form: Form) -> None:
    if lines:
        rows = [
            {"what": what, "number": number, "checksum": checksum or None}
            for what, number, checksum in lines
        ]
        print_rows(rows, form, COLUMNS)


def _tell_end(outcome: Outcome, folder: Path, database: str) -> None:
    if not outcome.is_finished:
        _tell(
            f"tq: a broker still uses {folder}: stop it and run the same command again, or give "
            "--wait SECONDS; only what it changes until then is left to copy"
        )
        raise SystemExit(STILL_RUNNING)
    if not outcome.lines:
        _tell(f"{folder} was moved to {database} before; nothing was changed")
    else:
        _tell(f"moved and checked: {database} has all that is in {folder}")
    _tell(
        f"To switch: start brokers with --engine {database} (with user and password as in --to, "
        "best as TQ_ENGINE) instead of --data, on the same addresses; workers and clients go on "
        f"as they are. Brokers refuse {folder} from now on; keep it until you are content, then "
        "delete it"
    )


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
