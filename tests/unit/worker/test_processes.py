"""Handlers in processes of their own: what they are given, and every way in which they end."""

import asyncio
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskqueue import App, InvalidRequest, Task, TaskStatus, Worker, WorkerSettings
from taskqueue.worker.entry import load_app
from taskqueue.worker.execution import FORKED_EXIT
from taskqueue.worker.outcomes import LONGEST_TEXT
from tests.support.broker import BrokerProcess, a_broker_process
from tests.support.door import until
from tests.unit.worker import process_app
from tests.unit.worker.conftest import Bench, a_worker


class ProcessBench:
    """A broker, and a worker of `process_app`."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.worker: Worker

    @contextlib.asynccontextmanager
    async def work(self, **settings: Any) -> AsyncIterator[Worker]:
        """A worker with two slots unless told otherwise."""
        options = {"concurrency": 2} | settings
        async with a_worker(process_app.app, self.bench.door, **options) as self.worker:
            yield self.worker

    @property
    def pids(self) -> set[int]:
        """The processes that the worker has."""
        return self.worker._repertoire.pids

    async def submit(self, task_type: str, *, seconds: int = 300, **arguments: Any) -> str:
        """Submit a task that is tried once."""
        payload = json.dumps(arguments).encode()
        task = Task(task_type, payload, timeout=seconds, max_retries=0)
        return await self.bench.app.client.submit_task(task)

    async def end(self, task_type: str, **arguments: Any) -> TaskStatus:
        """How such a task ends."""
        task_id = await self.submit(task_type, **arguments)
        return await self.bench.app.client.wait_for_end(task_id)

    async def result(self, task_type: str, **arguments: Any) -> Any:
        """What such a task returns."""
        status = await self.end(task_type, **arguments)
        assert status.result is not None, status
        return json.loads(status.result)

    async def failure(self, task_type: str, **arguments: Any) -> str:
        """Why such a task failed."""
        status = await self.end(task_type, **arguments)
        assert status.status == "dead_letter", status
        return str(status.error)


@pytest.fixture
def processes(bench: Bench) -> ProcessBench:
    return ProcessBench(bench)


def is_gone(pid: int) -> bool:
    """Whether a process has ended, also where nobody has asked for its end."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


async def test_every_kind_of_handler_runs_in_a_child_and_the_others_do_not(
    processes: ProcessBench,
) -> None:
    client = processes.bench.app.client
    async with processes.work():
        pid, parent = await processes.result("where")
        assert (pid != os.getpid(), parent) == (True, os.getpid())
        pid, parent, lifespan_pid = await processes.result("where_async")
        assert (parent, lifespan_pid) == (os.getpid(), pid)
        assert await processes.result("in_a_thread") == os.getpid()
        task_id = await client.submit_task(Task("turn", b"\x00\xff\r\n"))
        assert await client.wait_for_result(task_id) == b"\n\r\xff\x00"
        text = "x" * 1_000_000
        assert await processes.result("large", payload=text) == text
        assert await processes.result("forked") == FORKED_EXIT
        children = processes.pids
    assert all(is_gone(pid) for pid in children)


async def test_a_context_works_over_the_pipe(processes: ProcessBench) -> None:
    async with processes.work():
        status = await processes.end("about", text="ü", seconds=77)
        assert status.result is not None
        assert json.loads(status.result) == [status.task_id, "about", 1, 1, 77, "ü"]
        assert (status.progress, status.progress_note) == (0.25, "a quarter")
        status = await processes.end("tell", fraction=0.5)
        assert (status.result, status.progress, status.progress_note) == (b'"told"', 0.5, "half ?")
        failure = await processes.failure("tell", fraction=1.5)
        assert failure.startswith("InvalidRequest: fraction must be")


async def test_a_child_has_none_of_its_workers_sockets(processes: ProcessBench) -> None:
    async with processes.work():
        theirs = set(await processes.result("sockets"))
        ours = process_app.open_sockets(os.getpid())
    assert ours
    assert theirs
    assert not theirs & ours


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("exit", "ended with exit code 0"),
        ("segfault", "was killed by SIGSEGV"),
        ("kill", "was killed by SIGKILL"),
    ],
)
async def test_a_child_that_dies_is_a_failed_attempt_and_the_other_slots_go_on(
    processes: ProcessBench, tmp_path: Path, how: str, said: str
) -> None:
    beside = tmp_path / "beside"
    async with processes.work():
        other = await processes.submit("tell_when_lost", beside=str(beside))
        await until(beside.exists)
        for _ in range(2):
            failure = await processes.failure("end", how=how)
            assert failure.startswith(f"WorkerProcessDied: the process of the handler {said}")
            assert " MB resident" in failure
        assert (await processes.result("where"))[1] == os.getpid()
        assert not is_gone(int(beside.read_text()))
        beside.unlink()
        status = await processes.bench.app.client.wait_for_end(other)
        assert status.status == "completed"


