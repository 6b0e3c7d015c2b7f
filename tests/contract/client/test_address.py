"""Where a client that is told no address finds one."""

from pathlib import Path

import pytest

from taskqueue import InvalidRequest
from taskqueue.client.address import BrokerAddress, broker_addresses


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the test; nothing is said in the environment."""
    monkeypatch.delenv("TQ_URL", raising=False)
    monkeypatch.delenv("TQ_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_without_anything_it_is_this_machine() -> None:
    assert broker_addresses() == (BrokerAddress("127.0.0.1", 6379, None),)


def test_the_settings_file_may_name_it(folder: Path) -> None:
    (folder / "tq.toml").write_text('[client]\nurl = "queue:7000"\napi_key = "k"\n[http]\n')
    assert broker_addresses() == (BrokerAddress("queue", 7000, "k"),)
    assert broker_addresses(api_key="other") == (BrokerAddress("queue", 7000, "other"),)


def test_an_argument_and_the_environment_are_stronger_than_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "tq.toml").write_text('[client]\nurl = "queue:7000"\napi_key = "k"\n')
    assert broker_addresses("argument:1") == (BrokerAddress("argument", 1, None),)
    monkeypatch.setenv("TQ_URL", "tq://e@environment:2")
    assert broker_addresses() == (BrokerAddress("environment", 2, "e"),)
    assert broker_addresses("argument:1") == (BrokerAddress("argument", 1, None),)


@pytest.mark.parametrize(
    "text", ["[client]\nurll = 'x'", "client = 3", "[client", "[client]\nurl = 7"]
)
def test_a_settings_file_that_cannot_be_read_is_named(folder: Path, text: str) -> None:
    (folder / "tq.toml").write_text(text)
    with pytest.raises(InvalidRequest, match=r"\[client\] of tq.toml"):
        broker_addresses()


@pytest.mark.parametrize(
    "url", ["host:0", "tq://user:password@host:1", "host:1?a=b", "host:1#part", "redis://host:1"]
)
def test_an_address_with_more_or_less_than_it_may_have_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="host:port or tq://key@host:port"):
        broker_addresses(url)


def test_a_key_may_have_any_characters() -> None:
    assert broker_addresses("tq://a%2Fb%40c@[::1]")[0].key == "a/b@c"
    assert str(broker_addresses("tq://secret@[::1]")[0]) == "[::1]:6379"
