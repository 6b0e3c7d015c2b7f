"""A broker for the commands of operators, and `tq` as it is typed."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from taskqueue.cli.main import run
from tests.support.broker import BrokerProcess, a_broker_process

TQ = (sys.executable, "-m", "taskqueue.cli.main")


class Ran(NamedTuple):
    """What a command printed."""

    out: str
    complaints: str

    @property
    def json(self) -> Any:
        """What it printed as JSON."""
        return json.loads(self.out)


class Tq:
    """`tq` on a broker, in a folder with no settings of its own."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self._folder = folder

    @property
    def environment(self) -> dict[str, str]:
        """That of this process, without what would choose another broker."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TQ_")}
        return kept | {"TQ_URL": self.url, "XDG_CONFIG_HOME": str(self._folder)}

    def __call__(self, *words: str, code: int = 0) -> Ran:
        """Run a command to its end in this process, which saves the imports."""
        out, complaints = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
            patch.chdir(self._folder)
            for name in os.environ.keys() - self.environment.keys():
                patch.delenv(name)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            with redirect_stderr(complaints):
                ended = run(list(words))
        ran = Ran(out.getvalue(), complaints.getvalue())
        assert ended == code, (words, ran)
        return ran

    def start(self, *words: str, **streams: Any) -> "subprocess.Popen[str]":
        """A command that goes on."""
        return subprocess.Popen(
            [*TQ, *words],
            cwd=self._folder,
            env=self.environment | {"TERM": "xterm"},
            text=True,
            **streams,
        )


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with a_broker_process(tmp_path_factory.mktemp("ops") / "data", "--rate-limit", "0") as process:
        yield process


@pytest.fixture
def tq(broker: BrokerProcess, tmp_path: Path) -> Tq:
    return Tq(broker.native, tmp_path)
