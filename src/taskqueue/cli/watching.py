"""`--watch`: what a command shows, again and again until Ctrl-C."""

import io
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Final

from taskqueue.cli.options import LiveForm
from taskqueue.core.errors import BrokerUnavailable, InvalidRequest

LEAST_SECONDS: Final = 0.1
MOST_SECONDS: Final = 86_400
_HOME: Final = "\x1b[H"
_CLEAR: Final = "\x1b[2J"
_CLEAR_LINE: Final = "\x1b[K"
_CLEAR_BELOW: Final = "\x1b[J"


class Frame(io.StringIO):
    """One picture, gathered so that it appears at once; it is a terminal if stdout is one."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        """What stdout would say."""
        return self._is_terminal


def shown(form: LiveForm, show: Callable[[], None]) -> None:
    """Call `show` once, or with --watch until it is interrupted.

    On a terminal each picture takes the place of the one before; piped they follow each other.
    Raises InvalidRequest for a pause that is none.
    """
    if form.seconds is None:
        show()
        return
    if not LEAST_SECONDS <= form.seconds <= MOST_SECONDS:
        raise InvalidRequest(
            f"watch must be {LEAST_SECONDS} to {MOST_SECONDS} seconds, got {form.seconds:g}",
            field="watch",
        )
    _draw(_picture(show), is_first=True)
    while True:
        time.sleep(form.seconds)
        try:
            picture = _picture(show)
        except BrokerUnavailable as error:  # a broker that starts anew is worth waiting for
            picture = f"{error.code}: {error.message}\n"
        _draw(picture, is_first=False)


def _picture(show: Callable[[], None]) -> str:
    frame = Frame(sys.stdout.isatty())
    # On a terminal what is said beside the data is part of the picture.
    beside = frame if frame.isatty() else sys.stderr
    # That not all is well ends a command, but not the watching.
    with redirect_stdout(frame), redirect_stderr(beside), suppress(SystemExit):
        show()
    return frame.getvalue()


def _draw(picture: str, *, is_first: bool) -> None:
    if sys.stdout.isatty():
        lines = picture.replace("\n", f"{_CLEAR_LINE}\n")
        picture = f"{_CLEAR if is_first else ''}{_HOME}{lines}{_CLEAR_BELOW}"
    sys.stdout.write(picture)
    sys.stdout.flush()
