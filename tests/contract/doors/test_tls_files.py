"""The files of the section [tls]: checked before use, warned about in time, followed by gRPC."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from structlog.testing import capture_logs

from taskqueue.core.clock import ManualClock
from taskqueue.doors.tls import Tls, TlsError
from tests.support.certificates import Authority, CertificateFiles
from tests.support.door import PATIENCE

Spoil = Callable[[CertificateFiles, Authority], None]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


@pytest.fixture
def files(authority: Authority) -> CertificateFiles:
    return authority.issue("broker")


def replace(files: CertificateFiles, by: CertificateFiles) -> None:
    for old, new in zip(files, by, strict=True):
        Path(old).write_bytes(Path(new).read_bytes())


def key_of_another(files: CertificateFiles, authority: Authority) -> None:
    Path(files.key).write_bytes(Path(authority.issue("other").key).read_bytes())


def broken_certificate(files: CertificateFiles, _authority: Authority) -> None:
    text = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
    Path(files.cert).write_text(text)


def no_certificate(files: CertificateFiles, _authority: Authority) -> None:
    Path(files.cert).write_bytes(b"\0\1\2")


def no_key(files: CertificateFiles, _authority: Authority) -> None:
    Path(files.key).write_bytes(Path(files.cert).read_bytes())


def encrypted_key(files: CertificateFiles, _authority: Authority) -> None:
    form = PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    Path(files.key).write_bytes(a_key().private_bytes(Encoding.PEM, *form))


def missing_key(files: CertificateFiles, _authority: Authority) -> None:
    Path(files.key).unlink()


def folder(files: CertificateFiles, _authority: Authority) -> None:
    Path(files.cert).unlink()
    Path(files.cert).mkdir()


def empty_authority(_files: CertificateFiles, authority: Authority) -> None:
    Path(authority.file).write_text("")


def a_key(size: int = 2_048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65_537, size)


def self_signed(private: rsa.RSAPrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "weak")])
    begins = datetime(2020, 1, 1, tzinfo=UTC)
    return (
        x509.CertificateBuilder(name, name, private.public_key(), 1)
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=1))
        .sign(private, SHA256())
    )


@pytest.mark.parametrize(
    ("spoil", "setting", "said"),
    [
        (key_of_another, "tls.key", "is not the key of the first certificate"),
        (broken_certificate, "tls.cert", "does not hold a certificate in PEM form"),
        (no_certificate, "tls.cert", "does not hold a certificate in PEM form"),
        (no_key, "tls.key", "does not hold a private key in PEM form"),
        (encrypted_key, "tls.key", "is encrypted"),
        (missing_key, "tls.key", "does not exist"),
        (folder, "tls.cert", "cannot be read: Is a directory"),
        (empty_authority, "tls.client_ca", "does not hold a certificate in PEM form"),
    ],
)
def test_files_that_cannot_be_used_are_named_with_the_setting(
    authority: Authority, files: CertificateFiles, spoil: Spoil, setting: str, said: str
) -> None:
    spoil(files, authority)
    with pytest.raises(TlsError) as raised:
        Tls(*files, authority.file)
    message = str(raised.value)
    assert raised.value.setting == setting
    assert message.startswith(f"{setting}: ")
    assert said in message
    assert "; " in message
    assert "\n" not in message


def test_a_setting_without_the_other_is_named(files: CertificateFiles) -> None:
    with pytest.raises(TlsError, match=r"tls\.key: is not set"):
        Tls(files.cert, "")


def test_a_key_too_weak_for_openssl_is_refused_before_anybody_connects(tmp_path: Path) -> None:
    private = a_key(1_024)
    (tmp_path / "key.pem").write_bytes(
        private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    (tmp_path / "cert.pem").write_bytes(self_signed(private).public_bytes(Encoding.PEM))
    with pytest.raises(TlsError, match=r"tls\.cert: .* cannot be used: .*too small"):
        Tls(str(tmp_path / "cert.pem"), str(tmp_path / "key.pem"))


@pytest.mark.parametrize(
    ("now", "warning"),
    [
        (datetime(2029, 12, 1, tzinfo=UTC), None),
        (datetime(2029, 12, 20, tzinfo=UTC), "expires soon"),
        (datetime(2030, 1, 2, tzinfo=UTC), "has expired"),
        (datetime(2019, 12, 31, tzinfo=UTC), "is not valid yet"),
    ],
)
def test_a_certificate_is_warned_about_in_time(
    authority: Authority, now: datetime, warning: str | None
) -> None:
    ends_at = datetime(2030, 1, 1, tzinfo=UTC)
    files = authority.issue("old", not_after=ends_at)
    clock = ManualClock(round(now.timestamp()) * 1_000_000)
    with capture_logs() as logs:
        tls = Tls(*files, clock=clock)
        assert tls.reload()
        Path(files.key).unlink()  # it is not needed any more
        tls.warn()
    warnings = [line["event"] for line in logs if line["log_level"] == "warning"]
    assert len(warnings) == (0 if warning is None else 3)
    assert all(warning is not None and warning in line for line in warnings)
    assert tls.expires_at == ends_at.timestamp()


def test_a_key_that_everybody_can_read_is_warned_about(files: CertificateFiles) -> None:
    Path(files.key).chmod(0o644)
    with capture_logs() as logs:
        Tls(*files)
    assert [(line["log_level"], line["file"]) for line in logs] == [("warning", files.key)]
    Path(files.key).chmod(0o640)
    with capture_logs() as logs:
        Tls(*files)
    assert logs == []


def test_nothing_older_than_tls_1_2_is_spoken(files: CertificateFiles) -> None:
    tls = Tls(*files)
    for context in (tls.http, tls.native):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_2


class Echo(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # the stubs' arguments only
    """Answers every call with what it was asked."""

    def service(self, _details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        async def answer(request: bytes, _context: object) -> bytes:
            return request

        return grpc.unary_unary_rpc_method_handler(answer)


@asynccontextmanager
async def an_echo(tls: Tls) -> AsyncIterator[int]:
    """A gRPC server with these credentials; gives its port."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    port = server.add_secure_port("127.0.0.1:0", tls.grpc_credentials())
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def channel_credentials(
    trusted: Authority, shown: CertificateFiles | None = None
) -> grpc.ChannelCredentials:
    files = (trusted.file,) if shown is None else (trusted.file, shown.key, shown.cert)
    return grpc.ssl_channel_credentials(*(Path(file).read_bytes() for file in files))


