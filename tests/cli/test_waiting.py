"""Submitting and waiting: priorities by name, ends of tasks as exit codes, pictures that move."""

import json
import re
import signal
import subprocess
from pathlib import Path

import pytest

from taskqueue import SyncClient, Task
from tests.cli.running import TQ, Here, on_a_terminal
from tests.support.broker import BrokerProcess

NO_TASK = "550e8400-e29b-41d4-a716-446655440000"


@pytest.mark.parametrize(
    ("stated", "number"),
    [("low", 50), ("normal", 100), ("high", 200), ("critical", 255), ("0", 0), ("17", 17)],
)
def test_priorities_have_names(tq: Here, stated: str, number: int) -> None:
    task_id = tq("submit", "waited.nobody", "--priority", stated).out.strip()
    assert tq("status", task_id, "--fields", "priority").rows == [["priority", str(number)]]


def test_a_priority_that_is_none_is_refused(tq: Here) -> None:
    said = tq("submit", "waited.nobody", "--priority", "urgent", code=2).err
    assert "'urgent'" in said
    assert "critical" in said
    assert "see tq submit --help" in said


def test_waiting_shows_how_each_task_has_ended(tq: Here, client: SyncClient) -> None:
    ids = [client.submit_task(Task("hello", b"{}")) for _ in range(3)]
    assert tq("wait", *ids, ids[0]).rows == [[task_id, "completed", "-"] for task_id in ids]
    [first, *_] = json.loads(tq("wait", *ids, "-o", "json").out)
    assert first["result"] is not None


def test_a_failure_is_exit_code_three(tq: Here, client: SyncClient) -> None:
    good = client.submit_task(Task("hello", b"{}"))
    bad = client.submit_task(Task("fail", b'{"message": "no luck"}', max_retries=0))
    ran = tq("wait", good, bad, code=3)
    assert ran.rows == [
        [good, "completed", "-"],
        [bad, "dead_letter", "RuntimeError: no luck"],
    ]
    assert f"tq retry {bad}" in ran.err


def test_what_has_not_ended_in_time_is_exit_code_six(tq: Here, client: SyncClient) -> None:
    task_id = client.submit_task(Task("waited.nobody", b"{}"))
    ran = tq("wait", task_id, "--timeout", "0.1", code=6)
    assert task_id in ran.err
    assert "--timeout" in ran.err
    bad = client.submit_task(Task("fail", b"{}", max_retries=0))
    client.wait_for_end(bad)
    assert tq("wait", task_id, bad, "--timeout", "0.1", code=3).err.count("tq: ") == 2


def test_a_task_that_is_not_there_is_exit_code_five(tq: Here, client: SyncClient) -> None:
    good = client.submit_task(Task("hello", b"{}"))
    ran = tq("wait", good, NO_TASK, code=5)
    assert ran.rows == [[good, "completed", "-"]]
    tq("wait", code=2)


def test_ctrl_c_ends_a_wait_with_130(broker: BrokerProcess, client: SyncClient) -> None:
    task_id = client.submit_task(Task("waited.nobody", b"{}"))
    with on_a_terminal("submit", "waited.nobody", "--wait", "--url", broker.native) as terminal:
        terminal.expect(r"[0-9a-f]{8}-")  # the id is told first
        terminal.press("\x03")
        assert terminal.end() == 130
    assert "Traceback" not in terminal.text
    assert client.get_status(task_id).status == "pending"


def test_a_picture_moves_until_ctrl_c(broker: BrokerProcess, client: SyncClient) -> None:
    words = ("list", "--type", "watched.mail", "--watch=0.1", "--url", broker.native)
    with on_a_terminal(*words) as terminal:
        terminal.expect("0 of 0")
        task_id = client.submit_task(Task("watched.mail", b"{}"))
        terminal.expect(task_id)
        client.cancel(task_id)
        terminal.expect(rf"{task_id}.*cancelled")
        terminal.press("\x03")
        assert terminal.end() == 130
    assert terminal.text.count("\x1b[2J") == 1
    assert "Traceback" not in terminal.text


@pytest.mark.parametrize("command", ["stats", "cluster", "queue-depth"])
def test_piped_pictures_follow_each_other(broker: BrokerProcess, command: str) -> None:
    with subprocess.Popen(
        [*TQ, command, "--watch=0.1", "--url", broker.native, "-o", "jsonl"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        lines = [process.stdout.readline() for _ in range(4)]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr.read() == b""
    assert all(json.loads(line) for line in lines)


def test_pictures_go_on_when_the_broker_comes_back(broker: BrokerProcess) -> None:
    words = ("stats", "--watch=0.1", "--url", broker.native)
    with on_a_terminal(*words) as terminal:
        terminal.expect("pending_count")
        broker.stop()
        broker.start()
        terminal.expect("pending_count")
        terminal.press("\x03")
        assert terminal.end() == 130


def test_a_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    doors = ("--http", "127.0.0.1:0", "--native", "127.0.0.1:0", "--grpc", "127.0.0.1:0")
    with on_a_terminal("demo", *doors, env={"TMPDIR": str(tmp_path)}) as terminal:
        terminal.expect("sample task .* completed")
        assert list(tmp_path.glob("tq-demo-*"))
        terminal.press("\x03")
        assert terminal.end() == 0
    assert not list(tmp_path.glob("tq-demo-*"))


def test_a_pause_must_be_one(tq: Here) -> None:
    for pause in ("0", "-1", "nan", "inf"):
        assert "watch" in tq("stats", f"--watch={pause}", code=2).err


def test_dead_letters_are_seen_as_they_are_written(tq: Here) -> None:
    shown = tq("list", "--help").out
    assert re.search(r"dead_letter", shown)
    assert tq("list", "--status", "dead_letter", "--limit", "1").code == 0
