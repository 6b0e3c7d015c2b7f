"""Encrypted doors: what clients see, certificates that are renewed, and those who get it wrong."""

import asyncio
import http.client
import json
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis
from cryptography import x509
from structlog.testing import capture_logs

from taskqueue.doors import gate
from taskqueue.doors.listener import HttpListener
from taskqueue.doors.resp import RespDoor
from taskqueue.doors.tls import Tls
from tests.support.certificates import (
    Authority,
    CertificateFiles,
    Doors,
    open_doors,
)
from tests.support.door import PATIENCE, no_longer_than, until

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

PING = b"*1\r\n$4\r\nPING\r\n"
PONG = b"+PONG\r\n"
GET_HEALTH = b"GET /api/v1/health HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\r\n"


@pytest.fixture(autouse=True)
def patience() -> Iterator[None]:
    with no_longer_than(2 * PATIENCE):
        yield


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


@pytest.fixture
def files(authority: Authority) -> CertificateFiles:
    return authority.issue("broker")


@pytest.fixture
def tls(files: CertificateFiles) -> Tls:
    return Tls(*files)


@pytest.fixture
def mutual_tls(files: CertificateFiles, authority: Authority) -> Tls:
    """Clients must show a certificate of the same authority."""
    return Tls(*files, authority.file)


@pytest.fixture
async def doors(tls: Tls, tmp_path: Path) -> AsyncIterator[Doors]:
    async with open_doors(tmp_path / "data", tls) as doors:
        yield doors


@pytest.fixture
async def mutual(mutual_tls: Tls, tmp_path: Path) -> AsyncIterator[Doors]:
    async with open_doors(tmp_path / "data", mutual_tls) as doors:
        yield doors