async def test_a_supervisor_that_ends_the_whole_group_ends_no_handler(
    processes: ProcessBench, tmp_path: Path
) -> None:
    beside = tmp_path / "beside"
    async with processes.work(concurrency=1):
        task_id = await processes.submit("tell_when_lost", beside=str(beside))
        await until(beside.exists)
        for number in (signal.SIGTERM, signal.SIGINT):
            os.kill(int(beside.read_text()), number)
        beside.unlink()
        status = await processes.bench.app.client.wait_for_end(task_id)
    assert status.status == "completed"


async def test_each_death_costs_a_retry(processes: ProcessBench) -> None:
    client = processes.bench.app.client
    async with processes.work():
        task_id = await client.submit_task(Task("end", b'{"how": "exit"}', max_retries=1))
        await processes.bench.failed(task_id)
        processes.bench.door.clock.advance(6)  # type: ignore[attr-defined]
        await processes.bench.door.broker.upkeep.promote()
        status = await client.wait_for_end(task_id)
    assert (status.status, len(status.failures)) == ("dead_letter", 2)
    assert all("exit code 0" in failure.error for failure in status.failures)


async def test_a_child_that_is_killed_while_it_is_idle_costs_nothing(
    processes: ProcessBench,
) -> None:
    async with processes.work(concurrency=1):
        pid, _ = await processes.result("where")
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pid not in processes.pids)
        assert (await processes.result("where"))[0] != pid


async def test_a_handler_is_killed_at_its_time_limit_whatever_it_does(
    processes: ProcessBench, tmp_path: Path
) -> None:
    async with processes.work(concurrency=1):
        for task_type in ("stuck", "too_long", "with_company"):
            beside = tmp_path / task_type
            failure = await processes.failure(task_type, beside=str(beside), seconds=1)
            assert failure == "TimedOut: the attempt took longer than its 1 s"
            await until(lambda beside=beside: is_gone(int(beside.read_text())))  # type: ignore[misc]
        assert (await processes.result("where"))[1] == os.getpid()


async def test_a_handler_is_killed_when_the_worker_is_told_to_stop_twice(
    processes: ProcessBench, tmp_path: Path
) -> None:
    beside = tmp_path / "beside"
    async with processes.work(concurrency=1):
        task_id = await processes.submit("stuck", beside=str(beside))
        await until(lambda: beside.exists() and bool(beside.read_text()))
    assert is_gone(int(beside.read_text()))
    status = await processes.bench.app.client.get_status(task_id)
    assert (status.status, status.retry_count, status.failures) == ("pending", 0, [])


async def test_a_handler_is_killed_when_its_claim_is_lost(beating: Bench, tmp_path: Path) -> None:
    processes = ProcessBench(beating)
    beside = tmp_path / "beside"
    async with processes.work(concurrency=1):
        payload = json.dumps({"beside": str(beside)}).encode()
        task_id = await beating.app.client.submit_task(Task("tell_when_lost", payload))
        await until(beside.exists)
        pid = int(beside.read_text())
        await beating.take_back(task_id)
        # The second attempt reads what the first one has written, and is run by another process.
        assert json.loads(await beating.app.client.wait_for_result(task_id)) == str(pid)
        assert is_gone(pid)


async def test_a_handler_learns_that_its_claim_is_lost(bench: Bench, tmp_path: Path) -> None:
    processes = ProcessBench(bench)
    beside = tmp_path / "beside"
    async with processes.work(concurrency=1):  # no second slot, so nothing else ends the attempt
        payload = json.dumps({"beside": str(beside)}).encode()
        task_id = await bench.app.client.submit_task(Task("tell_when_lost", payload))
        await until(beside.exists)
        await bench.take_back(task_id)
        beside.unlink()
        result = await bench.app.client.wait_for_result(task_id)
    assert json.loads(result) == "learnt it"


