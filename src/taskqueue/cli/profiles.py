"""Which broker and key a command uses: flags, the environment, the user's profiles."""

import os
import re
import sys
import tomllib
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct, structs

from taskqueue.settings.errors import SettingsError

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Profile(Struct, frozen=True, forbid_unknown_fields=True):
    """A broker's address and the key to show there."""

    url: str | None = None
    api_key: str | None = None


class Profiles(Struct, frozen=True, forbid_unknown_fields=True):
    """All profiles of a user, and the name of the one in use."""

    current: str | None = None
    profiles: dict[str, Profile] = {}

    def named(self, name: str) -> Profile:
        """The profile of this name. Raises SettingsError if there is none."""
        if name not in self.profiles:
            there = ", ".join(sorted(self.profiles)) or "none"
            raise SettingsError(
                f"there is no profile {name!r}, there are: {there}; "
                f"make it: tq profile set {name} --url HOST:PORT"
            )
        return self.profiles[name]

    def with_profile(self, name: str, profile: Profile) -> "Profiles":
        """These and one more, or one of them changed. Raises SettingsError for a wrong name."""
        if not NAME.fullmatch(name):
            raise SettingsError(
                f"{name!r} cannot name a profile; use up to 64 letters, digits, - and _"
            )
        return structs.replace(self, profiles={**self.profiles, name: profile})

    def without(self, name: str) -> "Profiles":
        """These without one of them. Raises SettingsError if there is no such profile."""
        self.named(name)
        left = {other: profile for other, profile in self.profiles.items() if other != name}
        return Profiles(None if self.current == name else self.current, left)


class Chosen(NamedTuple):
    """What a command uses and where it comes from; None where the settings file or default decide.

    `api_key` is None, too, where the client finds the key by itself: in the address or TQ_API_KEY.
    """

    url: str | None
    url_origin: str
    api_key: str | None
    api_key_origin: str
    profile: str | None
    profile_origin: str


def profiles_file() -> Path:
    """Where profiles are kept."""
    folder = os.environ.get("XDG_CONFIG_HOME")
    home = Path(folder) if folder and Path(folder).is_absolute() else Path.home() / ".config"
    return home / "tq" / "config.toml"


def read_profiles() -> Profiles:
    """The user's profiles. Raises SettingsError if their file cannot be read."""
    path = profiles_file()
    try:
        text = path.read_text()
        if "api_key" in text and path.stat().st_mode & 0o077:
            print(f"tq: others can read {path}, which has a key; chmod 600 it", file=sys.stderr)
        return msgspec.convert(tomllib.loads(text), Profiles)
    except (FileNotFoundError, NotADirectoryError):
        return Profiles()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise SettingsError(
            f"{path}: {error}; it may have current = NAME and sections [profiles.NAME] with "
            "url and api_key"
        ) from None


def write_profiles(profiles: Profiles) -> None:
    """Keep profiles, for nobody else to read. Raises SettingsError."""
    path = profiles_file()
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(_as_toml(profiles))
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise SettingsError(f"cannot write {path}: {error.strerror}") from error


def choose(url: str | None, api_key: str | None, profile: str | None) -> Chosen:
    """What to use of the flags, the environment and the profile, in this order.

    A profile that is named by a flag comes before the environment. The key of a profile with an
    address is shown to the broker at that address only. Raises SettingsError.
    """
    kept = read_profiles()
    name, name_origin = _first(
        (profile, "--profile"),
        (os.environ.get("TQ_PROFILE"), "TQ_PROFILE"),
        (kept.current, str(profiles_file())),
    )
    entry = Profile() if name is None else kept.named(name)
    own = f"profile {name}"
    is_asked_for = profile is not None
    found_url, url_origin = _first(
        (url, "--url"),
        (entry.url if is_asked_for else None, own),
        (os.environ.get("TQ_URL"), "TQ_URL"),
        (entry.url, own),
    )
    own_key = entry.api_key if entry.url is None or url_origin == own else None
    key, key_origin = _first(
        (api_key, "--api-key"),
        (own_key if is_asked_for else None, own),
        (os.environ.get("TQ_API_KEY"), "TQ_API_KEY"),
        (own_key, own),
    )
    # A key in the address itself comes before TQ_API_KEY: the client sees to that.
    given = key if key_origin in ("--api-key", own) else None
    return Chosen(found_url, url_origin, given, key_origin, name, name_origin)


def _first(*sources: tuple[str | None, str]) -> tuple[str | None, str]:
    return next(((value, origin) for value, origin in sources if value), (None, "default"))


def _as_toml(profiles: Profiles) -> str:
    lines = [] if profiles.current is None else [f"current = {_text(profiles.current)}", ""]
    for name, profile in sorted(profiles.profiles.items()):
        stated = {"url": profile.url, "api_key": profile.api_key}
        lines += [f"[profiles.{name}]"]
        lines += [f"{key} = {_text(value)}" for key, value in stated.items() if value is not None]
        lines += [""]
    return "\n".join(lines)


def _text(value: str) -> str:
    if not value.isprintable():
        raise SettingsError("an address or key has characters that cannot be printed")
    return msgspec.json.encode(value).decode()  # a JSON text is a TOML text, too
