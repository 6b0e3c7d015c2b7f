"""Addresses of several brokers in one text."""

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


def ends(url: str | None = None) -> list[tuple[str, int]]:
    return [(one.host, one.port) for one in broker_addresses(url)]


def test_several_brokers_have_commas_between_them() -> None:
    assert ends("tq://a:6379,b:7000,c") == [("a", 6379), ("b", 7000), ("c", 6379)]
    assert ends("a,b:1") == [("a", 6379), ("b", 1)]
    assert ends("a:1,b:2/") == [("a", 1), ("b", 2)]


def test_addresses_of_ipv6_have_brackets() -> None:
    assert ends("[::1]:1,a,[fe80::2]") == [("::1", 1), ("a", 6379), ("fe80::2", 6379)]
    assert [str(one) for one in broker_addresses("tq://[::1],b")] == ["[::1]:6379", "b:6379"]


def test_one_key_is_for_all_of_them() -> None:
    a, b = broker_addresses("tq://a%2Cb%40c@a,b")
    assert (a.key, b.key) == ("a,b@c", "a,b@c")
    assert [one.key for one in broker_addresses("a,b", api_key="k")] == ["k", "k"]


def test_tls_is_for_all_of_them() -> None:
    files = TlsFiles("x,y@z.pem", "c.pem", "k.pem")
    assert broker_addresses("tqs://k@a,b:1?ca=x,y@z.pem&cert=c.pem&key=k.pem") == (
        BrokerAddress("a", 6379, "k", files),
        BrokerAddress("b", 1, "k", files),
    )


def test_the_environment_and_the_settings_file_may_name_several(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tq.toml").write_text('[client]\nurl = "tq://a,b:1"\napi_key = "k"\n')
    assert ends() == [("a", 6379), ("b", 1)]
    assert {one.key for one in broker_addresses()} == {"k"}
    monkeypatch.setenv("TQ_URL", "c,d:2")
    assert ends() == [("c", 6379), ("d", 2)]


@pytest.mark.parametrize(
    "url",
    [
        ",",
        "a,",
        ",a",
        "a,,b",
        "a:1, b:2",
        "a:1 ,b:2",
        "a:0,b",
        "a,b:65536",
        "a,b:-1",
        "a,b:x",
        "a,::1",
        "a,[::1",
        "a,::1]",
        "a,[::1]x",
        "a,[b]:1",
        "a,tq://b",
        "tq://a,tq://b",
        "tq://a;b",
        "http://a,b",
        "tq://a,b?ca=x",
        "tq://a/x,b",
        "tq://k:p@a,b",
        "tq://k@a,l@b",
        "a,l@b",
    ],
)
def test_what_is_no_list_of_addresses_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="is not a broker's address") as raised:
        broker_addresses(url)
    assert raised.value.field == "url"
    assert "tq://key@a:6379,b:6379" in raised.value.message


@pytest.mark.parametrize(
    "url", ["a,b,a", "a,a:6379", "A:1,a:1", "[::1],[0::1]", "tq://secret@[::1],[::1]:6379"]
)
def test_a_broker_is_named_once(url: str) -> None:
    with pytest.raises(InvalidRequest, match="named twice") as raised:
        broker_addresses(url)
    assert raised.value.field == "url"
    assert "secret" not in raised.value.message


def test_no_more_than_32_are_taken() -> None:
    names = [f"host{number}" for number in range(33)]
    assert len(broker_addresses(",".join(names[:32]))) == 32
    with pytest.raises(InvalidRequest, match="33 brokers are too many; name 32") as raised:
        broker_addresses(",".join(names))
    assert raised.value.field == "url"


@pytest.mark.parametrize(
    "url", ["tq://secret@a,b:0", "tq://secret@a,more-secret@b", "http://secret@a", "tq://secret@"]
)
def test_a_refusal_shows_no_key(url: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        broker_addresses(url)
    assert "secret" not in raised.value.message
