"""Fails where requirements.lock does not cover what pyproject.toml asks for."""

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parent.parent
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", re.MULTILINE)


def main() -> int:
    """Compare the two files; returns the exit code."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    lock = (ROOT / "requirements.lock").read_text()
    pinned = {canonicalize_name(name): Version(version) for name, version in PIN.findall(lock)}
    asked = [
        *project["project"]["dependencies"],
        *(one for extra in project["project"]["optional-dependencies"].values() for one in extra),
        *project["dependency-groups"]["dev"],
    ]
    wrong = []
    for requirement in map(Requirement, asked):
        version = pinned.get(canonicalize_name(requirement.name))
        if version is None or version not in requirement.specifier:
            wrong.append(f"{requirement}: the lock has {version or 'nothing'}")
    if "://" in lock:
        wrong.append("the lock names a server; leave that to whoever installs from it")
    for line in wrong:
        print(line, file=sys.stderr)
    if wrong:
        print("mend it with: make lock", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
