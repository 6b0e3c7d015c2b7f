"""Reads settings from where they can stand: defaults, tq.toml, the environment, flags.

Later sources win over earlier ones. The origin of each value is kept, so that it can be shown.
"""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import inspect, structs

from taskqueue.settings.address import parse_address
from taskqueue.settings.errors import SettingsError
from taskqueue.settings.tree import DEFAULT_FILE, Settings

SHORT_NAMES: Final = {
    "TQ_HTTP": "http.listen",
    "TQ_NATIVE": "native.listen",
    "TQ_GRPC": "grpc.listen",
    "TQ_DATA": "data.folder",
    "TQ_ENGINE": "storage.engine",
    "TQ_RATE_LIMIT": "access.rate_limit",
    "TQ_BOOTSTRAP_KEY": "access.bootstrap_key",
}
"""Environment variables that are shorter than their setting's path."""

SECRETS: Final = frozenset({"access.bootstrap_key", "storage.engine"})
"""Settings whose values are never shown."""

OTHERS_VARIABLES: Final = frozenset({"TQ_URL", "TQ_API_KEY", "TQ_CONFIG", "TQ_LOG"})
"""Variables that begin like settings of the broker, but are for clients and the command line."""


class Value(NamedTuple):
    """A setting's value and where it comes from."""

    value: Any
    origin: str


class Loaded(NamedTuple):
    """The settings, and every value by its path with its origin."""

    settings: Settings
    values: dict[str, Value]


def load_settings(
    flags: Mapping[str, Any], environment: Mapping[str, str], file: Path | None = None
) -> Loaded:
    """The settings from all sources. `flags` has values by path, None where none was given.

    Raises SettingsError.
    """
    values = {path: Value(default, "default") for path, default in _defaults().items()}
    for source in (_from_file(file), _from_environment(environment), _from_flags(flags)):
        for path, value in source.items():
            _require_known(path, value.origin, values)
            values[path] = value
    tree: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        section, _, name = path.partition(".")
        tree.setdefault(section, {})[name] = _checked(path, value)
    return Loaded(msgspec.convert(tree, Settings), values)


def setting_types() -> dict[str, inspect.Field]:
    """Every setting by its path."""
    return {
        f"{section.name}.{entry.name}": entry
        for section in structs.fields(Settings)
        for entry in _struct_fields(section.type)
    }


def _struct_fields(kind: Any) -> tuple[inspect.Field, ...]:
    info = inspect.type_info(kind)
    return info.fields if isinstance(info, inspect.StructType) else ()


def _defaults() -> dict[str, Any]:
    return {path: entry.default for path, entry in setting_types().items()}


def _from_file(file: Path | None) -> dict[str, Value]:
    path = file or DEFAULT_FILE
    if file is None and not path.exists():
        return {}
    try:
        tree = tomllib.loads(path.read_text())
    except OSError as error:
        raise SettingsError(
            f"cannot read the settings file {path}: {error.strerror}; name one with --config"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from error
    found: dict[str, Value] = {}
    for section, entries in tree.items():
        if section == "client":
            continue  # of clients and the command line, which read it themselves
        if not isinstance(entries, dict):
            raise SettingsError(f"{path}: {section} must stand in a section such as [broker]")
        for name, value in entries.items():
            found[f"{section}.{name}"] = Value(value, str(path))
    return found


def _from_environment(environment: Mapping[str, str]) -> dict[str, Value]:
    names = {_variable(path): path for path in setting_types()} | SHORT_NAMES
    found: dict[str, Value] = {}
    for name, text in sorted(environment.items()):
        path = names.get(name)
        if path is not None and text:
            found[path] = Value(text if _takes_text(path) else _parsed(text), name)
    return found


def _from_flags(flags: Mapping[str, Any]) -> dict[str, Value]:
    return {path: Value(value, "flag") for path, value in flags.items() if value is not None}


def _variable(path: str) -> str:
    return "TQ_" + path.replace(".", "_").upper()


def _takes_text(path: str) -> bool:
    kind = setting_types()[path].type
    return isinstance(kind, inspect.StrType | inspect.UnionType)


def _parsed(text: str) -> Any:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _require_known(path: str, origin: str, known: Mapping[str, object]) -> None:
    if path not in known:
        section = path.partition(".")[0]
        names = sorted(name for name in known if name.startswith(f"{section}."))
        advice = ", ".join(names) or ", ".join(sorted({n.partition(".")[0] for n in known}))
        raise SettingsError(f"{origin}: there is no setting {path!r}; there are {advice}")


def _checked(path: str, value: Value) -> Any:
    section, _, name = path.partition(".")
    kind = next(entry.type for entry in structs.fields(Settings) if entry.name == section)
    try:
        msgspec.convert({name: value.value}, kind)
        if name == "listen":
            parse_address(value.value)
    except (msgspec.ValidationError, ValueError) as error:
        problem = str(error).partition(" - at ")[0]
        shown = "(hidden)" if path in SECRETS else repr(value.value)
        raise SettingsError(f"{value.origin}: {path} = {shown}: {problem}") from None
    return value.value
