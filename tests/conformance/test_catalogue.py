"""Nothing that the reference demands goes without a test."""

import importlib
from pathlib import Path

from tests.conformance.catalogue import DEMANDS, claims


def test_every_demand_is_claimed_by_a_test_and_every_test_claims_one() -> None:
    tests = set()
    for path in Path(__file__).parent.glob("test_*_lines.py"):
        module = importlib.import_module(f"tests.conformance.{path.stem}")
        tests |= {f"{module.__name__}.{name}" for name in vars(module) if name.startswith("test_")}
    assert sorted(DEMANDS.keys() - claims.keys()) == []
    assert set().union(*claims.values()) == tests
