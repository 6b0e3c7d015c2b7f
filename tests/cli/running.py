"""Runs `tq`: as a process, as a process on a terminal, and in this very process."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest

from taskqueue.cli.main import run

TQ = (sys.executable, "-m", "taskqueue.cli.main")
PATIENCE = 30.0
"""Seconds after which what has not come is taken to be missing."""


class Ran(NamedTuple):
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[list[str]]:
        """Its tab-separated lines."""
        return [line.split("\t") for line in self.out.splitlines()]


class Here:
    """`tq` in this process, with stdout and stderr piped."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *words: str, code: int = 0) -> Ran:
        self._capture.readouterr()
        ended = run(list(words))
        out, err = self._capture.readouterr()
        assert ended == code, (words, out, err)
        return Ran(ended, out, err)


class Terminal:
    """A process on a terminal of its own: what it writes there, and keys for it."""

    def __init__(self, process: int, screen: int) -> None:
        self._process, self._screen = process, screen
        self._has_ended = False
        self.text = ""

    def press(self, keys: str) -> None:
        """Type something."""
        os.write(self._screen, keys.encode())

    def expect(self, pattern: str) -> str:
        """Read until the pattern is there, in what was not read yet."""
        before = len(self.text)
        while not re.search(pattern, self.text[before:]):
            assert self._read(), f"{pattern!r} is not in {self.text!r}"
        return self.text[before:]

    def end(self) -> int:
        """Read to the end; returns the exit code."""
        while self._read():
            pass
        return self._wait()

    def kill(self) -> None:
        """End it, if it has not ended."""
        if not self._has_ended:
            os.kill(self._process, signal.SIGKILL)
            self._wait()

    def _wait(self) -> int:
        self._has_ended = True
        return os.waitstatus_to_exitcode(os.waitpid(self._process, 0)[1])

    def _read(self) -> bool:
        ready, _, _ = select.select([self._screen], [], [], PATIENCE)
        assert ready, f"nothing came for {PATIENCE} s after {self.text!r}"
        try:
            data = os.read(self._screen, 65_536)
        except OSError:  # how Linux says that the other end is closed
            return False
        self.text += data.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)


@contextmanager
def on_a_terminal(*words: str, env: Mapping[str, str] | None = None) -> Iterator[Terminal]:
    """`tq` on a terminal of 160 columns; ended with the block if it has not ended."""
    process, screen = pty.fork()
    if process == 0:
        os.environ.update({"COLUMNS": "160", "TERM": "xterm", **(env or {})})
        os.execv(sys.executable, [*TQ, *words])
    terminal = Terminal(process, screen)
    try:
        yield terminal
    finally:
        terminal.kill()
        os.close(screen)


def process(
    *words: str, env: Mapping[str, str] | None = None, stdin: str = "", cwd: Path | None = None
) -> Ran:
    """`tq` as a process of its own, with everything piped."""
    ran = subprocess.run(
        [*TQ, *words],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        env=os.environ | (env or {}),
        cwd=cwd,
    )
    return Ran(ran.returncode, ran.stdout, ran.stderr)
