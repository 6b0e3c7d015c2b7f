"""A PgBouncer in transaction mode, with fewer connections to the server than it has clients."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep
from typing import Final
from urllib.parse import urlsplit

from tests.support.ports import free_port
from tests.support.postgres import NOBODY, TOOLS, USER

PATIENCE: Final = 20.0
"""Seconds within which it must answer."""

FLAG: Final = "prepared_statements=false"


class Pooler:
    """A pooler on loopback in front of one server."""

    def __init__(self, folder: Path, server_port: int, connections: int) -> None:
        self.port = free_port()
        self.log = folder / "pgbouncer.log"
        self._settings = folder / "pgbouncer.ini"
        self._settings.write_text(
            "[databases]\n"
            f"* = host=127.0.0.1 port={server_port} user={USER}\n"
            "[pgbouncer]\n"
            "listen_addr = 127.0.0.1\n"
            f"listen_port = {self.port}\n"
            "unix_socket_dir =\n"
            "auth_type = any\n"
            "pool_mode = transaction\n"
            f"default_pool_size = {connections}\n"
            "max_client_conn = 200\n"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def dsn(self, direct: str) -> str:
        """The address, through the pooler, of a database on its server."""
        parts = urlsplit(direct)
        netloc = f"{parts.username}@127.0.0.1:{self.port}"
        return parts._replace(netloc=netloc, query=FLAG).geturl()

    def start(self) -> None:
        """Start and wait until it answers."""
        program = shutil.which("pgbouncer") or str(TOOLS / "bin" / "pgbouncer")
        is_root = os.geteuid() == 0
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, str(self._settings)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # It refuses to run as root, as PostgreSQL does.
                user=NOBODY if is_root else None,
                group=NOBODY if is_root else None,
                extra_groups=[] if is_root else None,
            )
        give_up = monotonic() + PATIENCE
        while monotonic() < give_up and self._process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            sleep(0.02)
        raise RuntimeError(f"PgBouncer does not answer: {self.log.read_text()[-500:]}")

    def stop(self) -> None:
        """End it at once, as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextmanager
def a_pooler(server_port: int, connections: int) -> Iterator[Pooler]:
    """A pooler for the block, which lends so many connections for each database."""
    with TemporaryDirectory(prefix="taskqueue-pgbouncer-") as folder:
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        pooler = Pooler(Path(folder), server_port, connections)
        pooler.start()
        try:
            yield pooler
        finally:
            pooler.stop()
