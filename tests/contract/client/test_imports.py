"""What `pip install taskqueue` brings: an import that is light and needs no server."""

import subprocess
import sys

import pytest

import taskqueue

SERVER_ONLY = {
    *("apsw", "cyclopts", "httptools", "prometheus_client", "rich", "starlette", "structlog"),
    *("uvicorn", "uvloop", "watchfiles"),
}
PROGRAM = """
import sys
import taskqueue
{more}
print(*sorted({{name.partition(".")[0] for name in sys.modules}}))
"""


def modules_after(more: str) -> set[str]:
    """Top-level modules that a program has loaded at its end."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(more=more)],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


def test_the_bare_import_loads_next_to_nothing() -> None:
    assert not modules_after("") & (SERVER_ONLY | {"asyncio", "msgspec", "hiredis", "uuid_utils"})


def test_the_whole_sdk_loads_nothing_of_the_server() -> None:
    every_name = f"from taskqueue import {', '.join(taskqueue.__all__)}"
    loaded = modules_after(f"{every_name}\nimport taskqueue.worker.entry")
    assert {"msgspec", "hiredis"} <= loaded
    assert not loaded & SERVER_ONLY


def test_every_public_name_can_be_imported_and_is_listed() -> None:
    assert sorted(taskqueue.__all__) == taskqueue.__all__
    assert set(taskqueue.__all__) <= set(dir(taskqueue))
    for name in taskqueue.__all__:
        assert getattr(taskqueue, name).__name__ == name


def test_a_name_that_is_none_is_refused_as_by_any_module() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Tsk'"):
        taskqueue.Tsk  # type: ignore[attr-defined]  # noqa: B018
