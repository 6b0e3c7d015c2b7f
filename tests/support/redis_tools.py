"""redis-cli and redis-benchmark, as `make test` provides them."""

import os
import shutil
import subprocess
from pathlib import Path

TOOLS = Path(__file__).parents[2] / ".tools/bin"


def redis_tool(name: str) -> str:
    """The path of a tool: the system's own, or Debian's in `.tools`."""
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), str(TOOLS)])
    found = shutil.which(name, path=path)
    assert found is not None, f"{name} is missing; `make .tools/.complete` provides it"
    return found


def redis_cli(port: int, *arguments: str, typed: str = "") -> str:
    """What redis-cli prints, run with `arguments`, `typed` given as its standard input."""
    return _run("redis-cli", "-p", str(port), *arguments, typed=typed)


def redis_benchmark(port: int, *arguments: str) -> str:
    """What redis-benchmark prints."""
    return _run("redis-benchmark", "-p", str(port), *arguments)


def _run(tool: str, *arguments: str, typed: str = "") -> str:
    done = subprocess.run(
        [redis_tool(tool), *arguments], input=typed, text=True, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
