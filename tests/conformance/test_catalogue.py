"""Nothing that the reference demands goes without a test."""

from tests.conformance import test_client_lines, test_grpc_lines, test_rest_lines
from tests.conformance.catalogue import DEMANDS, proven

SUITE = (test_client_lines, test_grpc_lines, test_rest_lines)


def test_every_demand_is_claimed_by_a_test() -> None:
    assert all(module.__doc__ for module in SUITE)
    assert sorted(DEMANDS.keys() - proven) == []
