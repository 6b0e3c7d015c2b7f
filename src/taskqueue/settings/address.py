"""Addresses to listen on, as `HOST:PORT`."""

from typing import NamedTuple


class Address(NamedTuple):
    """Where a door listens."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(text: str) -> Address:
    """The address that `HOST:PORT` (or `[::1]:PORT`, or `:PORT`) means. Raises ValueError."""
    host, separator, port = text.rpartition(":")
    if not separator or not (port.isascii() and port.isdigit()) or int(port) > 65_535:
        raise ValueError("must be HOST:PORT with a port from 0 to 65535, such as 127.0.0.1:8080")
    bare = host.removeprefix("[").removesuffix("]")
    if ":" in bare and bare == host:
        raise ValueError("must have its IPv6 address in brackets, such as [::1]:8080")
    return Address(bare or "0.0.0.0", int(port))  # noqa: S104  what an empty host means everywhere
