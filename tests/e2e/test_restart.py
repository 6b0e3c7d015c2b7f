"""Real processes: what a restart, a kill and a second broker come to."""

import base64
import contextlib
import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from taskqueue import SyncClient, Task
from taskqueue.core.ids import new_task_id
from taskqueue.wire import resp
from tests.support.broker import BrokerProcess, a_broker_process
from tests.support.ports import free_port

BLOCKED = 200


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with a_broker_process(tmp_path / "data") as process:
        yield process


def native(broker: BrokerProcess) -> Any:
    """A Redis client on the broker; its library does not say what commands return."""
    host, _, port = broker.native.rpartition(":")
    return redis.Redis(host, int(port))


def ask(broker: BrokerProcess, path: str, body: object = None) -> Any:
    """The answer of the REST door; with a body the request is a POST."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(
        f"http://{broker.http}/api/v1{path}", data, {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        return json.load(answer)


def restart(broker: BrokerProcess) -> None:
    """Kill the broker and start it again."""
    broker.kill()
    broker.start()


def test_what_was_acknowledged_is_there_after_a_kill_and_a_repeat_makes_no_second_task(
    broker: BrokerProcess,
) -> None:
    tasks = [Task("work", b"%d" % number, task_id=new_task_id()) for number in range(200)]
    with SyncClient(broker.native) as client:
        ids = client.submit_many(tasks)
        ids.append(ask(broker, "/tasks", {"task_type": "work", "payload": "eA=="})["task_id"])
        restart(broker)
        assert {client.get_status(task_id).status for task_id in ids} == {"pending"}
        assert client.submit_many(tasks) == ids[:-1]
        assert client.list_tasks(status="pending").total == ask(broker, "/tasks")["total"] == 201
        assert ask(broker, "/stats")["pending_count"] == 201


def test_a_living_worker_completes_its_task_across_a_restart_and_the_result_is_read_back(
    broker: BrokerProcess,
) -> None:
    with SyncClient(broker.native) as client:
        task_id = client.submit_task(Task("work", b"x"))
        [claimed] = native(broker).execute_command("TQ.CLAIM", "w", "TYPES", "work")
        restart(broker)
        assert client.get_status(task_id).status == "in_progress"
        assert native(broker).execute_command("TQ.CLAIM", "w2", "TYPES", "work") == []
        token = claimed[1]
        answer = native(broker).execute_command("TQ.COMPLETE", task_id, token, "RESULT", "done")
        assert answer == b"completed"
        restart(broker)
        assert client.wait_for_result(task_id, timeout=10) == b"done"
        assert ask(broker, f"/tasks/{task_id}")["result"] == base64.b64encode(b"done").decode()
        again = native(broker).execute_command("TQ.COMPLETE", task_id, token, "RESULT", "other")
        assert again == b"completed"
        assert client.wait_for_result(task_id, timeout=10) == b"done"
        with pytest.raises(redis.ResponseError, match="LEASE_LOST"):
            native(broker).execute_command("TQ.FAIL", task_id, token + 1, "no")


def test_the_task_of_a_worker_that_died_goes_to_another_and_its_late_word_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TQ_BROKER_LEASE_SECONDS", "1")
    with a_broker_process(tmp_path / "data") as broker, SyncClient(broker.native) as client:
        task_id = client.submit_task(Task("work", b"x"))
        [lost] = native(broker).execute_command("TQ.CLAIM", "dead", "TYPES", "work")
        restart(broker)  # it dies with the broker, and so nobody sees it go
        claim = ("TQ.CLAIM", "heir", "BLOCK", 20_000, "TYPES", "work")
        [found] = native(broker).execute_command(*claim)
        assert (found[0].decode(), found[1]) == (task_id, lost[1] + 1)
        with pytest.raises(redis.ResponseError, match="LEASE_LOST"):
            native(broker).execute_command("TQ.COMPLETE", task_id, lost[1], "RESULT", "late")
        native(broker).execute_command("TQ.COMPLETE", task_id, found[1], "RESULT", "in time")
        status = client.get_status(task_id)
        assert (status.result, status.retry_count) == (b"in time", 1)
        assert [failure.error for failure in status.failures] == [
            "WorkerLost: the worker fell silent"
        ]


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
    with SyncClient(broker.native) as client:
        task_id = client.submit_task(Task("work", b"x", delay=3600)).encode()
    host, _, port = broker.native.rpartition(":")
    with contextlib.ExitStack() as opened:
        waiting = [
            opened.enter_context(socket.create_connection((host, int(port)), 20))
            for _ in range(BLOCKED + 1)
        ]
        for number, connection in enumerate(waiting[1:]):
            claim = (b"TQ.CLAIM", b"w%d" % number, b"BLOCK", b"600000", b"TYPES", b"work")
            connection.sendall(resp.command(*claim))
        waiting[0].sendall(resp.command(b"TQ.WAIT", task_id, b"600000"))
        wait_for_workers(broker, BLOCKED)
        assert broker.stop() == 0
        answers = [connection.makefile("rb").read() for connection in waiting]
    assert b"pending" in answers[0]
    assert answers[1:] == [b"*0\r\n"] * BLOCKED


def wait_for_workers(broker: BrokerProcess, number: int) -> None:
    """Return once the broker knows so many workers."""
    ends_at = time.monotonic() + 20
    while ask(broker, "/stats")["worker_count"] < number:
        assert time.monotonic() < ends_at, "the claims did not arrive"


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
