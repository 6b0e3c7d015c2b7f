"""Profiles: kept for their owner alone, and where a command's broker and key come from."""

import json
import stat
from pathlib import Path

import pytest

from taskqueue.cli.profiles import choose, profiles_file
from tests.cli.running import Here, process
from tests.support.broker import BrokerProcess

SECRET = "tq_secretsecret"


def origins(here: Here, *words: str) -> dict[str, list[str]]:
    rows = here("config", "show", "--origin", *words).rows
    return {row[0]: row[1:] for row in rows if row[0].startswith("client.")}


def test_a_profile_is_used_until_another_one_is(here: Here, broker: BrokerProcess) -> None:
    assert here("profile", "list", "-o", "json").out == "[]\n"
    here("profile", "set", "local", "--url", broker.native)
    here("profile", "set", "far", "--url", "tqs://broker.example:6379")
    assert here("stats").code == 0
    assert here("profile", "list").rows == [
        ["far", "tqs://broker.example:6379", "-", "False"],
        ["local", broker.native, "-", "True"],
    ]
    here("profile", "use", "far")
    assert ["profile", "far"] in here("profile", "show").rows
    here("profile", "delete", "far")
    assert "no profile is in use" in here("profile", "show", code=2).err
    assert here("stats", "--profile", "local").code == 0


def test_keys_are_for_their_owner_alone_and_never_shown(here: Here) -> None:
    here("profile", "set", "prod", "--url", f"tq://{SECRET}@broker.example", "--api-key", SECRET)
    assert stat.S_IMODE(profiles_file().stat().st_mode) == 0o600
    assert SECRET in profiles_file().read_text()
    for form in ("table", "wide", "json", "yaml"):
        for words in (("profile", "list"), ("profile", "show"), ("config", "show", "--origin")):
            ran = here(*words, "-o", form)
            assert SECRET not in ran.out + ran.err
            assert "(hidden)" in ran.out
    profiles_file().chmod(0o644)
    assert "chmod 600" in here("profile", "list").err


@pytest.mark.parametrize(
    ("words", "env", "url", "key"),
    [
        ((), {}, ("tq.example:1", "profile kept"), "profile kept"),
        ((), {"TQ_URL": "a:2"}, ("a:2", "TQ_URL"), "default"),
        ((), {"TQ_URL": "a:2", "TQ_API_KEY": "x"}, ("a:2", "TQ_URL"), "TQ_API_KEY"),
        ((), {"TQ_PROFILE": "other"}, ("other.example:1", "profile other"), "default"),
        (
            ("--profile", "kept"),
            {"TQ_URL": "a:2"},
            ("tq.example:1", "profile kept"),
            "profile kept",
        ),
        (("--url", "b:3"), {"TQ_URL": "a:2"}, ("b:3", "--url"), "default"),
        (("--url", "b:3", "--profile", "kept"), {}, ("b:3", "--url"), "default"),
        (("--api-key", "x"), {}, ("tq.example:1", "profile kept"), "--api-key"),
    ],
)
def test_flags_come_before_the_environment_and_that_before_the_profile(
    here: Here,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    env: dict[str, str],
    url: tuple[str, str],
    key: str,
) -> None:
    here("profile", "set", "kept", "--url", "tq.example:1", "--api-key", SECRET)
    here("profile", "set", "other", "--url", "other.example:1")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    found = origins(here, *words)
    assert tuple(found["client.url"]) == url
    assert found["client.api_key"] == ["-" if key == "default" else "(hidden)", key]


def test_a_profiles_key_goes_to_its_own_broker_only(here: Here) -> None:
    here("profile", "set", "kept", "--url", "tq.example:1", "--api-key", SECRET)
    assert choose(None, None, None).api_key == SECRET
    assert choose("elsewhere.example:1", None, None).api_key is None
    here("profile", "set", "key-only", "--api-key", SECRET)
    assert choose("elsewhere.example:1", None, "key-only").api_key == SECRET


def test_without_a_profile_the_settings_file_says_it(here: Here) -> None:
    assert origins(here)["client.url"] == ["127.0.0.1:6379", "default"]
    Path("tq.toml").write_text('[client]\nurl = "c:4"\napi_key = "tq_x"\n')
    assert origins(here) == {
        "client.profile": ["-", "default"],
        "client.url": ["c:4", "tq.toml"],
        "client.api_key": ["(hidden)", "tq.toml"],
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("profile", "use", "nobody"), "tq profile set nobody"),
        (("profile", "delete", "nobody"), "there is no profile 'nobody'"),
        (("stats", "--profile", "nobody"), "there is no profile 'nobody'"),
        (("profile", "set", "two words", "--url", "a:1"), "'two words'"),
        (("profile", "set", "x"), "--url"),
        (("profile", "set", "x", "--url", "a:b:c"), "not a broker's address"),
        (("profile", "set", "x", "--api-key", "a\nb"), "printed"),
    ],
)
def test_what_is_wrong_with_a_profile_is_said(
    here: Here, words: tuple[str, ...], said: str
) -> None:
    assert said in here(*words, code=2).err
    assert not profiles_file().exists()


@pytest.mark.parametrize("text", ["current = 3", "[profiles.x]\nadress = 'a'", "not toml"])
def test_a_damaged_file_of_profiles_is_named(here: Here, text: str) -> None:
    profiles_file().parent.mkdir(parents=True)
    profiles_file().write_text(text)
    assert str(profiles_file()) in here("stats", code=2).err


def test_a_worker_uses_the_profile_too(here: Here, broker: BrokerProcess) -> None:
    ran = process("worker", "taskqueue.cli.samples:app", "--profile", "nobody")
    assert ran.code == 2
    assert "there is no profile 'nobody'" in ran.err


def test_each_wrong_line_of_a_settings_file_is_named(here: Here) -> None:
    Path("tq.toml").write_text(
        "# mine\n[http]\nlisten = 'nowhere'\n\n[broker]\nlease_seconds = 20.0\nlase = 1\n"
        "[client]\nurl = 'a:b:c'\n"
    )
    ran = here("config", "validate", "-o", "json", code=2)
    rows = json.loads(ran.out)
    assert [(row["line"], row["setting"]) for row in rows] == [
        (3, "http.listen"),
        (7, "broker.lase"),
        (9, "client.url"),
    ]
    assert "broker.lease_seconds" in rows[1]["problem"]
    assert "tq.toml: 3 of its lines" in ran.err


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("[broker]\nlease_seconds = 20.0\n", 0, "right"),
        ("[broker\n", 2, "not valid TOML"),
        (None, 2, "cannot read"),
    ],
)
def test_a_settings_file_is_right_or_not(
    here: Here, tmp_path: Path, text: str | None, code: int, said: str
) -> None:
    file = tmp_path / "other.toml"
    if text is not None:
        file.write_text(text)
    ran = here("config", "validate", "--config", str(file), code=code)
    assert said in ran.out + ran.err
