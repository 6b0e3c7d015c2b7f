"""What the documents tell people to type is typed here, word by word, against a real broker.

Only the addresses are put in: documents say localhost:8080 and :6379, a test takes free ports.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from taskqueue.settings.sources import load_settings
from tests.support.broker import BrokerProcess, a_broker_process
from tests.support.ports import free_port
from tests.support.postgres import a_database, shared_server

ROOT = Path(__file__).parent.parent.parent
TOOLS = f"{ROOT / '.tools' / 'bin'}:{Path(sys.executable).parent}"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)

ELSEWHERE = {
    "make run": "tests/e2e/test_make_run.py",
    "make chaos": "run by CI itself",
    "make bench": "tests/house/test_bench.py",
    "pip install 'taskqueue[server]'": "what set-up has done",
    "pip install 'taskqueue[outbox]'": "what set-up has done",
}
"""Lines that are not typed again here, and where they are."""


def blocks(document: str, *languages: str) -> list[tuple[str, str]]:
    """The fenced blocks of a document, by language."""
    found = BLOCK.findall((ROOT / document).read_text())
    return [(language, text) for language, text in found if language in languages]


class Shell:
    """A shell in a folder of its own, in which localhost is a broker of its own."""

    def __init__(self, folder: Path, http: str, native: str) -> None:
        self.folder = folder
        self._http, self._native = http, native
        port = native.rpartition(":")[2]
        self._env = os.environ | {
            "PATH": f"{TOOLS}:{os.environ['PATH']}",
            "TQ_URL": native,
            "TQ_HTTP": http,
            "TQ_NATIVE": native,
            "TQ_GRPC": "127.0.0.1:0",
            "TQ_RATE_LIMIT": "0",
            "PYTHONPATH": str(folder),
        }
        self._words = {
            "http://localhost:8080": f"http://{http}",
            "127.0.0.1:6379": native,
            "redis-cli ": f"redis-cli -p {port} ",
            ". .venv/bin/activate": ":",
        }

    def run(self, script: str, timeout: float = 60) -> str:
        """What a script prints; it must not fail."""
        for word, meant in self._words.items():
            script = script.replace(word, meant)
        ran = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=self.folder,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert ran.returncode == 0, f"{script}\n{ran.stdout}\n{ran.stderr}"
        return ran.stdout

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """A command that goes on."""
        return subprocess.Popen(list(command), cwd=self.folder, env=self._env)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with a_broker_process(tmp_path / "data") as process:
        yield process


@pytest.fixture
def samples(broker: BrokerProcess, tmp_path: Path) -> Iterator[Shell]:
    """A shell beside a broker and a worker with the sample handlers."""
    shell = Shell(tmp_path, broker.http, broker.native)
    tq = (sys.executable, "-m", "taskqueue.cli.main")
    worker = shell.start(*tq, "worker", "taskqueue.cli.samples:app")
    yield shell
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0


def typed(text: str) -> str:
    """The lines of a block that are typed here."""
    return "\n".join(line for line in text.splitlines() if line not in ELSEWHERE)


def test_the_readme_does_what_it_says(samples: Shell) -> None:
    python = [text for _, text in blocks("README.md", "python")]
    printed = [samples.run(typed(text)) for _, text in blocks("README.md", "sh")]
    assert '"status":"pending"' in printed[1]
    assert "queue_depth_by_priority" in printed[2]
    assert '"Hello, Edsger!"' in printed[3]
    native = samples._native
    (samples.folder / "client.py").write_text(python[0].replace("127.0.0.1:6379", native))
    assert "Hello, Barbara!" in samples.run("python client.py")
    (samples.folder / "tasks.py").write_text(python[1])
    (samples.folder / "send.py").write_text(python[2])
    worker = samples.start(sys.executable, "-m", "taskqueue.cli.main", "worker", "tasks:app")
    try:
        assert samples.run("python send.py").strip() == "sent to ada@example.org, attempt 1"
    finally:
        worker.terminate()
        assert worker.wait(30) == 0


def test_the_tutorial_ends_where_it_says(tmp_path: Path) -> None:
    shell = Shell(tmp_path, f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    for language, text in blocks("docs/tutorial.md", "python"):
        name = "tasks.py" if "app = App()" in text else "send.py"
        (tmp_path / name).write_text(text)
        assert language == "python"
    script = "\n".join(typed(text) for _, text in blocks("docs/tutorial.md", "sh"))
    assert script.count("tq serve --data ./queue &") == 2
    answers = f"until curl -sf http://{shell._http}/api/v1/health >/dev/null; do sleep 0.1; done"
    script = script.replace("tq serve --data ./queue &", f"tq serve --data ./queue &\n{answers}")
    script = "set -m\n" + script.replace("kill -9 %1", "kill -9 %1; wait %1 || true")
    printed = shell.run(script + "\nkill %%; kill %2; wait", timeout=90)
    assert '"status":"healthy"' in printed
    assert "sent to grace@example.org, attempt 1" in printed
    assert printed.count("send_email") >= 4


def test_the_commands_of_the_reference_work(samples: Shell) -> None:
    [(_, script)] = blocks("docs/reference/cli.md", "sh")
    printed = samples.run(script)
    assert '"Hello, Ada!"' in printed
    assert "broker.lease_seconds" in printed


def test_a_broker_is_run_as_the_guide_says(tmp_path: Path) -> None:
    shell = Shell(tmp_path, f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}")
    commands = blocks("docs/how-to/run-a-broker.md", "sh")
    serve, show, backup, restore = (text.strip() for _, text in commands)
    ((_, settings),) = blocks("docs/how-to/run-a-broker.md", "toml")
    (tmp_path / "tq.toml").write_text(settings)
    assert "tq.toml" in shell.run(show)
    serve = serve.replace("127.0.0.1:8080", shell._http)
    for word, meant in shell._words.items():
        serve = serve.replace(word, meant)
    process = shell.start(sys.executable, "-m", "taskqueue.cli.main", *serve.split()[1:])
    shell.run(f"until curl -sf http://{shell._http}/api/v1/health; do sleep 0.1; done")
    shell.run("tq submit some_type")
    shell.run(backup)
    process.terminate()
    assert process.wait(30) == 0
    shell.run(restore)
    restored = BrokerProcess(tmp_path / "restored")
    restored.start()
    assert restored.health()["pending_tasks"] == 1
    assert restored.stop() == 0


def test_tls_is_set_up_as_the_guide_says(tmp_path: Path) -> None:
    http, native, grpc = (free_port() for _ in range(3))
    shell = Shell(tmp_path, f"127.0.0.1:{http}", f"127.0.0.1:{native}")
    shell._env["TQ_GRPC"] = f"127.0.0.1:{grpc}"
    shell._words |= {
        "https://localhost:8080": f"https://localhost:{http}",
        "tqs://localhost:6379": f"tqs://localhost:{native}",
    }
    # 56: it answers, but wants a client certificate.
    answers = (
        f"until curl -sk --max-time 5 https://localhost:{http} -o /dev/null || (($? == 56)); "
        "do sleep 0.1; done"
    )
    script = "\n".join(text for _, text in blocks("docs/how-to/use-tls.md", "sh"))
    script = re.sub(r"^(tq serve .*&)$", rf"\1\n{answers}", script, flags=re.MULTILINE)
    printed = shell.run(script + "\nkill $! && wait $!", timeout=90)
    assert printed.count('"status":"healthy"') == 2
    assert printed.count("PONG") == 2
    assert printed.count("pending_count") == 2


def test_keys_are_made_and_ended_as_the_guide_says(broker: BrokerProcess, tmp_path: Path) -> None:
    shell = Shell(tmp_path, broker.http, broker.native)
    printed = shell.run("\n".join(text for _, text in blocks("docs/how-to/use-keys.md", "sh")))
    for said in ("web-shop", "mail-worker", "\trevoked", "create_key", "revoke_key"):
        assert said in printed
    assert (tmp_path / "new.key").read_text().startswith("tq_")


def test_tasks_are_tested_as_the_guide_says(tmp_path: Path) -> None:
    shell = Shell(tmp_path, "127.0.0.1:1", "127.0.0.1:1")  # the suites need no broker that runs
    # Not the plugins of this very suite: each takes a second to load.
    shell._env |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": "-p taskqueue"}
    for _, text in blocks("docs/how-to/test-your-tasks.md", "python"):
        (tmp_path / text.split()[1]).write_text(text)
    in_line, with_broker = blocks("docs/how-to/test-your-tasks.md", "sh")
    assert "5 passed" in shell.run(in_line[1])
    assert "1 passed" in shell.run(with_broker[1])


def test_workers_are_written_as_the_guide_says(broker: BrokerProcess, tmp_path: Path) -> None:
    guide = "docs/how-to/write-workers.md"
    shell = Shell(tmp_path, broker.http, broker.native)
    [(_, tasks)] = blocks(guide, "python")
    (tmp_path / tasks.split()[1]).write_text(tasks)
    work, use = (text for _, text in blocks(guide, "sh"))
    tq = (sys.executable, "-m", "taskqueue.cli.main")
    worker = shell.start(*tq, *work.split()[1:])
    printed = shell.run(use)
    lines = printed.splitlines()
    assert lines[0] == "22.4"
    assert lines[1] == "430"
    assert "303 primes below 2000" in printed
    assert "changed" in lines[-1]
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(30) == 0


async def test_submits_in_a_transaction_are_sent_as_the_guide_says(
    samples: Shell, tmp_path: Path
) -> None:
    guide = "docs/how-to/submit-in-a-transaction.md"
    with shared_server("16") as server:
        async with a_database(server) as dsn:
            for _, text in blocks(guide, "python"):
                (tmp_path / text.split()[1]).write_text(
                    text.replace("postgresql://localhost/shop", dsn)
                )
            samples.run("python migrate.py")
            ids = samples.run("python shop.py && python shop_sync.py").split()
            _install, relay = (text.split() for _, text in blocks(guide, "sh"))
            tq = (sys.executable, "-m", "taskqueue.cli.main")
            started = [
                samples.start(sys.executable, *relay[1:-1], dsn),
                samples.start(*tq, "worker", "tasks:app"),
            ]
            samples.run(f"until tq status {ids[0]} && tq status {ids[1]}; do sleep 0.1; done")
            printed = [samples.run(f"tq result {task_id} --wait 30") for task_id in ids]
            for process in started:
                process.terminate()
                assert process.wait(30) == 0
            [(_, again)] = blocks(guide, "sql")
            with psycopg.connect(dsn) as connection:
                connection.execute(again.encode())
                connection.execute("DROP TABLE orders, taskqueue_outbox")
                connection.execute("DROP FUNCTION taskqueue_outbox_notify")
    assert [text.strip() for text in printed] == [
        '"receipt 1 sent to ada@example.org"',
        '"receipt 2 sent to bob@example.org"',
    ]


def test_fastapi_is_used_as_the_guide_says(samples: Shell, tmp_path: Path) -> None:
    for _, text in blocks("docs/how-to/use-fastapi.md", "python"):
        (tmp_path / text.split()[1]).write_text(text)
    _install, serve = (text.split() for _, text in blocks("docs/how-to/use-fastapi.md", "sh"))
    port = str(free_port())
    started = [
        samples.start(sys.executable, "-m", *serve[:-1], port),
        samples.start(sys.executable, "-m", "taskqueue.cli.main", "worker", "tasks:app"),
    ]
    try:
        printed = samples.run(
            f"curl -sf --retry 50 --retry-connrefused --retry-delay 1 -X POST "
            f"localhost:{port}/users/ada > made\n"
            "task_id=$(cut -d '\"' -f 4 made)\n"
            "tq result $task_id --wait 30\n"
            f"curl -sf localhost:{port}/tasks/$task_id\n"
            f"curl -s localhost:{port}/tasks/none"
        )
    finally:
        for process in started:
            process.terminate()
            process.wait(30)
    assert '"sent to ada@example.org"' in printed
    assert '{"status":"completed","error":null}' in printed
    assert '{"error":"Task not found","code":"TASK_NOT_FOUND"}' in printed


def test_settings_in_the_documents_are_settings(tmp_path: Path) -> None:
    for document in ("docs/how-to/run-a-broker.md", "docs/reference/settings.md"):
        for number, (_, text) in enumerate(blocks(document, "toml")):
            file = tmp_path / f"{number}.toml"
            file.write_text(text)
            assert tomllib.loads(text)
            load_settings({}, {}, file)


@pytest.mark.parametrize(
    ("example", "said"),
    [("typed_producer.py", "sent to ada@example.org\n5"), ("producer.py", '"sent to grace@')],
)
def test_the_python_examples_run_as_they_stand(
    broker: BrokerProcess, tmp_path: Path, example: str, said: str
) -> None:
    for file in (ROOT / "examples" / "python").glob("*.py"):
        shutil.copy(file, tmp_path)
    shell = Shell(tmp_path, broker.http, broker.native)
    worker = shell.start(sys.executable, "-m", "taskqueue.cli.main", "worker", "tasks:app")
    try:
        assert said in shell.run(f"python {example}")
    finally:
        worker.terminate()
        assert worker.wait(30) == 0


def test_every_line_left_out_here_is_somewhere_else() -> None:
    for line, place in ELSEWHERE.items():
        assert not place.endswith(".py") or (ROOT / place).exists(), line
