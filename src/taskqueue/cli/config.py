"""`tq config`: what settings hold, where they come from, and whether a file of them is right."""

import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import Parameter

from taskqueue.cli.options import HERE, Target
from taskqueue.cli.output import PLAIN, Form, print_rows
from taskqueue.cli.profile import HIDDEN, without_key
from taskqueue.client.address import (
    DEFAULT_ADDRESS,
    SETTINGS_FILE,
    ClientSection,
    broker_addresses,
)
from taskqueue.core.errors import InvalidRequest
from taskqueue.settings.errors import SettingsError
from taskqueue.settings.sources import SECRETS, load_settings
from taskqueue.settings.tree import DEFAULT_FILE

Config = Annotated[Path | None, Parameter(help="settings file, instead of ./tq.toml")]


def show(
    *,
    origin: Annotated[bool, Parameter(help="also where each value comes from")] = False,
    config: Config = None,
    form: Form = PLAIN,
    broker: Target = HERE,
) -> None:
    """Show which broker commands use, and every setting of the broker, with its value."""
    loaded = load_settings({}, os.environ, config)
    rows = _client_rows(broker) + [
        {"setting": path, "value": _shown(path, value.value), "origin": value.origin}
        for path, value in sorted(loaded.values.items())
    ]
    print_rows(rows, form, ("setting", "value", "origin") if origin else ("setting", "value"))


def validate(*, config: Config = None, form: Form = PLAIN) -> None:
    """Check a settings file. Exit code 2: something in it is wrong."""
    path = config or DEFAULT_FILE
    found = problems(path)
    if not found:
        print(f"{path} is right")
        return
    print_rows(found, form, ("line", "setting", "problem"))
    raise SettingsError(
        f"{path}: {len(found)} of its lines cannot be used; the settings there are: tq config show"
    )


def problems(path: Path) -> list[dict[str, Any]]:
    """What is wrong in a settings file, by line. Raises SettingsError if it cannot be read."""
    try:
        text = path.read_text()
        tree = tomllib.loads(text)
    except OSError as error:
        raise SettingsError(
            f"cannot read the settings file {path}: {error.strerror}; name one with --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    lines = text.splitlines()
    found = [
        {"line": _line_of(lines, section, name), "setting": _path(section, name), "problem": told}
        for section, name, value in _entries(tree)
        if (told := _problem(section, name, value)) is not None
    ]
    return sorted(found, key=lambda row: row["line"])


def _problem(section: str, name: str, value: Any) -> str | None:
    if section == "client":
        return _client_problem(name, value)
    if not name:
        return "must stand in a section such as [broker]"
    try:
        # One setting at a time, so that each wrong one is told and not only the first.
        load_settings({_path(section, name): value}, {}, Path(os.devnull))
    except SettingsError as error:
        return str(error).removeprefix("flag: ").removeprefix(f"{_path(section, name)} = ")
    return None


def _client_problem(name: str, value: Any) -> str | None:
    try:
        msgspec.convert({name: value} if name else value, ClientSection)
        if name == "url":
            broker_addresses(value)
    except msgspec.ValidationError as error:
        return str(error).partition(" - at ")[0]
    except InvalidRequest as error:
        return error.message
    return None


def _entries(tree: dict[str, Any]) -> list[tuple[str, str, Any]]:
    found: list[tuple[str, str, Any]] = []
    for section, entries in tree.items():
        if isinstance(entries, dict):
            found += [(section, name, value) for name, value in entries.items()]
        else:
            found.append((section, "", entries))
    return found


def _line_of(lines: list[str], section: str, name: str) -> int | None:
    """The number of the line that sets it, where it stands in the usual form."""
    current = ""
    for number, line in enumerate(lines, start=1):
        header = re.fullmatch(r"\s*\[([^\[\]]+)\]\s*(#.*)?", line)
        if header:
            current = header[1].strip()
        word = line.partition("=")[0].strip().strip("\"'")
        stated = word if not current else f"{current}.{word}"
        if "=" in line and stated == _path(section, name):
            return number
    return None


def _path(section: str, name: str) -> str:
    return f"{section}.{name}" if name else section


def _client_rows(broker: Target) -> list[dict[str, Any]]:
    chosen = broker.chosen()
    # Where nothing else says it, the client itself looks into the settings file.
    stated = _client_section() if chosen.url is None else ClientSection()
    url, url_origin = chosen.url, chosen.url_origin
    key_origin = chosen.api_key_origin
    if url is None:
        url, url_origin = (
            (stated.url, str(SETTINGS_FILE)) if stated.url else (DEFAULT_ADDRESS, "default")
        )
    [first, *_] = broker_addresses(chosen.url, chosen.api_key)
    if first.key is not None and key_origin == "default":
        key_origin = str(SETTINGS_FILE) if stated.api_key == first.key else url_origin
    key = None if first.key is None else HIDDEN
    return [
        {"setting": "client.profile", "value": chosen.profile, "origin": chosen.profile_origin},
        {"setting": "client.url", "value": without_key(url), "origin": url_origin},
        {"setting": "client.api_key", "value": key, "origin": key_origin},
    ]


def _client_section() -> ClientSection:
    try:
        stated = tomllib.loads(SETTINGS_FILE.read_text()).get("client", {})
    except FileNotFoundError:
        return ClientSection()
    return msgspec.convert(stated, ClientSection)


def _shown(path: str, value: object) -> object:
    return HIDDEN if path in SECRETS and value is not None else value
