"""Where a broker is: `host:port`, `tq://key@host:port`, or `tqs://…` for TLS."""

import os
import ssl
import tomllib
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from taskqueue.core.errors import InvalidRequest

DEFAULT_PORT: Final = 6379
DEFAULT_ADDRESS: Final = "127.0.0.1:6379"
SETTINGS_FILE: Final = Path("tq.toml")


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


def broker_address(url: str | None = None, api_key: str | None = None) -> BrokerAddress:
    """The address that `url` names, else TQ_URL, else section [client] of ./tq.toml.

    Without any of them it is this machine's port 6379. The key is the argument's, else the
    address's, else TQ_API_KEY, else the section's; files for TLS likewise, without an argument.
    Raises InvalidRequest for anything that is not an address.
    """
    url = url or os.environ.get("TQ_URL")
    stated = ClientSection() if url else _client_section()
    text = url or stated.url or DEFAULT_ADDRESS
    parts = urlsplit(text if "://" in text else f"tq://{text}")
    try:
        port = DEFAULT_PORT if parts.port is None else parts.port
    except ValueError:
        port = 0
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    allowed = TLS_OPTIONS.keys() if parts.scheme == "tqs" else ()
    more = parts.path.strip("/") or parts.fragment or parts.password or options.keys() - allowed
    if parts.scheme not in ("tq", "tqs") or not parts.hostname or not port or more:
        raise _not_an_address(text)
    key = api_key or (unquote(parts.username) if parts.username else None)
    key = key or os.environ.get("TQ_API_KEY") or stated.api_key
    tls = _tls_files(options, stated) if parts.scheme == "tqs" else None
    return BrokerAddress(parts.hostname, port, key, tls)


def _not_an_address(text: str) -> InvalidRequest:
    shown = text.rpartition("@")[2]
    return InvalidRequest(
        f"{shown!r} is not a broker's address; write host:port or tq://key@host:port, "
        "with TLS tqs://key@host:port?ca=FILE&cert=FILE&key=FILE, the files as needed",
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
