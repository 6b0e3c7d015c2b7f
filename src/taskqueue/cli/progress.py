"""Bars on stderr for work that takes more than a moment."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

MOMENT: Final = 200
"""Steps that are over in a moment."""


@contextmanager
def a_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar; yields what draws it: what is done, how often it was, and how often it is to be."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        line = bar.add_task("", total=None)
        yield lambda what, done, total: bar.update(
            line, description=what, completed=done, total=max(done, total)
        )


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, for more than a moment's work; yields what is told of each step's end.

    It is called with the number of the steps that are done besides.
    """
    if total <= MOMENT or not sys.stderr.isatty():
        yield lambda _number: None
        return
    done = 0
    with a_bar() as draw:
        draw(what, 0, total)

        def advance(number: int) -> None:
            nonlocal done
            done += number
            draw(what, done, total)

        yield advance
