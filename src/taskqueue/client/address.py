"""Where brokers are: `host:port`, `tq://key@a:6379,b:6379`, or `tqs://…` for TLS."""

import os
import re
import ssl
import tomllib
from ipaddress import IPv6Address
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from taskqueue.core.errors import InvalidRequest

DEFAULT_PORT: Final = 6379
DEFAULT_ADDRESS: Final = "127.0.0.1:6379"
SETTINGS_FILE: Final = Path("tq.toml")

MOST_ADDRESSES: Final = 32
"""Brokers that one client may be told of."""

_HOST_AND_PORT: Final = re.compile(r"(?:\[([^\]]+)\]|([\w.-]+))(?::([0-9]{0,5}))?")


TLS_OPTIONS: Final = {"ca": "ca_file", "cert": "cert_file", "key": "key_file"}
"""What may follow `?` in an address with TLS, and its name in the settings file; TQ_CA_FILE and so
on in the environment."""


class TlsFiles(NamedTuple):
    """PEM files of a client: the CA it trusts instead of the system's, the certificate it shows."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def context(self) -> ssl.SSLContext:
        """What a connection is encrypted with; the broker's name is checked.

        Made anew for each connection, so that renewed files are noticed. Raises OSError.
        """
        try:
            context = ssl.create_default_context(cafile=_existing("ca", self.ca))
        except ssl.SSLError as error:
            raise OSError(f"{self.ca}, named by ca=, holds no certificate in PEM form") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.cert is not None:
            cert, key = _existing("cert", self.cert), _existing("key", self.key)
            try:
                # Without a password it would ask on the terminal for that of an encrypted key.
                context.load_cert_chain(cert or "", key, password="")
            except ssl.SSLError as error:
                raise OSError(
                    f"{cert} and {key or cert} are not a certificate and its key: {error.reason}"
                ) from error
        return context


class BrokerAddress(NamedTuple):
    """A broker's native door, the key to show there, and what TLS needs, if it is used."""

    host: str
    port: int
    key: str | None = None
    tls: TlsFiles | None = None

    def __str__(self) -> str:
        """The address without the key, fit for logs."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


class ClientSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a settings file may say to clients, in its section [client]."""

    url: str | None = None
    api_key: str | None = None
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None


def broker_addresses(
    url: str | None = None, api_key: str | None = None
) -> tuple[BrokerAddress, ...]:
    """The addresses that `url` names, else TQ_URL, else section [client] of ./tq.toml.

    Without any of them it is this machine's port 6379. The key is the argument's, else the
    address's, else TQ_API_KEY, else the section's; files for TLS likewise, without an argument.
    Key and files are for all of the brokers. Raises InvalidRequest for anything that is not an
    address.
    """
    url = url or os.environ.get("TQ_URL")
    stated = ClientSection() if url else _client_section()
    text = url or stated.url or DEFAULT_ADDRESS
    scheme, _, rest = text.partition("://") if "://" in text else ("tq", "", text)
    scheme = scheme.lower()
    authority = re.split("[/?#]", rest, maxsplit=1)[0]
    own_key, _, hosts = authority.rpartition("@")
    parts = urlsplit(rest.replace(authority, "tq://host", 1))
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    allowed = TLS_OPTIONS.keys() if scheme == "tqs" else ()
    more = parts.path.strip("/") or parts.fragment or options.keys() - allowed
    if scheme not in ("tq", "tqs") or more or re.search("[:@,]", own_key):
        raise _not_an_address(text)
    key = api_key or unquote(own_key) or os.environ.get("TQ_API_KEY") or stated.api_key
    tls = _tls_files(options, stated) if scheme == "tqs" else None
    ends = [_host_and_port(host, text) for host in hosts.split(",")]
    addresses = tuple(BrokerAddress(host, port, key, tls) for host, port in ends)
    _check_together(addresses)
    return addresses


def _host_and_port(text: str, whole: str) -> tuple[str, int]:
    found = _HOST_AND_PORT.fullmatch(text)
    if found is None:
        raise _not_an_address(whole)
    bracketed, name, stated_port = found.groups()
    port = int(stated_port or DEFAULT_PORT)
    if not 1 <= port <= 65_535:
        raise _not_an_address(whole)
    try:
        return name.lower() if name else str(IPv6Address(bracketed)), port
    except ValueError:
        raise _not_an_address(whole) from None


def _check_together(addresses: tuple[BrokerAddress, ...]) -> None:
    if len(addresses) > MOST_ADDRESSES:
        raise InvalidRequest(
            f"{len(addresses)} brokers are too many; name {MOST_ADDRESSES} of them at most",
            field="url",
        )
    for number, address in enumerate(addresses):
        if address in addresses[:number]:
            raise InvalidRequest(f"{address} is named twice; name each broker once", field="url")


def _not_an_address(text: str) -> InvalidRequest:
    shown = text.rpartition("@")[2]
    return InvalidRequest(
        f"{shown!r} is not a broker's address; write host:port or tq://key@host:port, "
        "with TLS tqs://key@host:port?ca=FILE&cert=FILE&key=FILE, the files as needed; "
        "several brokers with commas and one key, as in tq://key@a:6379,b:6379",
        field="url",
    )


def _tls_files(options: dict[str, str], stated: ClientSection) -> TlsFiles:
    files = {
        option: options.get(option) or os.environ.get(f"TQ_{name.upper()}") or getattr(stated, name)
        for option, name in TLS_OPTIONS.items()
    }
    if files["key"] and not files["cert"]:
        raise InvalidRequest(
            "there is a key for TLS and no certificate; name its file with cert= in the address, "
            "TQ_CERT_FILE or cert_file",
            field="url",
        )
    return TlsFiles(**files)


def _existing(option: str, path: str | None) -> str | None:
    """The path, once it is known that it can be read: OpenSSL's own errors do not name it."""
    if path is not None:
        try:
            with Path(path).open("rb"):
                pass
        except OSError as error:
            raise OSError(f"{path}, named by {option}=, cannot be read: {error.strerror}") from None
    return path


def _client_section() -> ClientSection:
    try:
        stated = tomllib.loads(SETTINGS_FILE.read_text()).get("client", {})
        return msgspec.convert(stated, ClientSection)
    except FileNotFoundError:
        return ClientSection()
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise InvalidRequest(
            f"section [client] of {SETTINGS_FILE} cannot be read: {error}; "
            "it may have the texts url, api_key, ca_file, cert_file and key_file",
            field="url",
        ) from error
