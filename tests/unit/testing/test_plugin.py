"""The pytest plugin: a real broker for a test, and a worker in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from taskqueue import App, BrokerUnavailable, SyncClient, Task
from taskqueue.testing import LocalBroker

app = App("127.0.0.1:1")


@app.task
async def double(number: int) -> int:
    return 2 * number


@app.task
def quadruple(number: int) -> int:
    return double.submit_sync(double.submit_sync(number).result_sync()).result_sync()


def test_a_broker_runs_for_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQ_HTTP", "nonsense")
    monkeypatch.setenv("TQ_API_KEY", "tq_no_such_key")
    with LocalBroker(tmp_path / "broker") as broker:
        task_id = broker.client.submit_task(Task("somebody_elses", b""))
        assert broker.client.get_status(task_id).task_type == "somebody_elses"
        with broker.working(app):
            assert quadruple.submit_sync(10).result_sync(timeout=30) == 40
        url = broker.url
    with SyncClient(url, api_key="", timeout=0) as client, pytest.raises(BrokerUnavailable):
        client.health()


async def test_a_worker_runs_on_the_tests_own_loop(tmp_path: Path) -> None:
    with LocalBroker(tmp_path) as broker:
        async with broker.working(app):
            assert await (await quadruple.submit(1)).result(timeout=30) == 4


def test_a_broker_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no-such-flag"):
        LocalBroker(tmp_path, "--no-such-flag").__enter__()


SUITE = """
from taskqueue import Task

def test_it(taskqueue_broker):
    assert taskqueue_broker.client.submit_task(Task("work", b""))
"""


def run_suite(folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(SUITE)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "taskqueue"],
        cwd=folder,
        env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # others' cost seconds
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_fixture_is_there_in_any_suite(tmp_path: Path) -> None:
    ran = run_suite(tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_without_the_server_the_fixture_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(
        "import importlib.util\n"
        "known = importlib.util.find_spec\n"
        "import taskqueue.testing.plugin as plugin\n"
        "plugin.find_spec = lambda name: None if name == 'apsw' else known(name)\n"
    )
    ran = run_suite(tmp_path)
    assert ran.returncode == 1
    assert "pip install 'taskqueue[server]'" in ran.stdout


def test_the_plugin_costs_other_suites_nothing() -> None:
    """pytest imports it at every start: with it come no modules but its own."""
    code = (
        "import sys, pytest, importlib.metadata as m\n"
        "before = set(sys.modules)\n"
        "[entry] = [e for e in m.entry_points(group='pytest11') if e.name == 'taskqueue']\n"
        "entry.load()\n"
        "print(sorted(set(sys.modules) - before))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == str(["taskqueue", "taskqueue.testing", "taskqueue.testing.plugin"])
