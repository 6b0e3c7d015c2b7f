"""Settings from all their sources, and the origin of each."""

from pathlib import Path

import pytest

from taskqueue.settings.address import Address, parse_address
from taskqueue.settings.errors import SettingsError
from taskqueue.settings.sources import load_settings


def a_file(folder: Path, text: str) -> Path:
    file = folder / "tq.toml"
    file.write_text(text)
    return file


def test_later_sources_win_and_the_origin_is_known(tmp_path: Path) -> None:
    file = a_file(tmp_path, '[data]\nfolder = "file"\n[broker]\nmax_pending = 5\nlease_seconds = 9')
    environment = {"TQ_DATA": "environment", "TQ_BROKER_MAX_PENDING": "6", "HOME": "/"}
    loaded = load_settings({"data.folder": "flag", "http.listen": None}, environment, file)
    assert loaded.settings.data.folder == "flag"
    assert loaded.settings.broker.max_pending == 6
    assert loaded.settings.broker.lease_seconds == 9
    origins = {path: value.origin for path, value in loaded.values.items()}
    assert origins["data.folder"] == "flag"
    assert origins["broker.max_pending"] == "TQ_BROKER_MAX_PENDING"
    assert origins["broker.lease_seconds"] == str(file)
    assert origins["http.listen"] == "default"


def test_the_clients_section_of_the_file_is_left_to_clients(tmp_path: Path) -> None:
    file = a_file(tmp_path, '[client]\nurl = "127.0.0.1:1"')
    assert load_settings({}, {}, file).settings == load_settings({}, {}).settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[broker]\nmax_pendin = 5", "there is no setting 'broker.max_pendin'; there are broker."),
        ("[nonsense]\nx = 5", "there is no setting 'nonsense.x'"),
        ('[broker]\nmax_pending = "many"', "broker.max_pending = 'many'"),
        ("[broker]\nmax_pending = 0", ">= 1"),
        ("[broker]\nlease_seconds = true", "broker.lease_seconds"),
        ('[http]\nlisten = "localhost"', "must be HOST:PORT"),
        ('[http]\nlisten = "localhost:99999"', "65535"),
        ("listen = 5", "must stand in a section"),
        ("[broker", "not valid TOML"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_with_its_source(
    tmp_path: Path, text: str, said: str
) -> None:
    file = a_file(tmp_path, text)
    with pytest.raises(SettingsError) as refused:
        load_settings({}, {}, file)
    assert said in str(refused.value)
    assert str(file) in str(refused.value)


def test_a_variable_that_cannot_be_used_is_named() -> None:
    with pytest.raises(SettingsError, match=r"TQ_BROKER_MAX_PENDING: broker.max_pending = 'x'"):
        load_settings({}, {"TQ_BROKER_MAX_PENDING": "x"})


def test_a_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot read the settings file"):
        load_settings({}, {}, tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("[::1]:1", Address("::1", 1)),
        (":0", Address("0.0.0.0", 0)),
    ],
)
def test_addresses_are_host_and_port(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize("text", ["", "8080", "host:", "host:-1", "host:٣", "::1:80", "h:65536"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must"):
        parse_address(text)
