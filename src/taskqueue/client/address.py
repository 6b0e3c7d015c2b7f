"""Where a broker is: `host:port`, or `tq://key@host:port`."""

import os
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

from taskqueue.core.errors import InvalidRequest

DEFAULT_PORT: Final = 6379
DEFAULT_ADDRESS: Final = "127.0.0.1:6379"


class BrokerAddress(NamedTuple):
    """A broker's native door, and the key to show there."""

    host: str
    port: int
    key: str | None = None

    def __str__(self) -> str:
        """The address without the key, fit for logs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def broker_address(url: str | None = None, api_key: str | None = None) -> BrokerAddress:
    """The address that `url` names; without one TQ_URL's, or else this machine's port 6379.

    Raises InvalidRequest for anything that is not an address.
    """
    text = url or os.environ.get("TQ_URL") or DEFAULT_ADDRESS
    parts = urlsplit(text if "://" in text else f"tq://{text}")
    try:
        port = parts.port or DEFAULT_PORT
    except ValueError:
        port = 0
    if parts.scheme != "tq" or not parts.hostname or not port or parts.path.strip("/"):
        shown = text.rpartition("@")[2]
        raise InvalidRequest(
            f"{shown!r} is not a broker's address; write host:port or tq://key@host:port",
            field="url",
        )
    key = api_key or (unquote(parts.username) if parts.username else os.environ.get("TQ_API_KEY"))
    return BrokerAddress(parts.hostname, port, key)
