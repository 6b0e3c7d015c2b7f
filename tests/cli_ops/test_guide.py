"""What the guide to diagnosis tells people to type is typed here, beside a broker and a worker."""

import signal
import sys
from pathlib import Path

from tests.house.test_documents import Shell, blocks
from tests.support.broker import a_broker_process

GUIDE = "docs/how-to/diagnose.md"


def test_the_guide_does_what_it_says(tmp_path: Path) -> None:
    doctor, audit, top, tail, bench = (text for _, text in blocks(GUIDE, "sh"))
    with a_broker_process(tmp_path / "queue", "--rate-limit", "0") as broker:
        shell = Shell(tmp_path, broker.http, broker.native)
        worker = shell.start(
            *(sys.executable, "-m", "taskqueue.cli.main", "worker", "taskqueue.cli.samples:app")
        )
        try:
            assert "\thealth\t" in shell.run(doctor)
            lines = shell.run(audit).splitlines()
            for promise in range(1, 11):
                assert any(line.startswith(f"ok\t{promise} ") for line in lines), lines
            assert not any(line.startswith("fail") for line in lines)
            assert any("committed in the data folder queue" in line for line in lines)
            assert any("cancelled, none left" in line for line in lines)
            assert "tq.doctor." not in shell.run("tq list --status pending")
            assert "leader 1, term 1" in shell.run(top)
            assert '"status":"completed"' in shell.run(tail)
            assert "tasks drained" in shell.run(bench)
        finally:
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(30) == 0
