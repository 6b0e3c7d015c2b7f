"""The house rules that a program can check: sizes, seams, hygiene, and documents that are whole."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

from taskqueue.broker.operations import OPERATIONS
from taskqueue.cli.main import COMMANDS, EXIT_CODES, GROUPS
from taskqueue.client import errors as client_errors
from taskqueue.core.errors import TaskQueueError, known_errors
from taskqueue.settings.sources import SHORT_NAMES, setting_types
from taskqueue.storage.port import Storage

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def test_files_of_the_product_hold_one_idea_each() -> None:
    sizes = {file: len(file.read_text().splitlines()) for file in tracked("src/*.py")}
    assert {str(file): size for file, size in sizes.items() if size > 450} == {}


def test_the_seam_to_the_engines_stays_narrow() -> None:
    methods = [
        name for name, _ in inspect.getmembers(Storage, inspect.isfunction) if name[0] != "_"
    ]
    assert 5 < len(methods) <= 20


def test_the_sdk_brings_no_server_along() -> None:
    script = (
        "import sys, taskqueue; taskqueue.App; taskqueue.SyncClient\n"
        "print([name for name in ('apsw', 'starlette', 'uvicorn', 'structlog', 'cyclopts', 'rich',"
        " 'prometheus_client') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_repository_speaks_of_the_product_alone() -> None:
    registries = r"(?:pypi|pythonhosted|npmjs|debian)\.(?:org|com|net)"
    here = "|".join(rf"(?<![\w}}]){re.escape(str(place))}/" for place in (ROOT, Path.home()))
    places = re.compile(f"{registries}|{here}")
    found = {
        str(file): match[0]
        for file in tracked()
        if file != Path(__file__) and file.suffix not in (".png",)
        if (match := places.search(file.read_text(errors="replace")))
    }
    assert found == {}


def test_every_error_is_documented() -> None:
    text = (DOCS / "reference" / "errors.md").read_text()
    own: list[type[TaskQueueError]] = [client_errors.TaskFailed, client_errors.WaitTimeout]
    for error in [*known_errors()[1:], *own]:
        if error.__module__.startswith("taskqueue."):
            assert f"`{error.code}`" in text, error
            assert f"`{error.__name__}`" in text, error


def test_every_setting_is_documented_with_its_variable_and_default() -> None:
    rows = {
        line.split("|")[1].strip(): line
        for line in (DOCS / "reference" / "settings.md").read_text().splitlines()
        if line.startswith("| `")
    }
    variables = {path: name for name, path in SHORT_NAMES.items()}
    assert set(rows) == {f"`{path}`" for path in setting_types()}
    for path, field in setting_types().items():
        row = rows[f"`{path}`"]
        default = field.default
        shown = str(int(default)) if isinstance(default, float) else str(default).lower()
        assert f"`{variables.get(path, 'TQ_' + path.replace('.', '_').upper())}`" in row
        assert f"| {shown or 'none'} |" in row.replace("`", "").lower()


def test_every_command_and_exit_code_is_documented() -> None:
    text = (DOCS / "reference" / "cli.md").read_text()
    two_words = [f"{group} {word}" for group, (_, words) in GROUPS.items() for word in words]
    for name in [*COMMANDS, *two_words]:
        assert f"`tq {name}" in text, name
    for code in EXIT_CODES.values():
        assert f"| {code} |" in text


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_every_operation_is_documented_at_its_doors(operation: object) -> None:
    native, http = getattr(operation, "native", None), getattr(operation, "http", None)
    if native is not None:
        assert native in (DOCS / "reference" / "native-protocol.md").read_text()
    if http is not None:
        assert http.path in (DOCS / "reference" / "rest.md").read_text()


def test_links_between_documents_lead_somewhere() -> None:
    for file in tracked("*.md"):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text()):
            assert (file.parent / target).exists(), f"{file}: {target}"


def test_what_must_be_executable_is() -> None:
    scripts = ("make_venv.sh", "debian_tools.sh", "generate_proto.sh")
    for name in (".ci/run", *(f"scripts/{script}" for script in scripts)):
        assert (ROOT / name).stat().st_mode & 0o111
