"""Clients and workers over TLS: whom they trust, what they show, what they say when it fails."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from taskqueue import App, BrokerUnavailable, Task
from taskqueue.client.address import broker_addresses
from taskqueue.client.link import Brokers, Link
from taskqueue.doors.tls import Tls
from taskqueue.worker.heartbeat import Ears, Heartbeat
from taskqueue.worker.runner import Worker
from tests.contract.client.conftest import ConnectTo
from tests.support.certificates import Authority, CertificateFiles, Doors, open_doors
from tests.support.door import PATIENCE, a_cutting_proxy, until


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of the test; nothing is said in the environment."""
    for name in ("TQ_URL", "TQ_CA_FILE", "TQ_CERT_FILE", "TQ_KEY_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


@pytest.fixture
async def doors(authority: Authority, tmp_path: Path) -> AsyncIterator[Doors]:
    async with open_doors(tmp_path / "data", Tls(*authority.issue("broker"))) as doors:
        yield doors


@pytest.fixture
async def mutual(authority: Authority, tmp_path: Path) -> AsyncIterator[Doors]:
    """Doors that want to see a certificate of the same authority."""
    tls = Tls(*authority.issue("broker"), authority.file)
    async with open_doors(tmp_path / "data", tls) as doors:
        yield doors


def url_of(doors: Doors, authority: Authority | None, host: str = "localhost") -> str:
    options = f"?ca={authority.file}" if authority else ""
    return f"tqs://{host}:{doors.native.port}{options}"


async def refusal(url: str) -> str:
    """What a client says that cannot reach its broker."""
    with pytest.raises(BrokerUnavailable) as raised:
        await Link(broker_addresses(url)).open()
    message = raised.value.message
    assert "\n" not in message
    return message


async def test_a_client_trusts_the_authority_named_in_the_address(
    doors: Doors, authority: Authority, connect: ConnectTo
) -> None:
    for host in ("localhost", "127.0.0.1"):
        client = connect(url_of(doors, authority, host))
        task_id = await client.submit_task(Task("work", b"x" * 1_000_000))
        assert (await client.get_status(task_id)).status == "pending"


async def test_the_authority_may_be_named_in_the_environment_or_the_settings_file(
    doors: Doors,
    authority: Authority,
    connect: ConnectTo,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (folder / "tq.toml").write_text(
        f'[client]\nurl = "{url_of(doors, None)}"\nca_file = "{authority.file}"\n'
    )
    assert (await connect("").health()).status == "healthy"
    monkeypatch.setenv("TQ_CA_FILE", authority.file)
    assert (await connect(url_of(doors, None)).health()).status == "healthy"


async def test_a_broker_of_an_unknown_authority_is_refused_at_once_with_what_to_do(
    doors: Doors, connect: ConnectTo, tmp_path: Path
) -> None:
    async with a_cutting_proxy(doors.native.port) as proxy:
        other = Authority(tmp_path / "other")
        url = f"tqs://localhost:{proxy.port}?ca={other.file}"
        with pytest.raises(BrokerUnavailable) as raised:
            await connect(url).health()
        assert proxy.connections == 1  # it would not get better
    message = raised.value.message
    assert f"no broker answers at localhost:{proxy.port}: " in message
    assert "unable to get local issuer certificate" in message
    assert "name the file of the CA with ca= in the address, or TQ_CA_FILE" in message


async def test_the_systems_trust_store_does_not_know_our_authority(doors: Doors) -> None:
    assert "cannot be trusted" in await refusal(url_of(doors, None))


async def test_a_certificate_for_another_name_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    tls = Tls(*authority.issue("broker", "elsewhere.example"))
    async with open_doors(tmp_path / "data", tls) as doors:
        message = await refusal(url_of(doors, authority))
        assert "not valid for 'localhost'; use a name that is in the certificate" in message
        message = await refusal(url_of(doors, authority, "127.0.0.1"))
        assert "use a name or address that is in the certificate" in message


async def test_a_certificate_that_has_expired_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    tls = Tls(*authority.issue("broker", not_after=datetime(2021, 1, 1, tzinfo=UTC)))
    async with open_doors(tmp_path / "data", tls) as doors:
        message = await refusal(url_of(doors, authority))
    assert "certificate has expired; it must be renewed at the broker" in message


async def test_a_client_shows_its_certificate(
    mutual: Doors, authority: Authority, connect: ConnectTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = authority.issue("worker")
    url = url_of(mutual, authority)
    assert (await connect(f"{url}&cert={shown.cert}&key={shown.key}").health()).status == "healthy"
    monkeypatch.setenv("TQ_CERT_FILE", shown.cert)
    monkeypatch.setenv("TQ_KEY_FILE", shown.key)
    assert (await connect(url).health()).status == "healthy"


async def test_a_client_that_must_show_a_certificate_is_told(
    mutual: Doors, authority: Authority, tmp_path: Path
) -> None:
    url = url_of(mutual, authority)
    message = await refusal(url)
    assert "it wants a client certificate; name one with cert= and key= in the address" in message
    shown = Authority(tmp_path / "other").issue("worker")
    message = await refusal(f"{url}&cert={shown.cert}&key={shown.key}")
    assert "it does not accept the client certificate" in message


async def test_the_two_kinds_of_ports_are_told_apart(
    doors: Doors, authority: Authority, tmp_path: Path
) -> None:
    message = await refusal(f"localhost:{doors.native.port}")
    assert "if that port is for TLS, write tqs://" in message
    async with open_doors(tmp_path / "plain", None) as plain:
        message = await refusal(url_of(plain, authority))
    assert "if that port is not for TLS, write tq://" in message


def encrypt(files: CertificateFiles) -> None:
    """Have the key ask for a password."""
    key = load_pem_private_key(Path(files.key).read_bytes(), None)
    form = PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    Path(files.key).write_bytes(key.private_bytes(Encoding.PEM, *form))


async def test_files_that_cannot_be_used_are_named(doors: Doors, authority: Authority) -> None:
    shown, other = authority.issue("worker"), authority.issue("other")
    url = url_of(doors, authority)
    message = await refusal(f"tqs://localhost:{doors.native.port}?ca=/none.pem")
    assert "/none.pem, named by ca=, cannot be read: No such file or directory" in message
    message = await refusal(f"tqs://localhost:{doors.native.port}?ca={shown.key}")
    assert f"{shown.key}, named by ca=, holds no certificate" in message
    message = await refusal(f"{url}&cert={shown.cert}&key={other.key}")
    assert f"{shown.cert} and {other.key} are not a certificate and its key" in message
    encrypt(shown)
    message = await refusal(f"{url}&cert={shown.cert}&key={shown.key}")
    assert "are not a certificate and its key" in message


async def test_a_renewed_file_is_noticed_at_the_next_connection(
    doors: Doors, authority: Authority, connect: ConnectTo, tmp_path: Path
) -> None:
    trusted = Authority(tmp_path / "trusted")
    url = url_of(doors, trusted)
    client = connect(url, timeout=1)
    with pytest.raises(BrokerUnavailable):
        await client.health()
    trusted.give_way_to(authority)
    assert (await client.health()).status == "healthy"


async def test_a_worker_works_over_tls_and_stops_while_it_waits(
    mutual: Doors, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that neither makes up for a worker that does not end its claim.
    monkeypatch.setattr("taskqueue.worker.runner.BLOCK_SECONDS", 60)
    monkeypatch.setattr("taskqueue.worker.runner.FAREWELL_SECONDS", 60)
    shown = authority.issue("worker")
    app = App(f"{url_of(mutual, authority)}&cert={shown.cert}&key={shown.key}")

    @app.task
    async def double(number: int) -> int:
        return 2 * number

    worker = Worker(app)
    running = asyncio.create_task(worker.run())
    handles = [await double.submit(number) for number in range(50)]
    results = [await handle.result() for handle in handles]
    assert results == [2 * number for number in range(50)]
    assert worker.worker_id in mutual.broker.workers
    worker.stop()
    await asyncio.wait_for(running, PATIENCE)
    assert worker.worker_id not in mutual.broker.workers  # it has said goodbye
    await app.close()


async def test_a_heartbeat_goes_over_tls(mutual: Doors, authority: Authority) -> None:
    shown = authority.issue("worker")
    url = f"{url_of(mutual, authority)}&cert={shown.cert}&key={shown.key}"
    heartbeat = Heartbeat(
        Brokers(broker_addresses(url)), "w7", Ears(lambda: [], lambda _lost: None)
    )
    heartbeat.start()
    await until(lambda: "w7" in mutual.broker.workers)
    await asyncio.to_thread(heartbeat.stop)


def test_names_are_checked_and_nothing_older_than_tls_1_2_is_spoken(authority: Authority) -> None:
    tls = broker_addresses(f"tqs://localhost?ca={authority.file}")[0].tls
    assert tls is not None
    context = tls.context()
    assert context.check_hostname
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
