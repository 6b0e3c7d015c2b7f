"""`make run` is `tq dev`: broker, worker, a sample task, what to try next, a clean end."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.ports import free_port

ROOT = Path(__file__).parent.parent.parent


def listening(http: str, native: str) -> list[str]:
    """The flags for ports that nobody has."""
    return ["--http", http, "--native", native, "--grpc", "127.0.0.1:0"]


def test_make_run_runs_tq_dev() -> None:
    shown = subprocess.run(
        ["make", "--no-print-directory", "-n", "run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.splitlines()[-1].strip() == "exec .venv/bin/tq dev"


def test_it_runs_a_sample_task_says_what_to_try_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    http, native = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "taskqueue.cli.main", "dev", *listening(http, native)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if "Ctrl-C stops" in line:
            break
    assert re.search(r'sample task [0-9a-f-]{36} completed: "Hello, world!"', said)
    curl = re.search(r"curl -X POST .*\\\n.*'", said)
    assert curl is not None, said
    answer = subprocess.run(
        ["bash", "-c", curl[0]], capture_output=True, text=True, check=True, timeout=30
    )
    assert '"status":"pending"' in answer.stdout
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=20)[0]
    assert process.returncode == 0
    assert "Traceback" not in said + rest
    assert (tmp_path / "taskqueue-data" / "queue.db").exists()


def test_a_changed_file_starts_a_new_worker(tmp_path: Path) -> None:
    source = (
        "from taskqueue import App\napp = App()\n@app.task\ndef say() -> str:\n    return {!r}\n"
    )
    (tmp_path / "mine.py").write_text(source.format("before"))
    http, native = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    tq = [sys.executable, "-m", "taskqueue.cli.main"]
    process = subprocess.Popen(
        [*tq, "dev", "mine:app", *listening(http, native)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    submit = [*tq, "submit", "say", "--wait", "--url", native]
    try:
        wait_for(process.stderr, "started")
        assert output(submit) == '"before"'
        (tmp_path / "mine.py").write_text(source.format("after"))
        wait_for(process.stderr, "the code changed")
        wait_for(process.stderr, "started")
        assert output(submit) == '"after"'
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 0


def wait_for(stream: object, word: str) -> None:
    """Read lines until one holds a word."""
    for line in stream:  # type: ignore[attr-defined]
        if word in line:
            return
    raise AssertionError(f"{word!r} was never said")


def output(command: list[str]) -> str:
    """What a command prints."""
    ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return ran.stdout.strip()
