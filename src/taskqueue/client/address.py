"""Where a broker is: `host:port`, or `tq://key@host:port`."""

import os
import tomllib
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

import msgspec

from taskqueue.core.errors import InvalidRequest

DEFAULT_PORT: Final = 6379
DEFAULT_ADDRESS: Final = "127.0.0.1:6379"
SETTINGS_FILE: Final = Path("tq.toml")


class BrokerAddress(NamedTuple):
    """A broker's native door, and the key to show there."""

    host: str
    port: int
    key: str | None = None

    def __str__(self) -> str:
        """The address without the key, fit for logs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class ClientSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a settings file may say to clients, in its section [client]."""

    url: str | None = None
    api_key: str | None = None


def broker_address(url: str | None = None, api_key: str | None = None) -> BrokerAddress:
    """The address that `url` names, else TQ_URL, else section [client] of ./tq.toml.

    Without any of them it is this machine's port 6379. The key is the argument's, else the
    address's, else TQ_API_KEY, else the section's. Raises InvalidRequest for anything that is
    not an address.
    """
    url = url or os.environ.get("TQ_URL")
    stated = ClientSection() if url else _client_section()
    text = url or stated.url or DEFAULT_ADDRESS
    parts = urlsplit(text if "://" in text else f"tq://{text}")
    try:
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        port = 0
    more = parts.path.strip("/") or parts.query or parts.fragment or parts.password
    if parts.scheme != "tq" or not parts.hostname or not port or more:
        shown = text.rpartition("@")[2]
        raise InvalidRequest(
            f"{shown!r} is not a broker's address; write host:port or tq://key@host:port",
            field="url",
        )
    key = api_key or (unquote(parts.username) if parts.username else None)
    key = key or os.environ.get("TQ_API_KEY") or stated.api_key
    return BrokerAddress(parts.hostname, port, key)


def _client_section() -> ClientSection:
    try:
        stated = tomllib.loads(SETTINGS_FILE.read_text()).get("client", {})
        return msgspec.convert(stated, ClientSection)
    except FileNotFoundError:
        return ClientSection()
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InvalidRequest(
            f"section [client] of {SETTINGS_FILE} cannot be read: {error}; "
            "it may have the texts url and api_key",
            field="url",
        ) from error
