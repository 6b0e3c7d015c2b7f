"""Real processes: what a restart, a kill and a second broker come to."""

import json
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from taskqueue import SyncClient, Task
from tests.support.broker import BrokerProcess, a_broker_process, free_port


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with a_broker_process(tmp_path / "data") as process:
        yield process


def native(broker: BrokerProcess) -> Any:
    """A Redis client on the broker; its library does not say what commands return."""
    host, _, port = broker.native.rpartition(":")
    return redis.Redis(host, int(port))


def test_what_was_acknowledged_is_there_after_a_kill(broker: BrokerProcess) -> None:
    with SyncClient(broker.native) as client:
        ids = client.submit_many(Task("work", b"%d" % number) for number in range(200))
        broker.kill()
        broker.start()
        assert {client.get_status(task_id).status for task_id in ids} == {"pending"}


def test_a_living_worker_completes_its_task_across_a_restart_and_the_result_is_read_back(
    broker: BrokerProcess,
) -> None:
    with SyncClient(broker.native) as client:
        task_id = client.submit_task(Task("work", b"x"))
        [claimed] = native(broker).execute_command("TQ.CLAIM", "w", "TYPES", "work")
        broker.kill()
        broker.start()
        assert client.get_status(task_id).status == "in_progress"
        token = claimed[1]
        answer = native(broker).execute_command("TQ.COMPLETE", task_id, token, "RESULT", "done")
        assert answer == b"completed"
        broker.kill()
        broker.start()
        assert client.wait_for_result(task_id, timeout=10) == b"done"
        again = native(broker).execute_command("TQ.COMPLETE", task_id, token, "RESULT", "other")
        assert again == b"completed"
        assert client.wait_for_result(task_id, timeout=10) == b"done"
        with pytest.raises(redis.ResponseError, match="LEASE_LOST"):
            native(broker).execute_command("TQ.FAIL", task_id, token + 1, "no")


def test_a_second_broker_on_the_same_folder_is_refused_in_one_line(broker: BrokerProcess) -> None:
    second = BrokerProcess(broker.folder)
    ended = subprocess.run(second.command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert str(broker.folder) in line
    assert "in use by another broker" in line
    assert broker.health()["status"] == "healthy"


def test_a_taken_port_is_refused_in_one_line(broker: BrokerProcess, tmp_path: Path) -> None:
    second = BrokerProcess(tmp_path / "other")
    second.http = broker.http
    ended = subprocess.run(second.command, capture_output=True, text=True, timeout=30, check=False)
    assert ended.returncode == 2
    [line] = ended.stderr.splitlines()
    assert broker.http in line
    second.http = f"127.0.0.1:{free_port()}"
    second.start()  # nothing half-done stayed behind
    assert second.stop() == 0


def test_sigterm_answers_those_who_wait_and_ends_with_zero(broker: BrokerProcess) -> None:
    answers: list[object] = []

    def claim(number: int) -> None:
        answers.append(
            native(broker).execute_command("TQ.CLAIM", f"w{number}", "BLOCK", 600_000, "TYPES", "t")
        )

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(50)]
    for thread in threads:
        thread.start()
    while (
        int(json.load(urllib.request.urlopen(f"http://{broker.http}/api/v1/stats"))["worker_count"])
        < 50
    ):
        pass
    assert broker.stop() == 0
    for thread in threads:
        thread.join(20)
    assert answers == [[]] * 50


def test_an_idle_broker_starts_again_on_an_empty_folder(broker: BrokerProcess) -> None:
    assert broker.stop() == 0
    broker.start()
    assert broker.health() == {
        "status": "healthy",
        "is_leader": True,
        "connected_workers": 0,
        "pending_tasks": 0,
        "cluster_healthy": True,
    }