async def echoed(port: int, credentials: grpc.ChannelCredentials) -> bytes:
    # A channel of its own connection: the library shares them between channels that look alike.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options) as channel:
        call = channel.unary_unary("/echo/Echo", bytes, bytes)
        return bytes(await call(b"hello", timeout=PATIENCE))


async def test_grpc_follows_a_reload(
    files: CertificateFiles, authority: Authority, tmp_path: Path
) -> None:
    tls, later = Tls(*files), Authority(tmp_path / "later")
    before, after = channel_credentials(authority), channel_credentials(later)
    async with an_echo(tls) as port:
        assert await echoed(port, before) == b"hello"
        replace(files, later.issue("broker"))
        assert tls.reload()
        assert await echoed(port, after) == b"hello"
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await echoed(port, before)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_grpc_clients_must_show_a_certificate_of_the_authority_named(
    files: CertificateFiles, authority: Authority, tmp_path: Path
) -> None:
    tls, later = Tls(*files, authority.file), Authority(tmp_path / "later")
    nothing = channel_credentials(authority)
    ours = channel_credentials(authority, authority.issue("worker"))
    others = channel_credentials(authority, later.issue("worker"))
    async with an_echo(tls) as port:
        assert await echoed(port, ours) == b"hello"
        for refused in (nothing, others):
            with pytest.raises(grpc.aio.AioRpcError):
                await echoed(port, refused)
        authority.give_way_to(later)
        assert tls.reload()
        assert await echoed(port, others) == b"hello"
        with pytest.raises(grpc.aio.AioRpcError):
            await echoed(port, ours)