class Complaints(logging.Handler):
    """What the event loop logs by itself."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    handler = Complaints()
    logging.getLogger("asyncio").addHandler(handler)
    yield handler.lines
    logging.getLogger("asyncio").removeHandler(handler)


async def connected(door: HttpListener | RespDoor, context: ssl.SSLContext | None) -> Stream:
    return await asyncio.open_connection(
        "127.0.0.1", door.port, ssl=context, server_hostname="localhost" if context else None
    )


async def said(stream: Stream, words: bytes, size: int = len(PONG)) -> bytes:
    """The first bytes of the answer."""
    reader, writer = stream
    writer.write(words)
    return await reader.readexactly(size)


async def until_the_end(stream: Stream) -> bytes:
    """What comes before the other end closes the connection, in whatever way."""
    reader, writer = stream
    try:
        return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


def serial_of(stream: Stream) -> int:
    """Which certificate was shown."""
    shown = stream[1].get_extra_info("ssl_object").getpeercert(binary_form=True)
    return x509.load_der_x509_certificate(shown).serial_number


async def test_rest_is_served_over_tls(doors: Doors, authority: Authority) -> None:
    def ask() -> tuple[int, dict[str, Any], str | None]:
        context = authority.client_context()
        context.set_alpn_protocols(["h2", "http/1.1"])
        client = http.client.HTTPSConnection("localhost", doors.rest.port, context=context)
        client.connect()
        protocol = client.sock.selected_alpn_protocol()
        body = json.dumps({"task_type": "t", "payload": ""})
        client.request("POST", "/api/v1/tasks", body, {"Content-Type": "application/json"})
        answer = client.getresponse()
        read = answer.status, json.load(answer), protocol
        client.close()
        return read

    status, body, protocol = await asyncio.to_thread(ask)
    assert (status, body["status"], protocol) == (201, "pending", "http/1.1")


async def test_redis_clients_are_served_over_tls(doors: Doors, authority: Authority) -> None:
    def ask() -> bytes:
        with redis.Redis(
            "localhost", doors.native.port, ssl=True, ssl_ca_certs=authority.file
        ) as client:
            big = b"x" * 5_000_000
            task_id = client.execute_command("TQ.SUBMIT", "t", big)
            _, _, _, payload, *_ = client.execute_command("TQ.CLAIM", "w", "TYPES", "t")[0]
            assert payload == big
            return bytes(task_id)

    assert len(await asyncio.to_thread(ask)) == 36


async def test_many_commands_in_one_go_are_all_answered(doors: Doors, authority: Authority) -> None:
    stream = await connected(doors.native, authority.client_context())
    assert await said(stream, PING * 20_000, len(PONG) * 20_000) == PONG * 20_000
    stream[1].close()


async def test_words_that_come_with_the_end_of_the_handshake_are_heard(
    doors: Doors, authority: Authority
) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.client_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
    reader, writer = await connected(doors.native, None)
    while True:
        try:
            client.do_handshake()
            break
        except ssl.SSLWantReadError:
            writer.write(outgoing.read())
            incoming.write(await reader.read(65_536))
    client.write(PING)
    writer.write(outgoing.read())  # the last message of the handshake, and PING
    while True:
        incoming.write(await reader.read(65_536))
        try:
            assert client.read() == PONG
            break
        except ssl.SSLWantReadError:
            pass
    writer.transport.abort()


async def test_a_client_that_ends_its_side_is_done(
    doors: Doors, authority: Authority, complaints: list[str]
) -> None:
    stream = await connected(doors.native, authority.client_context())
    assert await said(stream, PING) == PONG
    stream[1].close()  # says so, and waits for the same
    await stream[1].wait_closed()
    await until(lambda: doors.broker.metrics.connections["native"]() == 0)
    assert complaints == []


@pytest.mark.parametrize("port", ["rest", "native"])
async def test_plain_text_on_an_encrypted_port_ends_there_and_is_logged_once(
    doors: Doors, port: str, complaints: list[str]
) -> None:
    with capture_logs() as logs:
        for words in (GET_HEALTH, PING, GET_HEALTH, b"\0" * 1000, b"\x16\x03\x01\0\x05hello"):
            stream = await connected(getattr(doors, port), None)
            stream[1].write(words)
            assert await until_the_end(stream) == b""
    [line] = logs
    assert line["log_level"] == "warning"
    assert line["client"] == "127.0.0.1"
    assert line["error"] == "it speaks plain HTTP on a port for TLS"
    assert complaints == []


async def test_tls_on_a_plain_port_ends_there(
    authority: Authority, tmp_path: Path, complaints: list[str]
) -> None:
    async with open_doors(tmp_path / "data", None) as doors:
        for door in (doors.rest, doors.native):
            with capture_logs() as logs:
                for _ in range(2):
                    with pytest.raises((ssl.SSLError, ConnectionError)):
                        await connected(door, authority.client_context())
            assert len(logs) <= 1
    assert complaints == []


@pytest.mark.parametrize("start", [b"", b"\x16\x03\x01"])
async def test_a_handshake_that_takes_too_long_is_cut_off(
    doors: Doors,
    start: bytes,
    monkeypatch: pytest.MonkeyPatch,
    complaints: list[str],
) -> None:
    monkeypatch.setattr(gate, "HANDSHAKE_SECONDS", 0.2)
    with capture_logs() as logs:
        for door in (doors.rest, doors.native):
            stream = await connected(door, None)
            stream[1].write(start)
            assert await until_the_end(stream) == b""
    assert [line["error"] for line in logs] == ["it was not done within 0.2 seconds"] * 2
    assert complaints == []


async def test_one_handshake_too_many_costs_the_oldest_its_place(
    doors: Doors, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "HANDSHAKE_SECONDS", 1_000)
    monkeypatch.setattr(gate, "MOST_HANDSHAKES", 2)
    idlers = [await connected(doors.native, None) for _ in range(2)]
    stream = await connected(doors.native, authority.client_context())
    assert await said(stream, PING) == PONG
    assert await until_the_end(idlers[0]) == b""
    for _, writer in (*idlers, stream):
        writer.transport.abort()


async def test_a_door_closes_on_clients_in_and_after_the_handshake(
    tls: Tls, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gate, "HANDSHAKE_SECONDS", 1_000)

    def idle(port: int) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", port))
        encrypted = authority.client_context().wrap_socket(plain, server_hostname="localhost")
        if port == native:
            encrypted.sendall(PING)
            assert encrypted.recv(100) == PONG
        return encrypted

    async with open_doors(tmp_path / "data", tls) as doors:
        native = doors.native.port
        silent = [await connected(door, None) for door in (doors.rest, doors.native)]
        idlers = [await asyncio.to_thread(idle, door.port) for door in (doors.rest, doors.native)]
        with capture_logs() as logs:
            await asyncio.gather(doors.native.close(), doors.rest.close())
    assert logs == []  # nobody was dropped because of not confirming the end
    for stream in silent:
        assert await until_the_end(stream) == b""
    for client in idlers:
        assert client.recv(100) == b""
        client.close()


class LastWords(asyncio.Protocol):
    """Says more than the system takes in at once, and closes the connection."""

    SIZE = 1_000_000

    def __init__(self, has_spoken: threading.Event) -> None:
        self._has_spoken = has_spoken

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        speaking = cast(asyncio.Transport, transport)
        speaking.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        for _ in range(100):
            speaking.write(bytes(self.SIZE // 100))
        speaking.close()
        self._has_spoken.set()


async def test_what_was_written_before_the_end_arrives(tls: Tls, authority: Authority) -> None:
    has_spoken = threading.Event()

    def listen(port: int) -> int:
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            authority.client_context().wrap_socket(plain, server_hostname="localhost") as client,
        ):
            assert has_spoken.wait(PATIENCE)
            return sum(iter(lambda: len(client.recv(65_536)), 0))

    server = await asyncio.get_running_loop().create_server(
        gate.Gate(lambda: LastWords(has_spoken), lambda: tls.native), "127.0.0.1", 0
    )
    port = server.sockets[0].getsockname()[1]
    assert await asyncio.to_thread(listen, port) == LastWords.SIZE
    server.close()
    await server.wait_closed()


async def test_a_refused_request_is_answered_while_its_body_still_comes(
    doors: Doors, authority: Authority, complaints: list[str]
) -> None:
    for _ in range(5):  # a reset overtakes an answer only sometimes
        reader, writer = await connected(doors.rest, authority.client_context())
        head = b"POST /api/v1/tasks HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n"
        writer.write(head + b"X: " + b"x" * 40_000 + b"\r\n\r\n" + bytes(3_000_000))
        answer = await reader.readuntil(b"\r\n")
        assert answer == b"HTTP/1.1 431 Request Header Fields Too Large\r\n"
        writer.transport.abort()
    assert complaints == []


@pytest.mark.parametrize("port", ["rest", "native"])
async def test_clients_must_show_a_certificate_of_the_authority_named(
    mutual: Doors,
    authority: Authority,
    port: str,
    tmp_path: Path,
    complaints: list[str],
) -> None:
    door = getattr(mutual, port)
    words, expected = (PING, PONG) if port == "native" else (GET_HEALTH, b"HTTP/1.1 200")
    with capture_logs() as logs:
        stream = await connected(door, authority.client_context(authority.issue("worker")))
        assert await said(stream, words, len(expected)) == expected
        assert logs == []
        for shown, alert in (
            (None, "CERTIFICATE_REQUIRED"),
            (Authority(tmp_path / "other").issue("worker"), "UNKNOWN_CA"),
        ):
            # A client of TLS 1.3 thinks itself connected before its certificate is looked at.
            with pytest.raises(ssl.SSLError, match=alert):
                await said(await connected(door, authority.client_context(shown)), words)
    assert len(logs) == 1
    assert "no client certificate" in logs[0]["error"]
    assert complaints == []
    stream[1].transport.abort()


async def test_a_certificate_of_another_authority_is_logged_with_the_reason(
    mutual: Doors, authority: Authority, tmp_path: Path
) -> None:
    other = Authority(tmp_path / "other").issue("worker")
    with capture_logs() as logs, pytest.raises(ssl.SSLError):
        await said(await connected(mutual.native, authority.client_context(other)), PING)
    assert "refused by tls.client_ca: unable to get local issuer" in logs[0]["error"]


async def test_a_client_that_distrusts_the_broker_is_logged(
    doors: Doors, tmp_path: Path, complaints: list[str]
) -> None:
    def connect() -> None:
        context = Authority(tmp_path / "other").client_context()
        with (
            socket.create_connection(("127.0.0.1", doors.native.port)) as plain,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            context.wrap_socket(plain, server_hostname="localhost")

    with capture_logs() as logs:
        await asyncio.to_thread(connect)
        await until(lambda: bool(logs))
    assert "unknown ca" in logs[0]["error"]
    assert complaints == []


async def test_a_renewed_certificate_is_shown_to_new_connections_while_old_ones_live(
    doors: Doors, tls: Tls, authority: Authority
) -> None:
    context = authority.client_context()
    old = [await connected(door, context) for door in (doors.native, doors.rest)]
    before = serial_of(old[0])
    authority.issue("broker")
    assert tls.reload()
    for door in (doors.native, doors.rest):
        new = await connected(door, context)
        assert serial_of(new) != before
        new[1].close()
    assert await said(old[0], PING) == PONG
    assert await said(old[1], GET_HEALTH, 12) == b"HTTP/1.1 200"
    old[0][1].close()


async def test_a_renewed_authority_decides_about_new_connections(
    mutual: Doors, mutual_tls: Tls, authority: Authority, tmp_path: Path
) -> None:
    later = Authority(tmp_path / "later")
    before = authority.client_context(authority.issue("worker"))
    after = authority.client_context(later.issue("worker"))
    old = await connected(mutual.native, before)
    assert await said(old, PING) == PONG
    with pytest.raises(ssl.SSLError):
        await said(await connected(mutual.native, after), PING)
    authority.give_way_to(later)
    assert mutual_tls.reload()
    new = await connected(mutual.native, after)
    assert await said(new, PING) == PONG
    with pytest.raises(ssl.SSLError):
        await said(await connected(mutual.native, before), PING)
    assert await said(old, PING) == PONG
    for _, writer in (old, new):
        writer.close()


async def test_a_session_does_not_outlive_the_authority_of_its_client(
    mutual: Doors, mutual_tls: Tls, authority: Authority, tmp_path: Path
) -> None:
    context = authority.client_context(authority.issue("worker"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2  # its sessions can be taken up by hand

    def ping(session: ssl.SSLSession | None) -> ssl.SSLSession | None:
        with (
            socket.create_connection(("127.0.0.1", mutual.native.port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost", session=session) as encrypted,
        ):
            encrypted.sendall(PING)
            assert encrypted.recv(100) == PONG
            assert encrypted.session_reused is (session is not None)
            return encrypted.session

    session = await asyncio.to_thread(ping, None)
    await asyncio.to_thread(ping, session)
    authority.give_way_to(Authority(tmp_path / "later"))
    assert mutual_tls.reload()
    with pytest.raises((ssl.SSLError, ConnectionError)):
        await asyncio.to_thread(ping, session)


async def test_files_that_cannot_be_used_leave_everything_as_it_was(
    doors: Doors, tls: Tls, authority: Authority, files: CertificateFiles
) -> None:
    stream = await connected(doors.native, authority.client_context())
    before = serial_of(stream)
    stream[1].close()
    Path(files.cert).write_text("not yet written")  # noqa: ASYNC240  a few bytes
    with capture_logs() as logs:
        assert not tls.reload()
    assert [line["log_level"] for line in logs] == ["error"]
    assert "tls.cert" in logs[0]["error"]
    stream = await connected(doors.native, authority.client_context())
    assert serial_of(stream) == before
    stream[1].close()
