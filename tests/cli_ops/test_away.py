"""`tq top` and `tq tail` go on when the broker is back."""

from pathlib import Path

from taskqueue import SyncClient, Task
from tests.cli_ops.conftest import Tq
from tests.cli_ops.test_tail import a_tail
from tests.cli_ops.test_top import a_terminal
from tests.support.broker import BrokerProcess


def test_both_wait_for_a_broker_that_is_away(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path / "data", "--rate-limit", "0")
    broker.start()
    tq = Tq(broker.native, tmp_path)
    try:
        with a_tail(tq) as tail, a_terminal(tq, "--interval", "0.1") as terminal:
            terminal.until(b"healthy")
            broker.kill()
            terminal.until(b"unreachable, trying again")
            assert "trying again" in tail.complaint()
            broker.start()
            terminal.until(b"healthy")
            assert "answers again" in tail.complaint()
            with SyncClient(broker.native) as client:
                task_id = client.submit_task(Task("late", b"x", delay=3600))
            assert tail.next()["task_id"] == task_id
            terminal.press(b"q")
            assert terminal.end() == 0
    finally:
        broker.stop()
