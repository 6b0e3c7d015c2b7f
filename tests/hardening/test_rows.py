"""The catalogue is whole, and what it points to exists."""

import ast
from functools import cache
from pathlib import Path

import pytest

from tests.hardening.rows import ELSEWHERE, HERE, ROWS

ROOT = Path(__file__).parent.parent.parent

DEMANDED = [f"B{number:02}" for number in range(1, 31)] + ["F15"] + [f"F{n}" for n in range(34, 40)]


@cache
def functions_of(module: Path) -> dict[str, str]:
    """The tests of a module with what their docstrings say."""
    tree = ast.parse(module.read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.name: ast.get_docstring(node) or ""
        for node in tree.body
        if isinstance(node, functions)
    }


def test_every_row_is_there() -> None:
    assert sorted({**ROWS, **ELSEWHERE}) == DEMANDED
    assert ROWS.keys().isdisjoint(ELSEWHERE)
    assert all(row.demand and row.tests for row in ROWS.values())


@pytest.mark.parametrize("name", ROWS)
def test_every_test_that_a_row_points_to_exists(name: str) -> None:
    for test in ROWS[name].tests:
        module, _, function = test.partition("::")
        assert function in functions_of(ROOT / module), test


def test_every_test_of_this_folder_names_its_rows() -> None:
    for module in sorted((ROOT / HERE).glob("test_*.py")):
        if module == Path(__file__):
            continue
        for function, text in functions_of(module).items():
            if not function.startswith("test_"):
                continue
            test = f"{HERE}{module.name}::{function}"
            named = {name for name in ROWS if name in text}
            listed = {name for name, row in ROWS.items() if test in row.tests}
            assert named, f"{test} names no row"
            assert named == listed, test
