"""The command line against a real broker: what it prints, where, and its exit codes."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.broker import BrokerProcess, a_broker_process
from tests.support.ports import free_port

TQ = [sys.executable, "-m", "taskqueue.cli.main"]
NO_TASK = "550e8400-e29b-41d4-a716-446655440000"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with a_broker_process(tmp_path_factory.mktemp("cli") / "data") as process:
        worker = subprocess.Popen(
            [*TQ, "worker", "taskqueue.cli.samples:app", "--url", process.native]
        )
        yield process
        worker.terminate()
        assert worker.wait(30) == 0


class Tq:
    """`tq` on a broker."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __call__(
        self, *words: str, code: int = 0, stdin: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        ran = subprocess.run(
            [*TQ, *words, "--url", self._url],
            input=stdin,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert ran.returncode == code, (words, ran.stdout, ran.stderr)
        assert b"Traceback" not in ran.stderr
        return ran


@pytest.fixture
def tq(broker: BrokerProcess) -> Tq:
    return Tq(broker.native)


def test_submit_prints_the_id_alone_and_status_shows_the_task(tq: Tq) -> None:
    submitted = tq("submit", "nobody", "{}", "--priority", "7", "--retries", "0")
    task_id = submitted.stdout.decode().strip()
    assert submitted.stderr == b""
    shown = json.loads(tq("status", task_id, "-o", "json").stdout)
    assert (shown["task_id"], shown["priority"], shown["max_retries"]) == (task_id, 7, 0)
    assert b"priority\t7" in tq("status", task_id).stdout


def test_a_result_comes_byte_for_byte(tq: Tq) -> None:
    data = bytes(range(256))
    ran = tq("submit", "reverse", "-", "--wait", stdin=data)
    assert ran.stdout.removesuffix(b"\n") == data[::-1]
    task_id = ran.stderr.decode().strip()
    assert tq("result", task_id).stdout.removesuffix(b"\n") == data[::-1]


def test_a_payload_may_be_a_file(tq: Tq, tmp_path: Path) -> None:
    (tmp_path / "payload.json").write_text('{"name": "file"}')
    ran = tq("submit", "hello", f"@{tmp_path / 'payload.json'}", "--wait")
    assert ran.stdout == b'"Hello, file!"\n'


def test_lists_are_tab_separated_when_piped_and_json_on_request(tq: Tq) -> None:
    task_id = tq("submit", "list-me").stdout.decode().strip()
    assert tq("list", "--type", "list-me", "-o", "id").stdout.decode().split() == [task_id]
    [line] = tq("list", "--type", "list-me").stdout.decode().splitlines()
    assert line.split("\t")[:4] == [task_id, "pending", "list-me", "100"]
    assert tq("list", "--type", "none-such", "-o", "json").stdout == b"[]\n"
    rows = tq("list", "--limit", "2", "-o", "jsonl").stdout.splitlines()
    assert len([json.loads(row) for row in rows]) == 2


def test_cancel_and_retry_say_what_became_of_each(tq: Tq) -> None:
    first, second = (tq("submit", "nobody").stdout.decode().strip() for _ in range(2))
    assert tq("cancel", first, second).stdout.count(b"cancelled") == 2
    ran = tq("cancel", first, NO_TASK, code=1)
    assert ran.stderr.count(b"INVALID_STATUS") >= 1
    assert b"TASK_NOT_FOUND" in ran.stderr
    assert b"back in the queue" in tq("retry", first).stdout


def test_a_running_task_is_cancelled_only_if_that_is_said(tq: Tq) -> None:
    task_id = tq("submit", "count", '{"to": 100000}').stdout.decode().strip()
    while b"in_progress" not in tq("status", task_id).stdout:
        pass
    assert b"INVALID_STATUS" in tq("cancel", task_id, code=1).stderr
    assert b"cancelled" in tq("cancel", task_id, "--running").stdout
    assert b"cancelled" in tq("status", task_id).stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["submit", "fail", "{}", "--retries", "0", "--wait"], 3, b"TASK_FAILED"),
        (["status", NO_TASK], 5, b"TASK_NOT_FOUND"),
        (["submit", "nobody", "--wait", "--wait-seconds", "0.1"], 6, b"WAIT_TIMEOUT"),
        (["submit", "two words"], 2, b"task_type"),
        (["submit", "x", "--priority", "256"], 2, b"priority"),
        (["submit", "x", "@/no/such/file"], 2, b"/no/such/file"),
        (["list", "--status", "no-such"], 2, b"no-such"),
        (["list", "--limit", "0"], 2, b"limit"),
        (["no-such-command"], 2, b"no-such-command"),
    ],
)
def test_what_goes_wrong_is_one_line_and_an_exit_code(
    tq: Tq, words: list[str], code: int, said: bytes
) -> None:
    ran = tq(*words, code=code)
    assert said in ran.stderr
    assert len(ran.stderr.strip().splitlines()) <= 2


def test_no_broker_is_exit_code_seven() -> None:
    ran = Tq(f"127.0.0.1:{free_port()}")("stats", code=7)
    assert b"no broker answers" in ran.stderr
    assert b"tq serve" in ran.stderr
    assert ran.stderr.count(b"\n") == 1


def test_stats_and_versions(tq: Tq) -> None:
    assert json.loads(tq("stats", "-o", "json").stdout)["worker_count"] == 1
    shown = subprocess.run([*TQ, "--version"], capture_output=True, text=True, check=True)
    assert shown.stdout.count(".") == 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--http", "nonsense"], "http.listen"),
        (["--http", "127.0.0.1:65536"], "65535"),
        (["--config", "/no/such.toml"], "/no/such.toml"),
        (["--log-level", "loud"], "loud"),
        (["--data", "/proc/nowhere"], "/proc/nowhere"),
        (["--grpc", "127.0.0.1"], "grpc.listen"),
        (["--rate-limit", "-1"], "access.rate_limit"),
        (["--tls-cert", "/no/cert.pem"], "tls.cert"),
    ],
)
def test_a_broker_that_cannot_start_says_why_in_one_line(
    tmp_path: Path, flags: list[str], said: str
) -> None:
    free = ["--http", "127.0.0.1:0", "--native", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
    free += ["--data", str(tmp_path / "data")]
    given = [word for word in free if word not in flags[:1]] if flags[0] == "--config" else free
    for place, word in enumerate(given):
        if word == flags[0]:
            given = [*given[:place], *given[place + 2 :]]
            break
    ran = subprocess.run(
        [*TQ, "serve", *given, *flags],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd=tmp_path,
    )
    assert ran.returncode == 2, ran.stderr
    assert said in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1


def test_a_worker_without_an_app_says_why_in_one_line(tmp_path: Path) -> None:
    for app in ("no_such_module:app", "json:app"):
        ran = subprocess.run(
            [*TQ, "worker", app],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            cwd=tmp_path,
        )
        assert ran.returncode == 2
        assert len(ran.stderr.strip().splitlines()) == 1
