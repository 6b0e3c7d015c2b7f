"""What a user's type checker says of the SDK: nothing about good code, something about bad."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SAMPLES = Path(__file__).parent
MARK = re.compile(r"# error$")

Faults = set[tuple[str, int]]
"""Lines with an error: file name and line number."""


def with_mypy(files: list[str], cache: Path) -> Faults:
    options = ("--strict", "--config-file=", f"--cache-dir={cache}")
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *files],
        cwd=SAMPLES,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = re.findall(r"^(\w+\.py):(\d+): error", done.stdout, re.MULTILINE)
    return {(name, int(line)) for name, line in found}


def with_pyright(files: list[str], cache: Path) -> Faults:
    (cache / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict"}))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable),
            *("--project", str(cache), *(str(SAMPLES / name) for name in files)),
        ],
        cwd=SAMPLES,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == len(files)
    return {
        (Path(fault["file"]).name, fault["range"]["start"]["line"] + 1)
        for fault in report["generalDiagnostics"]
        if fault["severity"] == "error"
    }


@pytest.mark.parametrize("check", [with_mypy, with_pyright])
def test_checkers_find_the_mistakes_and_nothing_else(
    check: Callable[[list[str], Path], Faults], tmp_path: Path
) -> None:
    samples = sorted(SAMPLES.glob("good_*.py")) + sorted(SAMPLES.glob("bad_*.py"))
    marked = {
        (path.name, number)
        for path in samples
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if MARK.search(line)
    }
    assert len(marked) > 10
    assert check([path.name for path in samples], tmp_path) == marked
