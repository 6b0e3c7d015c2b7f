"""Addresses of brokers with TLS, and where the names of the files come from."""

from pathlib import Path

import pytest

from taskqueue import InvalidRequest
from taskqueue.client.address import BrokerAddress, TlsFiles, broker_addresses


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the test; nothing is said in the environment."""
    for name in ("TQ_URL", "TQ_API_KEY", "TQ_CA_FILE", "TQ_CERT_FILE", "TQ_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_tls_is_used_where_the_address_says_so() -> None:
    assert broker_addresses("tqs://queue")[0].tls == TlsFiles()
    assert broker_addresses("tq://queue")[0].tls is None
    assert broker_addresses("queue:7000")[0].tls is None
    assert broker_addresses("tqs://k@[::1]:7000") == (BrokerAddress("::1", 7000, "k", TlsFiles()),)


def test_the_address_may_name_the_files() -> None:
    address = broker_addresses("tqs://k@queue:7000?ca=/a/ca%20b.pem&cert=c.pem&key=k.pem")[0]
    files = TlsFiles("/a/ca b.pem", "c.pem", "k.pem")
    assert address == BrokerAddress("queue", 7000, "k", files)
    assert str(address) == "queue:7000"


def test_the_environment_may_name_them_and_the_address_is_stronger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TQ_CA_FILE", "env-ca")
    monkeypatch.setenv("TQ_CERT_FILE", "env-cert")
    monkeypatch.setenv("TQ_KEY_FILE", "env-key")
    assert broker_addresses("tqs://queue")[0].tls == TlsFiles("env-ca", "env-cert", "env-key")
    assert broker_addresses("tqs://queue?ca=x")[0].tls == TlsFiles("x", "env-cert", "env-key")
    assert broker_addresses("tq://queue")[0].tls is None


def test_the_settings_file_may_name_them_and_the_environment_is_stronger(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tq.toml").write_text(
        '[client]\nurl = "tqs://queue"\nca_file = "f-ca"\ncert_file = "f-cert"\nkey_file = "f-key"'
    )
    assert broker_addresses()[0].tls == TlsFiles("f-ca", "f-cert", "f-key")
    monkeypatch.setenv("TQ_CERT_FILE", "env-cert")
    assert broker_addresses()[0].tls == TlsFiles("f-ca", "env-cert", "f-key")


def test_a_certificate_may_have_its_key_in_the_same_file() -> None:
    assert broker_addresses("tqs://queue?cert=both.pem")[0].tls == TlsFiles(None, "both.pem", None)


def test_a_key_without_a_certificate_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="a key for TLS and no certificate"):
        broker_addresses("tqs://queue?key=k.pem")


@pytest.mark.parametrize(
    "url", ["tq://queue?ca=x", "queue:1?ca=x", "tqs://queue?ca=x&verify=no", "tqs://queue?ca_file"]
)
def test_an_option_that_does_not_exist_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a broker's address") as raised:
        broker_addresses(url)
    assert "tqs://key@host:port?ca=FILE&cert=FILE&key=FILE" in raised.value.message


def test_a_refused_address_does_not_show_its_key() -> None:
    with pytest.raises(InvalidRequest) as raised:
        broker_addresses("tqs://secret@queue?verify=no")
    assert "secret" not in raised.value.message
