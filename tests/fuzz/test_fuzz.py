"""A short round of each fuzzer; the long ones are commands of their own (`make fuzz`)."""

import random
from pathlib import Path

from tests.fuzz import grpc, resp, rest
from tests.support.broker import a_broker_process


def test_the_native_parser_takes_anything() -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    assert "no crash" in resp.parse_all(seed, 30_000)


async def test_the_native_door_takes_anything(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with resp.a_server_with_a_key(tmp_path) as broker:
        assert "is well" in await resp.send_all(broker, seed, 1_000)


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    with rest.a_server_with_a_key(tmp_path / "server") as broker:
        number, findings = rest.run_schemathesis(broker, 20, random.randrange(2**32))
    assert findings == ""
    assert number > 500


async def test_the_grpc_door_takes_any_message(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    with a_broker_process(tmp_path / "data", "--rate-limit", "0") as broker:
        assert "is well" in await grpc.call_all(broker, seed, 1_500)
