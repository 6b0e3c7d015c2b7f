"""Certificates to test with, and doors that show them."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import trustme

from taskqueue.broker.broker import Broker
from taskqueue.core.clock import SystemClock
from taskqueue.doors.bounds import RespSettings
from taskqueue.doors.http import RestSettings
from taskqueue.doors.listener import HttpListener
from taskqueue.doors.resp import RespDoor
from taskqueue.doors.rest import rest_app
from taskqueue.doors.tls import Tls
from tests.support.broker import a_broker


class CertificateFiles(NamedTuple):
    """A certificate and its private key, as PEM files."""

    cert: str
    key: str


class Authority:
    """A certificate authority that keeps its files in a folder."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = str(folder / f"{name}.pem")
        self._folder = folder
        self._ca = trustme.CA(organization_name=name)
        self._ca.cert_pem.write_to_path(self.file)

    def issue(
        self, name: str, *identities: str, not_after: datetime | None = None
    ) -> CertificateFiles:
        """Write NAME.pem and NAME-key.pem, in place of what they held.

        For this machine unless other `identities` are told.
        """
        identities = identities or ("localhost", "127.0.0.1")
        # Certificates begin a few years back, so that one can have expired.
        issued = self._ca.issue_cert(
            *identities, not_before=datetime(2020, 1, 1, tzinfo=UTC), not_after=not_after
        )
        files = CertificateFiles(
            str(self._folder / f"{name}.pem"), str(self._folder / f"{name}-key.pem")
        )
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        Path(files.cert).write_bytes(chain)
        issued.private_key_pem.write_to_path(files.key)
        Path(files.key).chmod(0o600)
        return files

    def give_way_to(self, later: "Authority") -> None:
        """Put another authority's certificate in this one's file."""
        Path(self.file).write_bytes(Path(later.file).read_bytes())

    def client_context(self, shown: CertificateFiles | None = None) -> ssl.SSLContext:
        """For a client that trusts this authority alone and shows a certificate, if told one."""
        context = ssl.create_default_context(cafile=self.file)
        if shown is not None:
            context.load_cert_chain(shown.cert, shown.key)
        return context


class Doors(NamedTuple):
    """A broker with its REST and native doors."""

    broker: Broker
    rest: HttpListener
    native: RespDoor


@asynccontextmanager
async def open_doors(folder: Path, tls: Tls | None) -> AsyncIterator[Doors]:
    """Both doors on free ports, on the machine's clock."""
    settings = RestSettings()
    async with a_broker(folder, clock=SystemClock()) as broker:
        rest = HttpListener(rest_app(broker, settings), settings, broker.clock)
        native = RespDoor(broker, RespSettings())
        await rest.start("127.0.0.1", 0, tls)
        await native.start("127.0.0.1", 0, tls)
        chores = asyncio.create_task(broker.upkeep.run())
        try:
            yield Doors(broker, rest, native)
        finally:
            chores.cancel()
            await asyncio.wait([chores])
            await broker.close()
            await asyncio.gather(native.close(), rest.close())
