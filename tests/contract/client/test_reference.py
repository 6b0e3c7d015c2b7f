"""The snippets of the SDK's reference, run as they stand, with a worker beside them."""

import asyncio
import importlib
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import taskqueue
from taskqueue import AsyncClient, Task
from taskqueue.worker.runner import Worker
from taskqueue.worker.settings import WorkerSettings
from tests.support.door import NativeDoor

REFERENCE = (Path(__file__).parents[3] / "docs" / "reference" / "python.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", REFERENCE, re.MULTILINE | re.DOTALL)
[TASKS] = [text for text in SNIPPETS if text.startswith("# tasks.py\n")]
PROGRAMS = [text for text in SNIPPETS if text != TASKS]


@pytest.fixture
async def folder(
    door: NativeDoor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Path]:
    """Where the reference's tasks.py is; a worker runs it, and one for what it only names."""
    (tmp_path / "tasks.py").write_text(TASKS.replace("127.0.0.1:6379", door.url))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tasks", raising=False)
    app = importlib.import_module("tasks").app
    app.raw("send_email")(lambda payload: b"sent")
    app.raw("resize")(lambda payload: payload)
    worker = Worker(app, door.addresses, WorkerSettings())
    working = asyncio.create_task(worker.run())
    yield tmp_path
    worker.stop()
    worker.stop()
    await working
    await app.close()
    monkeypatch.delitem(sys.modules, "tasks", raising=False)


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
async def test_a_snippet_prints_what_it_says(folder: Path, door: NativeDoor, number: int) -> None:
    program = PROGRAMS[number]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program.replace("127.0.0.1:6379", door.url)),
        cwd=folder,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")
    # "…" stands for what differs each time; "as Python prints it" describes.
    said = re.findall(r"print\(.*\)  # (?!as )(?:…  )?(.+)$", program, re.MULTILINE)
    for words in said:
        assert words in printed.decode()


def test_every_public_name_is_in_the_reference() -> None:
    errors = (Path(__file__).parents[3] / "docs" / "reference" / "errors.md").read_text()
    for name in taskqueue.__all__:
        assert f"`{name}" in REFERENCE + errors or f"{name}(" in REFERENCE, name


@pytest.mark.parametrize("kind", [AsyncClient, taskqueue.SyncClient, Task])
def test_every_public_method_is_in_the_reference(kind: type) -> None:
    for name in vars(kind):
        if not name.startswith("_") and callable(getattr(kind, name)) and name != "command":
            assert f"`{name}" in REFERENCE or f"{name}(" in REFERENCE, name


def test_every_status_is_in_the_reference() -> None:
    [sentence] = re.findall(r"^`status` is a `Status`.*?\n\n", REFERENCE, re.MULTILINE | re.DOTALL)
    assert set(re.findall("`([a-z_]+)`", sentence)) == {"status", *taskqueue.Status}


def test_both_clients_have_the_same_methods() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(AsyncClient) == public(taskqueue.SyncClient)
