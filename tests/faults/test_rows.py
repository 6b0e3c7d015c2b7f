"""The catalogue is whole, and what it points to exists."""

import ast
from pathlib import Path

import pytest

from tests.faults.rows import HERE, ROWS

ROOT = Path(__file__).parent.parent.parent
DEMANDED = ["B27", *(f"F{n:02}" for n in (*range(7, 13), *range(33, 38), 40, 41))]
BESIDES = ["away", "cancel", "memory"]


def named_in(module: Path) -> set[str]:
    """The ids of a module's tests."""
    names = {
        node.name
        for node in ast.parse(module.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    return {f"{module.relative_to(ROOT)}::{name}" for name in names if name.startswith("test_")}


def test_every_row_is_there() -> None:
    assert sorted(ROWS) == [*DEMANDED, *BESIDES]
    assert all(row.demand and row.tests for row in ROWS.values())


@pytest.mark.parametrize("name", ROWS)
def test_every_test_that_a_row_points_to_exists(name: str) -> None:
    for test in ROWS[name].tests:
        assert test in named_in(ROOT / test.partition("::")[0]), test


def test_every_test_of_this_folder_is_in_a_row() -> None:
    listed = {test for row in ROWS.values() for test in row.tests}
    for module in sorted((ROOT / HERE).glob("test_*.py")):
        if module != Path(__file__):
            assert named_in(module) <= listed
