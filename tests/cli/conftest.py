"""A broker and a worker with the sample handlers, shared by all tests of the command line."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskqueue import SyncClient
from tests.cli.running import TQ, Here
from tests.support.broker import BrokerProcess, a_broker_process


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    folder = tmp_path_factory.mktemp("cli")
    with a_broker_process(folder / "data", "--rate-limit", "0") as process:
        with (folder / "worker.log").open("wb") as log:
            worker = subprocess.Popen(
                [*TQ, "worker", "taskqueue.cli.samples:app", "--url", process.native],
                stdout=log,
                stderr=log,
            )
        yield process
        worker.terminate()
        assert worker.wait(30) == 0


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's settings counts, and none are left behind."""
    for name in ("TQ_URL", "TQ_API_KEY", "TQ_PROFILE", "NO_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tq(
    broker: BrokerProcess, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Here:
    """`tq` in this process, on the shared broker."""
    monkeypatch.setenv("TQ_URL", broker.native)
    return Here(capsys)


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str]) -> Here:
    """`tq` in this process, without a broker."""
    return Here(capsys)


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[SyncClient]:
    with SyncClient(broker.native) as client:
        yield client
