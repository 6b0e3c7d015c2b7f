"""The worker that the reference of the native protocol prints, run as it is printed."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskqueue import SyncClient, Task
from tests.support.broker import BrokerProcess, a_broker_process

PAGE = Path(__file__).parents[2] / "docs/reference/native-protocol.md"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with a_broker_process(tmp_path / "data") as process:
        yield process


def test_the_worker_of_the_reference_works(broker: BrokerProcess, tmp_path: Path) -> None:
    [program] = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert "port=6379" in program
    file = tmp_path / "worker.py"
    file.write_text(program.replace("port=6379", f"port={broker.native.rpartition(':')[2]}"))
    with (
        SyncClient(broker.native) as client,
        subprocess.Popen([sys.executable, str(file)], stderr=subprocess.PIPE, text=True) as worker,
    ):
        try:
            tasks = [client.submit_task(Task("shout", b"hello %d" % one)) for one in range(3)]
            for number, task_id in enumerate(tasks):
                assert client.wait_for_result(task_id, timeout=30) == b"HELLO %d" % number
            worker.send_signal(signal.SIGTERM)
            _, errors = worker.communicate(timeout=30)
            assert (worker.returncode, errors) == (0, "")
            assert broker.health()["connected_workers"] == 0
        finally:
            worker.kill()
