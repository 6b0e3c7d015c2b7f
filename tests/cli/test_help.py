"""Finding one's way: completion in a real shell, what errors mean, how fast it starts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from taskqueue import SyncClient, Task
from taskqueue.cli.errors import EXPLAINED
from taskqueue.cli.main import EXIT_CODES
from taskqueue.client import errors as client_errors
from taskqueue.core.errors import known_errors
from tests.cli.running import TQ, Here, process
from tests.support.broker import BrokerProcess
from tests.support.ports import free_port

ERRORS_PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "errors.md"


@pytest.fixture(scope="session")
def bash_script() -> str:
    """What bash is to be told."""
    ran = process("completion", "bash")
    assert ran.code == 0
    return ran.out


def offered(script: str, url: str, line: str, folder: Path) -> list[str]:
    """What a real bash offers at the end of a line."""
    (folder / "tq.bash").write_text(script)
    (folder / "tq").write_text(f'#!/bin/sh\nexec {" ".join(TQ)} "$@"\n')
    (folder / "tq").chmod(0o755)
    (folder / "try.bash").write_text(
        "source ./tq.bash\n"
        'read -r -a COMP_WORDS <<< "$1"\n'
        '[[ "$1" == *" " ]] && COMP_WORDS+=("")\n'
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE=$1 COMP_POINT=${#1}\n"
        "$(complete -p tq | sed 's/.*-F \\([^ ]*\\).*/\\1/') tq\n"
        'printf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    ran = subprocess.run(
        ["bash", "try.bash", line],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={"PATH": f"{folder}:/usr/bin:/bin", "TQ_URL": url, "HOME": str(folder)},
    )
    assert ran.stderr == ""
    return ran.stdout.split()


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("tq sub", {"submit"}),
        ("tq dlq ", {"list", "show", "retry", "delete"}),
        ("tq list --wa", {"--watch"}),
        ("tq list --status d", {"dead_letter"}),
        ("tq list -o ", {"table", "wide", "json", "jsonl", "yaml", "id"}),
        ("tq errors TASK_", {"TASK_NOT_FOUND", "TASK_FAILED"}),
        ("tq submit x --priority cri", {"critical"}),
        ("tq submit completed.ma", {"completed.mail"}),
        ("tq list --type completed.ma", {"completed.mail"}),
    ],
)
def test_bash_completes(
    bash_script: str,
    broker: BrokerProcess,
    client: SyncClient,
    tmp_path: Path,
    line: str,
    some: set[str],
) -> None:
    if "completed" in line:
        client.submit_task(Task("completed.mail", b"{}"))
    assert set(offered(bash_script, broker.native, line, tmp_path)) == some


def test_bash_completes_recent_ids(
    bash_script: str, broker: BrokerProcess, client: SyncClient, tmp_path: Path
) -> None:
    task_id = client.submit_task(Task("completed.id", b"{}"))
    line = f"tq status {task_id[:30]}"
    assert task_id in offered(bash_script, broker.native, line, tmp_path)


def test_without_a_broker_nothing_is_offered(bash_script: str, tmp_path: Path) -> None:
    url = f"127.0.0.1:{free_port()}"
    assert offered(bash_script, url, "tq status ", tmp_path) == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script_that_asks_back(here: Here, shell: str) -> None:
    script = here("completion", shell).out
    assert "queue-depth" in script
    assert "__complete" in script


def test_profiles_are_offered(here: Here) -> None:
    here("profile", "set", "offered", "--url", "a:1")
    assert "offered" in here("__complete", "profile", "use", "").out.split()


def test_errors_are_explained_as_the_reference_does(here: Here) -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| (\d+) \| `(\w+)` \| (.+) \| (.+) \|$", ERRORS_PAGE.read_text(), re.M
    )
    assert len(rows) > 15
    explained = [
        (entry.code, str(entry.http), entry.error, entry.meaning, entry.advice)
        for entry in EXPLAINED
    ]
    assert [row for row in rows if row not in explained] == []


def test_every_code_there_is_can_be_explained(here: Here) -> None:
    codes = {error.code for error in known_errors()}
    codes |= {client_errors.TaskFailed.code, client_errors.WaitTimeout.code}
    assert codes <= {entry.code for entry in EXPLAINED}
    assert set(EXIT_CODES) <= {entry.code for entry in EXPLAINED}
    for code in codes:
        assert here("errors", code.lower()).rows[0] == ["code", code]


def test_a_code_that_is_none_is_refused(here: Here) -> None:
    assert "tq errors" in here("errors", "NONSENSE", code=2).err


def test_an_error_says_what_to_type_next(tq: Here) -> None:
    said = tq("status", "550e8400-e29b-41d4-a716-446655440000", code=5).err
    assert "tq list" in said
    assert len(said.splitlines()) == 1


def test_a_traceback_is_shown_only_to_those_who_ask(broker: BrokerProcess) -> None:
    words = ("status", "x", "--url", broker.native)
    assert "Traceback" not in process(*words).err
    assert "Traceback" in process(*words, "--debug").err


def test_the_broker_says_where_its_page_is(tq: Here, broker: BrokerProcess) -> None:
    assert tq("open", "--print").out == f"http://{broker.http}/docs\n"


def test_the_version_is_told_without_any_library() -> None:
    script = (
        "import sys\n"
        "sys.argv = ['tq', '--version']\n"
        "from taskqueue.cli.main import main\n"
        "main()\n"
        "import sysconfig\n"
        "places = (sysconfig.get_path('purelib'), sysconfig.get_path('platlib'))\n"
        "found = [name for name, module in sys.modules.items()\n"
        "    if (getattr(module, '__file__', None) or '').startswith(places)\n"
        "    and not name.startswith('_')]\n"  # how this very package is found
        "print(found)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    version, found = ran.stdout.splitlines()
    assert version.count(".") == 2
    assert found == "[]"