@pytest.mark.parametrize("task_type", ["heed", "heed_async", "ignore_all", "ignore"])
async def test_a_cancelled_handler_may_end_by_itself_and_is_killed_if_it_does_not(
    processes: ProcessBench, tmp_path: Path, task_type: str
) -> None:
    client = processes.bench.app.client
    beside, heard = tmp_path / "beside", tmp_path / "heard"
    heeds = task_type.startswith("heed")
    async with processes.work(concurrency=1, cancel_seconds=60.0 if heeds else 0.1):
        task_id = await processes.submit(task_type, beside=str(beside), heard=str(heard))
        await until(lambda: beside.exists() and bool(beside.read_text()))
        await client.cancel(task_id, running=True)
        pid, _ = await processes.result("where")
        # The slot was free only when the handler had ended, and its process goes on if it could.
        assert heard.exists() == heeds
        assert (str(pid) == beside.read_text()) == heeds
        assert is_gone(int(beside.read_text())) != heeds
    assert (await client.get_status(task_id)).status == "cancelled"


@pytest.mark.parametrize("task_type", ["raising", "raising_async"])
async def test_whatever_a_handler_raises_is_told_with_its_traceback(
    processes: ProcessBench, task_type: str
) -> None:
    async with processes.work(concurrency=1):
        for what, said in [
            ("value", "ValueError: no such user ?"),
            ("exit", "SystemExit: 0"),
            ("interrupt", "KeyboardInterrupt: "),
            ("cancelled", "CancelledError: own"),
        ]:
            status = await processes.end(task_type, what=what)
            assert str(status.error) == said
            lines = status.failures[0].traceback.splitlines()
            assert f'"{process_app.__file__}"' in lines[1]
        assert len(processes.pids) == 1


@pytest.mark.parametrize(
    ("what", "complaint"),
    [
        ("object", "TypeError: Encoding objects of type object"),
        ("nan", "ValueError: JSON cannot say nan"),
        ("surrogate", "UnicodeEncodeError: "),
        ("large", "PayloadTooLarge: the result must be at most 10485760 bytes"),
    ],
)
async def test_a_result_that_cannot_be_kept_is_a_failed_attempt(
    processes: ProcessBench, what: str, complaint: str
) -> None:
    async with processes.work(concurrency=1):
        assert (await processes.failure("give", what=what)).startswith(complaint)
        assert "does not fit" in await processes.failure("give", wrong=what)


async def test_what_a_child_logs_is_logged_by_its_worker(
    processes: ProcessBench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with processes.work(concurrency=1):
        pids = {(await processes.result("where"))[0]}
        status = await processes.end("log", message="hello")
        assert status.result == b'"hello"'
        assert processes.pids == pids
    records = [record for record in caplog.records if record.name == "jobs"]
    hello, wrong, long = records
    assert (hello.message, hello.levelname) == ("hello ?", "INFO")
    assert (vars(hello)["task_id"], {vars(hello)["process_id"]}) == (status.task_id, pids)
    assert wrong.message.startswith("went wrong\nTraceback (most recent call last):")
    assert wrong.message.endswith("ValueError: in between")
    assert len(long.message) == LONGEST_TEXT


async def test_a_child_is_replaced_after_so_many_tasks(processes: ProcessBench) -> None:
    async with processes.work(concurrency=1, child_tasks=2):
        pids = [(await processes.result("where"))[0] for _ in range(5)]
    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4]
    assert len(set(pids)) == 3


async def test_a_child_that_has_grown_is_replaced(processes: ProcessBench) -> None:
    async with processes.work(concurrency=1, child_memory_mb=150):
        small = [await processes.result("keep", megabytes=1) for _ in range(2)]
        large = await processes.result("keep", megabytes=200)
        fresh = await processes.result("keep", megabytes=1)
    assert len({*small, large}) == 1
    assert fresh != large


async def test_there_are_never_more_children_than_slots(processes: ProcessBench) -> None:
    seen: list[set[int]] = []
    async with processes.work(concurrency=2, child_tasks=1):
        ends = [
            asyncio.ensure_future(processes.end("end" if number % 3 else "where", how="exit"))
            for number in range(9)
        ]
        while not all(end.done() for end in ends):
            seen.append(processes.pids)
            await asyncio.sleep(0.001)
    assert max(len(pids) for pids in seen) <= 2
    assert len(set().union(*seen)) >= 6


