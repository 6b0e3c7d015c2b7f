"""The certificate that every door shows: checked before use, renewed without a restart."""

import ssl
from pathlib import Path
from typing import Final, NamedTuple

import grpc
import structlog
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

from taskqueue.core.clock import SECOND, Clock, SystemClock
from taskqueue.doors.gate import GateContext

DAY: Final = 24 * 3600
WARN_DAYS: Final = 14
"""A certificate that expires sooner is warned about."""

READABLE_BY_OTHERS: Final = 0o004

log = structlog.get_logger(component="tls")


class TlsError(Exception):
    """A file of the section [tls] that cannot be used: the setting, what is wrong, what to do."""

    def __init__(self, setting: str, problem: str, fix: str) -> None:
        super().__init__(f"tls.{setting}: {problem}; {fix}")
        self.setting = f"tls.{setting}"


class Identity(NamedTuple):
    """What the files hold, read in one go and found to fit together."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    begins_at: float
    expires_at: float
    http: GateContext
    native: GateContext


class Tls:
    """The broker's certificate and key, and the CA whose certificates clients must show, if any.

    Paths of PEM files; `cert` begins with the broker's own certificate, those between it and the
    root follow. Raises TlsError for files that cannot be used; warns of those that soon cannot.
    """

    def __init__(
        self, cert: str, key: str, client_ca: str | None = None, clock: Clock | None = None
    ) -> None:
        self._cert = cert
        self._key = key
        self._client_ca = client_ca or None
        self._clock = clock or SystemClock()
        self._identity = self._read()
        self.warn()

    @property
    def http(self) -> GateContext:
        """For the next handshake with a client of the REST door."""
        return self._identity.http

    @property
    def native(self) -> GateContext:
        """For the next handshake with a client of the native door."""
        return self._identity.native

    @property
    def expires_at(self) -> float:
        """When the certificate expires, in seconds since 1970."""
        return self._identity.expires_at

    def reload(self) -> bool:
        """Read the files again; new connections get what they hold now.

        Files that cannot be used are logged, and everything stays as it was. Says whether the new
        ones hold.
        """
        try:
            self._identity = self._read()
        except TlsError as error:
            log.error("the certificate is not renewed; the one before stays", error=str(error))
            return False
        log.info("the certificate is read anew", days_left=round(self._seconds_left() / DAY))
        self.warn()
        return True

    def warn(self) -> None:
        """Log what will be a problem soon. Also to be called from time to time."""
        left = self._seconds_left()
        if left <= 0:
            log.warning("the certificate has expired; clients refuse it", file=self._cert)
        elif left < WARN_DAYS * DAY:
            log.warning(
                "the certificate expires soon; renew it and send SIGHUP",
                file=self._cert,
                days_left=round(left / DAY, 1),
            )
        if self._identity.begins_at > self._now():
            log.warning("the certificate is not valid yet; clients refuse it", file=self._cert)
        if _can_be_read_by_others(self._key):
            log.warning(
                "every user of this machine can read the private key; take that right away",
                file=self._key,
            )

    def grpc_credentials(self) -> grpc.ServerCredentials:
        """Credentials for a gRPC server; they follow each reload."""
        served = self._identity

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            nonlocal served
            if served is self._identity:
                return None  # no change
            served = self._identity
            return _grpc_configuration(served)

        return grpc.dynamic_ssl_server_credentials(
            _grpc_configuration(served),
            fetch,  # type: ignore[arg-type]  # None is what grpcio documents for no change
            require_client_authentication=self._client_ca is not None,
        )

    def _now(self) -> float:
        return self._clock.wall() / SECOND

    def _seconds_left(self) -> float:
        return self._identity.expires_at - self._now()

    def _read(self) -> Identity:
        chain = _contents("cert", self._cert)
        certificate = _certificates("cert", self._cert, chain)[0]
        key = _contents("key", self._key)
        _check_key(self._key, key, certificate)
        client_ca = None
        if self._client_ca is not None:
            client_ca = _contents("client_ca", self._client_ca)
            _certificates("client_ca", self._client_ca, client_ca)
        return Identity(
            chain,
            key,
            client_ca,
            certificate.not_valid_before_utc.timestamp(),
            certificate.not_valid_after_utc.timestamp(),
            self._context(client_ca, "http/1.1"),
            self._context(client_ca),
        )

    def _context(self, client_ca: bytes | None, *protocols: str) -> GateContext:
        # A new one each time: a store of CAs cannot be emptied, and sessions of clients whose CA
        # has gone could be taken up again.
        context = GateContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        if protocols:
            context.set_alpn_protocols(list(protocols))
        try:
            context.load_cert_chain(self._cert, self._key)
        except (OSError, ValueError) as error:
            raise _unusable("cert", self._cert, error) from error
        if client_ca is not None:
            try:
                context.load_verify_locations(cadata=client_ca.decode("ascii", "ignore"))
            except ssl.SSLError as error:
                raise _unusable("client_ca", self._client_ca, error) from error
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _can_be_read_by_others(path: str) -> bool:
    try:
        return bool(Path(path).stat().st_mode & READABLE_BY_OTHERS)
    except OSError:
        return False  # it has been taken away since


def _unusable(setting: str, path: str | None, error: Exception) -> TlsError:
    return TlsError(setting, f"{path} cannot be used: {error}", "have a new one issued")


def _contents(setting: str, path: str) -> bytes:
    if not path:
        raise TlsError(setting, "is not set", "name the PEM file")
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise TlsError(setting, f"{path} does not exist", "name the PEM file") from None
    except OSError as error:
        raise TlsError(
            setting,
            f"{path} cannot be read: {error.strerror or error}",
            "let the user that runs the broker read it",
        ) from error


def _certificates(setting: str, path: str, contents: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(contents)
    except ValueError as error:
        raise TlsError(
            setting,
            f"{path} does not hold a certificate in PEM form",
            "it must begin with -----BEGIN CERTIFICATE-----",
        ) from error


def _check_key(path: str, contents: bytes, certificate: x509.Certificate) -> None:
    try:
        key = load_pem_private_key(contents, password=None)
    except TypeError as error:
        raise TlsError(
            "key", f"{path} is encrypted", "decrypt it with openssl pkey; nobody is there to ask"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise TlsError(
            "key",
            f"{path} does not hold a private key in PEM form",
            "it must contain -----BEGIN PRIVATE KEY-----",
        ) from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
        raise TlsError(
            "key",
            f"{path} is not the key of the first certificate in tls.cert",
            "name the key it was issued for, and put the broker's own certificate first",
        )


def _grpc_configuration(identity: Identity) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(identity.key, identity.chain)], root_certificates=identity.client_ca
    )
