"""`tq doctor`: what it finds of a sound broker, and of each thing that may be amiss."""

import socket
from pathlib import Path

import pytest

from taskqueue.cli.doctor_web import skew
from tests.cli_ops.conftest import Ran, Tq
from tests.support.broker import BrokerProcess, a_broker_process
from tests.support.certificates import Authority
from tests.support.ports import free_port

EVERY_CHECK = {
    *("address", "name", "connect", "tls", "key", "permissions", "health", "leader", "versions"),
    *("storage", "disk", "rest", "clock", "grpc", "open files", "handlers", "lease"),
}


class TlsBroker(BrokerProcess):
    """A broker whose health is asked for by what its port takes: the REST door has TLS."""

    def health(self) -> dict[str, object]:
        host, _, port = self.http.rpartition(":")
        socket.create_connection((host, int(port)), timeout=5).close()
        return {}


def verdicts(ran: Ran) -> dict[str, str]:
    """The verdict of each check, without the address that it names."""
    return {found["check"].split(" 1")[0]: found["verdict"] for found in ran.json}


def test_a_sound_broker_passes_every_check(tq: Tq, broker: BrokerProcess) -> None:
    ran = tq("doctor", "--data", str(broker.folder), "--grpc", broker.grpc, "-o", "json")
    found = verdicts(ran)
    assert found.keys() == EVERY_CHECK
    assert {check for check, verdict in found.items() if verdict != "ok"} <= {
        *("disk", "open files", "handlers"),  # of this machine, and of what other tests left
    }


def test_a_type_that_nobody_handles_is_named(tq: Tq) -> None:
    tq("submit", "nobody-does-this")
    lines = tq("doctor").out.splitlines()
    (line,) = [line for line in lines if "\thandlers\t" in line]
    assert line.startswith("warn")
    assert "nobody-does-this (1)" in line
    assert "tq worker module:app" in line


def test_without_a_broker_it_says_how_to_start_one(tmp_path: Path) -> None:
    ran = Tq(f"127.0.0.1:{free_port()}", tmp_path)("doctor", code=7)
    assert "fail\tconnect" in ran.out
    assert "tq serve" in ran.out


def test_one_of_two_brokers_is_missed_and_not_needed(broker: BrokerProcess, tmp_path: Path) -> None:
    dead = f"127.0.0.1:{free_port()}"
    ran = Tq(f"{dead},{broker.native}", tmp_path)("doctor", "-o", "json")
    by_check = {found["check"]: found["verdict"] for found in ran.json}
    assert by_check[f"connect {dead}"] == "warn"
    assert by_check[f"connect {broker.native}"] == "ok"


def test_the_port_of_another_door_is_recognised(broker: BrokerProcess, tmp_path: Path) -> None:
    ran = Tq(broker.http, tmp_path)("doctor", code=1)
    assert "fail\tkey" in ran.out
    assert "the native door's is meant" in ran.out


def test_a_key_that_is_missing_or_wrong_is_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "0123456789abcdef" * 2
    monkeypatch.setenv("TQ_BOOTSTRAP_KEY", key)
    with a_broker_process(tmp_path / "data", "--require-key") as broker:
        tq = Tq(broker.native, tmp_path)
        assert "--api-key" in tq("doctor", code=1).out
        assert "mistyped" in tq("doctor", "--api-key", "f" * 32, code=1).out
        found = verdicts(tq("doctor", "--api-key", key, "-o", "json"))
        assert (found["key"], found["permissions"], found["rest"]) == ("ok", "ok", "ok")


def test_tls_is_looked_into(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    files = authority.issue("127.0.0.1")
    flags = ("--tls-cert", files.cert, "--tls-key", files.key)
    broker = TlsBroker(tmp_path / "data", *flags)
    broker.start()
    try:
        sound = Tq(f"tqs://{broker.native}?ca={authority.file}", tmp_path)
        found = {one["check"]: one for one in sound("doctor", "-o", "json").json}
        assert "TLSv1.3" in found[f"tls {broker.native}"]["detail"]
        assert found[f"rest {broker.http}"]["verdict"] == "ok"
        assert "tqs://" in Tq(broker.native, tmp_path)("doctor", code=1).out
        distrusted = Tq(f"tqs://{broker.native}", tmp_path)("doctor", code=1)
        assert "cannot be trusted" in distrusted.out
    finally:
        broker.stop()


@pytest.mark.parametrize(
    ("told", "verdict"), [(100.0, "ok"), (101.4, "ok"), (102.0, "warn"), (98.0, "warn")]
)
def test_clocks_may_differ_by_a_second_and_the_uncertainty(told: float, verdict: str) -> None:
    finding = skew(told, sent_at=99.5, received_at=100.5)
    assert finding.verdict == verdict
    assert "round trip 1000 ms" in finding.detail
