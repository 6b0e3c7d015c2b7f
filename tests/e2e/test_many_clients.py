"""More clients than usual at the native door of a broker as users start it."""

import re
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.support.broker import BrokerProcess, a_broker_process

PATIENCE = 20.0
CLAIM = b"TQ.CLAIM w1 BLOCK 3600000 TYPES work\r\n"


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BrokerProcess]:
    with a_broker_process(tmp_path / "data") as process:
        yield process


def connect(broker: BrokerProcess) -> socket.socket:
    """A client of the native door."""
    host, _, port = broker.native.rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE)


def ask(client: socket.socket, command: bytes) -> bytes:
    """One short answer; nothing if the broker has hung up."""
    with suppress(ConnectionError):
        client.sendall(command)
        return client.recv(1_000)
    return b""


def test_claims_that_wait_are_answered_and_the_broker_ends_in_good_order(
    broker: BrokerProcess,
) -> None:
    with ExitStack() as clients:
        claimers = [clients.enter_context(connect(broker)) for _ in range(500)]
        for client in claimers:
            client.sendall(b"PING\r\n" + CLAIM)
        assert [client.recv(7) for client in claimers] == [b"+PONG\r\n"] * 500
        assert broker.stop() == 0
        assert [client.recv(100) for client in claimers] == [b"*0\r\n"] * 500
        assert [client.recv(100) for client in claimers] == [b""] * 500


def test_a_broker_out_of_file_descriptors_serves_who_is_there_and_recovers(
    broker: BrokerProcess,
) -> None:
    with connect(broker) as first:
        assert ask(first, b"PING\r\n") == b"+PONG\r\n"
        resource.prlimit(broker.pid, resource.RLIMIT_NOFILE, (64, 64))
        with ExitStack() as clients:
            crowd = [clients.enter_context(connect(broker)) for _ in range(100)]
            for client in crowd:
                client.settimeout(0.1)
            answers = []
            for client in crowd:
                with suppress(TimeoutError):
                    answers.append(ask(client, b"PING\r\n"))
            assert 0 < answers.count(b"+PONG\r\n") < 64
            assert re.fullmatch(rb"\$36\r\n\S{36}\r\n", ask(first, b"TQ.SUBMIT work x\r\n"))
        later = b""
        for _ in range(1_000):  # the crowd's connections end one after the other
            with connect(broker) as client:
                later = ask(client, b"PING\r\n")
            if later:
                break
        assert later == b"+PONG\r\n"