async def test_an_app_that_cannot_be_imported_again_is_refused() -> None:
    app = App()

    @app.task(isolation="process")
    def inside() -> None: ...

    with pytest.raises(InvalidRequest, match="declare both in a module"):
        Worker(app)
    with pytest.raises(ValueError, match="isolation must be"):
        app.task(isolation="thread")  # type: ignore[call-overload]


async def test_a_worker_whose_children_cannot_import_the_app_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "only_once.py").write_text(
        "import pathlib\n"
        "from taskqueue import App\n"
        "pathlib.Path(__file__).with_suffix('.mark').touch(exist_ok=False)\n"
        "app = App('127.0.0.1:1')\n"
        "@app.task(isolation='process')\n"
        "def work() -> None: ...\n"
    )
    worker = Worker(load_app("only_once:app"), settings=WorkerSettings(concurrency=1))
    with pytest.raises(InvalidRequest, match=r"no process .* FileExistsError"):
        await worker.run()


@pytest.mark.parametrize(
    "setting", ["child_tasks", "child_memory_mb", "cancel_seconds", "stall_seconds"]
)
async def test_settings_below_zero_are_refused(setting: str) -> None:
    settings: Any = {setting: -1}
    with pytest.raises(InvalidRequest, match=f"{setting} must be 0 or more"):
        Worker(process_app.app, settings=WorkerSettings(**settings))


SCRIPT = """
from tests.unit.worker import process_app
from taskqueue import App, WorkerSettings, run_worker

app = App()
settings = WorkerSettings(concurrency=2)


@app.task(isolation="process", retries=0)
def say_much(megabytes: int) -> int:
    return process_app.say_much.function(megabytes)


@app.task(isolation="process", retries=0)
def stuck(beside: str) -> None:
    process_app.stuck.function(beside)

"""


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    with a_broker_process(tmp_path_factory.mktemp("processes") / "data") as process:
        yield process


@contextlib.contextmanager
def a_script(
    folder: Path, broker: BrokerProcess, last_line: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A script of its own with handlers; killed at the end if it still runs."""
    script = folder / "script.py"
    script.write_text(SCRIPT + last_line)
    environment = os.environ | {"TQ_URL": broker.native, "PYTHONPATH": os.pathsep.join(sys.path)}
    with (folder / "errors").open("wb") as errors:
        running = subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env=environment,
        )
    try:
        yield running
    finally:
        running.kill()
        running.wait()


GUARDED = "if __name__ == '__main__':\n    run_worker(app, settings=settings)\n"


async def test_a_script_runs_its_own_handlers_and_its_children_end_with_it(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    beside = tmp_path / "beside"
    with a_script(tmp_path, broker, GUARDED) as running:
        async with App(broker.native).client as client:
            much = await client.submit_task(Task("say_much", b'{"megabytes": 100}', max_retries=0))
            assert await client.wait_for_result(much) == b"100"
            assert b"said 100 MB" in (tmp_path / "errors").read_bytes()
            payload = json.dumps({"beside": str(beside)}).encode()
            await client.submit_task(Task("stuck", payload, max_retries=0))
            await until(lambda: beside.exists() and bool(beside.read_text()))
        pid = int(beside.read_text())
        assert not is_gone(pid)
        running.kill()  # nobody can tell the child, which holds its interpreter's lock
        await until(lambda: is_gone(pid))


async def test_a_script_that_is_told_to_stop_ends_in_good_order(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    with a_script(tmp_path, broker, GUARDED) as running:
        async with App(broker.native).client as client:
            task_id = await client.submit_task(Task("say_much", b'{"megabytes": 1}'))
            await client.wait_for_result(task_id)
        running.terminate()
        assert await asyncio.to_thread(running.wait, 20) == 0
    assert b"Traceback" not in (tmp_path / "errors").read_bytes()


async def test_a_script_without_a_guard_is_told_so(broker: BrokerProcess, tmp_path: Path) -> None:
    with a_script(tmp_path, broker, "run_worker(app, settings=settings)\n") as running:
        assert await asyncio.to_thread(running.wait, 20) == 1
        said = (tmp_path / "errors").read_text()
    assert "start its worker under `if __name__ == '__main__':`" in said.splitlines()[-1]
