"""Two broker processes, of which one is killed, and the command line that is told of both."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskqueue import App, AsyncClient, SyncClient, Task
from taskqueue.client.address import broker_addresses
from taskqueue.worker.runner import Worker
from taskqueue.worker.settings import WorkerSettings
from tests.support.broker import BrokerProcess, a_broker_process
from tests.support.door import PATIENCE, no_longer_than
from tests.support.ports import free_port

TQ = [sys.executable, "-m", "taskqueue.cli.main"]


@pytest.fixture
def brokers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[BrokerProcess]]:
    """Each has a database of its own: enough to see which one does the work."""
    monkeypatch.setenv("TQ_BROKER_LEASE_SECONDS", "3")
    with (
        a_broker_process(tmp_path / "a") as one,
        a_broker_process(tmp_path / "b") as other,
        no_longer_than(4 * PATIENCE),
    ):
        yield [one, other]


def url_of(brokers: list[BrokerProcess]) -> str:
    return ",".join(broker.native for broker in brokers)


def with_worker(brokers: list[BrokerProcess]) -> BrokerProcess:
    """The broker that a worker is connected to, as soon as there is one."""
    while True:
        for broker in brokers:
            if broker.health()["connected_workers"]:
                return broker


def test_a_worker_goes_on_at_the_other_broker_when_its_own_is_killed(
    brokers: list[BrokerProcess],
) -> None:
    command = [*TQ, "worker", "taskqueue.cli.samples:app", "--url", url_of(brokers)]
    with subprocess.Popen(command) as worker, SyncClient(url_of(brokers)) as client:
        try:
            for number in range(2):
                lost = with_worker(brokers)
                lost.kill()
                task_id = client.submit_task(Task("reverse", b"%d!" % number))
                assert client.wait_for_result(task_id) == b"!%d" % number
                lost.start()
        finally:
            worker.terminate()
        assert worker.wait(PATIENCE) == 0


async def test_heartbeats_go_on_at_the_other_broker_while_a_handler_keeps_the_loop_busy(
    brokers: list[BrokerProcess],
) -> None:
    app = App(url_of(brokers))
    found: list[BrokerProcess] = []

    @app.task
    async def busy() -> None:
        lost = with_worker(brokers)
        left = [broker for broker in brokers if broker is not lost]
        lost.kill()
        found.append(with_worker(left))

    worker = Worker(app, broker_addresses(url_of(brokers)), WorkerSettings())
    running = asyncio.create_task(worker.run())
    used = await asyncio.to_thread(with_worker, brokers)
    async with AsyncClient(used.native) as client:
        await client.submit_task(Task("busy", b"{}"))
    async with asyncio.timeout(2 * PATIENCE):
        while not found:  # noqa: ASYNC110  the handler may end without being heard
            await asyncio.sleep(0.01)
    worker.stop()
    await running
    assert found[0] is not used


async def test_what_is_submitted_while_a_broker_is_killed_arrives(
    brokers: list[BrokerProcess],
) -> None:
    ids: set[str] = set()
    async with AsyncClient(url_of(brokers)) as client:
        for lost in brokers:  # one of them is the one in use
            tasks = [Task("nobody", b"%d" % number) for number in range(300)]
            submits = [asyncio.create_task(client.submit_task(task)) for task in tasks]
            await asyncio.wait(submits, return_when=asyncio.FIRST_COMPLETED)
            lost.kill()
            ids.update(await asyncio.gather(*submits))
            lost.start()
    kept: set[str] = set()
    for broker in brokers:
        async with AsyncClient(broker.native) as alone:
            kept |= {one.task_id for one in (await alone.list_tasks(limit=1000)).tasks}
    assert kept == ids
    assert len(ids) == 600


def tq(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run([*TQ, *words], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == code, (words, ran.stdout, ran.stderr)
    return ran


def test_the_command_line_takes_several_addresses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    with a_broker_process(tmp_path / "data") as broker:
        for url in (f"{nobody},{broker.native}", f"tq://{broker.native},{nobody}"):
            task_id = tq("submit", "nobody", "{}", "--url", url).stdout.strip()
            monkeypatch.setenv("TQ_URL", url)
            assert task_id in tq("status", task_id).stdout
            monkeypatch.delenv("TQ_URL")


def test_the_command_line_names_all_brokers_where_none_answers() -> None:
    nobody = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    refused = tq("stats", "--url", f"tq://secret@{','.join(nobody)}", code=7).stderr
    assert all(address in refused for address in nobody)
    assert "secret" not in refused


def test_the_command_line_refuses_a_broker_named_twice() -> None:
    for command in (("stats",), ("worker", "taskqueue.cli.samples:app")):
        refused = tq(*command, "--url", "a:1,b:2,a:1", code=2).stderr
        assert "a:1 is named twice" in refused
        assert "Traceback" not in refused
