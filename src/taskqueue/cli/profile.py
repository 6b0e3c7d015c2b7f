"""`tq profile`: keeps brokers' addresses and keys by name."""

import re
import sys
from typing import Annotated, Any, Final

from cyclopts import Parameter
from msgspec import structs

from taskqueue.cli.completion import profile_names
from taskqueue.cli.options import ApiKey, Url
from taskqueue.cli.output import PLAIN, Form, print_record, print_rows
from taskqueue.cli.profiles import Profile, profiles_file, read_profiles, write_profiles
from taskqueue.client.address import broker_addresses
from taskqueue.settings.errors import SettingsError

COLUMNS: Final = ("profile", "url", "api_key", "current")
HIDDEN: Final = "(hidden)"

Name = Annotated[str, Parameter(completer=profile_names)]


def list_all(*, form: Form = PLAIN) -> None:
    """List the profiles, without their keys."""
    kept = read_profiles()
    rows = [
        _row(name, profile, is_current=name == kept.current)
        for name, profile in sorted(kept.profiles.items())
    ]
    print_rows(rows, form, COLUMNS)


def show(name: Name | None = None, *, form: Form = PLAIN) -> None:
    """Show a profile, by default the one in use, without its key."""
    kept = read_profiles()
    wanted = name or kept.current
    if wanted is None:
        raise SettingsError("no profile is in use; choose one: tq profile use NAME")
    print_record(_row(wanted, kept.named(wanted), is_current=wanted == kept.current), form)


def use(name: Name) -> None:
    """Let every command use a profile, unless flags or the environment say otherwise."""
    kept = read_profiles()
    kept.named(name)
    write_profiles(structs.replace(kept, current=name))
    _tell(f"{name} is in use from now on")


def set_values(name: Name, *, url: Url = None, api_key: ApiKey = None) -> None:
    """Make a profile or change it. The first one is in use at once.

    Its key, once stored, is not shown again.
    """
    if url is None and api_key is None:
        raise SettingsError("say what to keep: --url HOST:PORT, --api-key KEY or both")
    if url is not None:
        broker_addresses(url, api_key)  # a wrong address is told now, not when it is used
    kept = read_profiles()
    before = kept.profiles.get(name, Profile())
    if url is not None and url != before.url and api_key is None and before.api_key is not None:
        _tell(f"the key of {name} is kept, and goes to the new address from now on")
    changed = Profile(url or before.url, api_key or before.api_key)
    kept = kept.with_profile(name, changed)
    is_first = len(kept.profiles) == 1
    write_profiles(structs.replace(kept, current=name) if is_first else kept)
    in_use = ", and is in use" if is_first else f"; to use it: tq profile use {name}"
    _tell(f"{name} is kept in {profiles_file()}{in_use}")


def delete(name: Name) -> None:
    """Forget a profile."""
    write_profiles(read_profiles().without(name))
    _tell(f"{name} is forgotten")


def without_key(url: str | None) -> str | None:
    """An address as it may be shown."""
    if url is None:
        return None
    scheme, separator, rest = url.rpartition("://")
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    key, _, hosts = authority.rpartition("@")
    return f"{scheme}{separator}{HIDDEN}@{rest[len(key) + 1 :]}" if key and hosts else url


def _row(name: str, profile: Profile, *, is_current: bool) -> dict[str, Any]:
    return {
        "profile": name,
        "url": without_key(profile.url),
        "api_key": HIDDEN if profile.api_key else None,
        "current": is_current,
    }


def _tell(line: str) -> None:
    print(line, file=sys.stderr)
