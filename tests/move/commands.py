"""`tq move` as people start it, to its end or not."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.move.filling import Folder
from tests.support.ports import free_port

SECONDS: Final = 120


def tq(*words: str) -> subprocess.CompletedProcess[str]:
    """What a command comes to."""
    return subprocess.run(
        [sys.executable, "-m", "taskqueue.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        env=_environment(),
    )


def tq_move(folder: Folder | Path, dsn: str, *words: str) -> subprocess.CompletedProcess[str]:
    """What a move comes to."""
    return tq("move", "--from", str(_path(folder)), "--to", dsn, *words)


def tq_serve(*words: str) -> subprocess.CompletedProcess[str]:
    """What a broker that is to be refused says."""
    ports = [f"--{door}=127.0.0.1:{free_port()}" for door in ("http", "native", "grpc")]
    return tq("serve", *ports, *words)


@contextmanager
def a_move(folder: Folder | Path, dsn: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A move that is under way, killed with the block if it has not ended."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "taskqueue.cli.main", "move"),
            *("--from", str(_path(folder)), "--to", dsn, *words),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(),
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def _path(folder: Folder | Path) -> Path:
    return folder.path if isinstance(folder, Folder) else folder


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("TQ_")}
