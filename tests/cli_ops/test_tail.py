"""`tq tail`: what changes, as it happens."""

import json
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from taskqueue import AsyncClient, SyncClient, Task
from taskqueue.cli.following import Follower
from tests.cli_ops.conftest import TQ, Tq
from tests.support.broker import BrokerProcess

PATIENCE = 20.0
SOON = ("--interval", "0.05")


class Tail:
    """A `tq tail` that runs, and the lines that it has printed."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._complaints: SimpleQueue[str] = SimpleQueue()
        self._threads = [
            threading.Thread(target=self._read, args=(stream, lines), daemon=True)
            for stream, lines in ((process.stdout, self._lines), (process.stderr, self._complaints))
        ]
        for thread in self._threads:
            thread.start()

    def next(self) -> dict[str, Any]:
        """The next change."""
        change: dict[str, Any] = json.loads(self._lines.get(timeout=PATIENCE))
        return change

    def complaint(self) -> str:
        """The next line on stderr."""
        return self._complaints.get(timeout=PATIENCE)

    def close(self) -> None:
        """End it, if it has not ended."""
        self.process.kill()
        self.process.wait(PATIENCE)
        for thread in self._threads:
            thread.join(PATIENCE)

    @staticmethod
    def _read(stream: Any, lines: "SimpleQueue[str]") -> None:
        with stream:
            for line in stream:
                lines.put(line)


@contextmanager
def a_tail(tq: Tq, *words: str) -> Iterator[Tail]:
    """A `tq tail` for the block; it has begun to look."""
    process = tq.start("tail", *SOON, *words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    tail = Tail(process)
    try:
        assert tail.complaint().startswith("tq: following")
        yield tail
    finally:
        tail.close()


@pytest.fixture
def client(broker: BrokerProcess) -> Iterator[SyncClient]:
    with SyncClient(broker.native) as made:
        yield made


def test_changes_come_as_lines_of_json_until_it_is_interrupted(tq: Tq, client: SyncClient) -> None:
    client.submit_task(Task("tail-me", b"before"))
    with a_tail(tq, "--type", "tail-me") as tail:
        task_id = client.submit_task(Task("tail-me", b"x", delay=3600))
        client.submit_task(Task("something-else", b"x", delay=3600))
        submitted = tail.next()
        assert (submitted["task_id"], submitted["status"]) == (task_id, "pending")
        client.cancel(task_id)
        cancelled = tail.next()
        assert (cancelled["task_id"], cancelled["status"]) == (task_id, "cancelled")
        tail.process.send_signal(signal.SIGINT)
        assert tail.process.wait(PATIENCE) == 130


def test_only_the_statuses_asked_for_are_shown(tq: Tq, client: SyncClient) -> None:
    with a_tail(tq, "--type", "tail-some", "--status", "cancelled", "--count", "1") as tail:
        task_id = client.submit_task(Task("tail-some", b"x", delay=3600))
        client.cancel(task_id)
        assert tail.next()["status"] == "cancelled"
        assert tail.process.wait(PATIENCE) == 0


def test_a_task_that_is_named_is_followed_to_its_end(tq: Tq, client: SyncClient) -> None:
    task_id = client.submit_task(Task("tail-one", b"x", delay=3600))
    with a_tail(tq, "--id", task_id) as tail:
        assert tail.next()["status"] == "pending"
        client.cancel(task_id)
        ended = tail.next()
        assert (ended["status"], ended["failures"]) == ("cancelled", [])
        assert tail.process.wait(PATIENCE) == 0


def test_an_unknown_task_is_an_error(tq: Tq) -> None:
    ran = tq("tail", "--id", "550e8400-e29b-41d4-a716-446655440000", code=5)
    assert "TASK_NOT_FOUND" in ran.complaints


def test_it_ends_with_whoever_reads_it(tq: Tq, client: SyncClient) -> None:
    with a_tail(tq, "--type", "tail-head") as tail:
        client.submit_task(Task("tail-head", b"x", delay=3600))
        assert tail.next()["status"] == "pending"
    tail_words = " ".join([*TQ, "tail", *SOON, "--type", "tail-pipe"])
    script = f"{tail_words} | head -n 1; echo ${{PIPESTATUS[0]}}"
    piped = subprocess.Popen(
        ["bash", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=tq.environment,
    )
    assert piped.stderr is not None
    assert "following" in piped.stderr.readline()
    client.submit_task(Task("tail-pipe", b"x", delay=3600))
    out, complaints = piped.communicate(timeout=PATIENCE)
    assert json.loads(out.splitlines()[0])["task_type"] == "tail-pipe"
    assert out.splitlines()[1] == "0"
    assert complaints == ""


def test_without_a_broker_it_does_not_begin(tmp_path: Path) -> None:
    assert "BROKER_UNAVAILABLE" in Tq("127.0.0.1:1", tmp_path)("tail", code=7).complaints


async def test_many_changes_at_once_are_all_seen(broker: BrokerProcess) -> None:
    async with AsyncClient(broker.native) as client:
        follower = Follower(client, "tail-many")
        assert await follower.look() == []
        ids = await client.submit_many(Task("tail-many", b"x", delay=3600) for _ in range(700))
        assert {task.task_id for task in await follower.look()} == set(ids)
        assert await follower.look() == []
        for task_id in ids[:3]:  # the oldest, beyond the first page
            await client.cancel(task_id)
        changed = await follower.look()
        assert [(task.task_id, task.status) for task in changed] == [
            (task_id, "cancelled") for task_id in ids[:3]
        ]
        assert follower.missed == 0
