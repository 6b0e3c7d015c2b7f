"""Migrations of a PostgreSQL database, `tq migrate`, and the rights that brokers need on it."""

import asyncio
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import asyncpg
import pytest

from taskqueue.core.errors import BrokerUnavailable, StorageRefused
from taskqueue.storage.migrations import newest_of
from taskqueue.storage.postgres import schema
from taskqueue.storage.postgres.connections import Connection, connect, database_at
from taskqueue.storage.postgres.engine import PostgresStorage
from tests.support.broker import a_broker_process
from tests.support.door import PATIENCE
from tests.support.ports import free_port
from tests.support.postgres import RELEASES, PostgresServer, a_database, shared_server

ALL: Final = [number for number, _ in schema.MIGRATIONS]
NEXT: Final = newest_of(schema.MIGRATIONS) + 1
BROKEN: Final = "CREATE TABLE half (one integer); INSERT INTO half VALUES (1); SELECT 1 / 0"
REFERENCE: Final = Path(__file__).parents[3] / "docs" / "reference" / "cli.md"
PASSWORD: Final = "hunter2-is-secret"


@pytest.fixture(params=RELEASES)
def server(request: pytest.FixtureRequest) -> Iterator[PostgresServer]:
    with shared_server(request.param) as server:
        yield server


@pytest.fixture
async def dsn(server: PostgresServer) -> AsyncIterator[str]:
    async with a_database(server) as dsn:
        yield dsn


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[Connection]:
    connection = await connect(database_at(dsn), "read-write", "test")
    try:
        yield connection
    finally:
        await connection.close()


async def names(connection: Connection) -> set[str]:
    """Every table in the schema, and the schema itself if it is there."""
    rows = await connection.fetch(
        "SELECT nspname FROM pg_namespace WHERE nspname = 'taskqueue' "
        "UNION ALL SELECT tablename FROM pg_tables WHERE schemaname = 'taskqueue'"
    )
    return {row[0] for row in rows}


def tq(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """What `tq` comes to in a folder without settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TQ_")}
    return subprocess.run(
        [sys.executable, "-m", "taskqueue.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=folder,
        env=kept | environment,
    )


async def test_an_empty_database_gets_everything_once(dsn: str) -> None:
    async with connected(dsn) as connection:
        assert await schema.migrate(connection) == ALL
        assert {"taskqueue", "tasks", "archive", "migrations"} <= await names(connection)
        assert await schema.schema_version(connection) == newest_of(schema.MIGRATIONS)
        assert await schema.migrate(connection) == []


async def test_a_dry_run_says_the_same_and_leaves_nothing(dsn: str) -> None:
    async with connected(dsn) as connection:
        assert await schema.migrate(connection, dry_run=True) == ALL
        assert await names(connection) == set()
        assert await schema.migrate(connection) == ALL


async def test_of_two_at_the_same_time_one_does_it_and_the_other_waits(dsn: str) -> None:
    async with connected(dsn) as holder, connected(dsn) as one, connected(dsn) as other:
        for each in (one, other):
            assert await schema.schema_version(each) == 0  # brokers look before they migrate
        await holder.execute("SELECT pg_advisory_lock($1)", schema.MIGRATION_LOCK)
        both = [asyncio.create_task(schema.migrate(each)) for each in (one, other)]
        async with asyncio.timeout(PATIENCE):
            while await waiting_for_the_lock(holder) < len(both):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await names(holder) == set()
        await holder.execute("SELECT pg_advisory_unlock($1)", schema.MIGRATION_LOCK)
        assert sorted(await asyncio.gather(*both)) == [[], ALL]


async def waiting_for_the_lock(connection: Connection) -> int:
    number: int = await connection.fetchval(
        "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database "
        "WHERE datname = current_database() AND locktype = 'advisory' AND NOT granted"
    )
    return number


async def test_one_that_breaks_off_leaves_nothing_of_all(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, (NEXT, BROKEN)])
    async with connected(dsn) as connection:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await schema.migrate(connection)
        assert await names(connection) == set()


async def test_one_that_breaks_off_leaves_an_older_schema_as_it_was(
    dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(dsn) as connection:
        await schema.migrate(connection)
        before = await names(connection)
        monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, (NEXT, BROKEN)])
        with pytest.raises(asyncpg.DivisionByZeroError):
            await schema.migrate(connection)
        assert await names(connection) == before
        assert await schema.schema_version(connection) == NEXT - 1
        mended = BROKEN.replace("SELECT 1 / 0", "SELECT 1")
        monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS[:-1], (NEXT, mended)])
        assert await schema.migrate(connection) == [NEXT]
        assert await names(connection) == before | {"half"}


async def test_a_newer_schema_is_refused_by_all_who_meet_it(dsn: str, tmp_path: Path) -> None:
    async with connected(dsn) as connection:
        await schema.migrate(connection)
        await connection.execute("INSERT INTO taskqueue.migrations (number) VALUES ($1)", NEXT + 41)
        with pytest.raises(StorageRefused, match=f"has schema {NEXT + 41}"):
            await schema.migrate(connection)
        with pytest.raises(StorageRefused, match=f"has schema {NEXT + 41}"):
            await PostgresStorage(database_at(dsn)).open()
    ran = await asyncio.to_thread(tq, "migrate", "--engine", dsn, folder=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert f"this release knows {NEXT - 1}" in ran.stderr


async def test_a_broker_that_starts_migrates_by_itself(dsn: str) -> None:
    storage = PostgresStorage(database_at(dsn))
    await storage.open()
    await storage.close()
    async with connected(dsn) as connection:
        assert await schema.migrate(connection) == []


async def test_the_command_says_what_it_would_do_and_what_it_did(dsn: str, tmp_path: Path) -> None:
    def migrate(*words: str, **environment: str) -> str:
        ran = tq("migrate", *words, folder=tmp_path, **environment)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    said = await asyncio.to_thread(migrate, "--dry-run", "--engine", dsn)
    assert said == "".join(f"migration {number:04}\twould be carried out\n" for number in ALL)
    said = await asyncio.to_thread(migrate, TQ_ENGINE=dsn)
    assert said == said.replace("would be", "was") != ""
    (tmp_path / "tq.toml").write_text(f'[storage]\nengine = "{dsn}"\n')
    assert await asyncio.to_thread(migrate) == "the schema is up to date\n"


async def test_a_role_without_the_right_is_told_so(server: PostgresServer, tmp_path: Path) -> None:
    async with a_database(server) as dsn, a_role(dsn) as role:
        engine = as_role(dsn, role)
        ran = await asyncio.to_thread(tq, "migrate", "--engine", engine, folder=tmp_path)
        assert ran.returncode == 2
        assert "may not migrate the database: permission denied" in ran.stderr
        with pytest.raises(StorageRefused, match="run tq migrate with a role that may"):
            await PostgresStorage(database_at(engine)).open()


@pytest.mark.parametrize(
    ("address", "code"),
    [
        (f"someone:{PASSWORD}@127.0.0.1:{{port}}/queue", 7),
        (f"someone:{PASSWORD}@127.0.0.1:{{port}},127.0.0.1:{{port}}/queue", 7),
        (f"/queue?host=127.0.0.1&port={{port}}&user=someone&password={PASSWORD}", 7),
        (f"someone:{PASSWORD}@127.0.0.1:{{port}}/queue?sslmode=nonsense", 7),
        (f"someone:{PASSWORD}@127.0.0.1:no-port/queue", 2),
        (f"someone:{PASSWORD}@127.0.0.1:99999/queue", 2),
        (f"someone:{PASSWORD}/x@127.0.0.1:{{port}}/queue", 2),
        (f"someone:{PASSWORD}@[::1/queue", 2),
    ],
)
def test_a_database_that_is_not_there_is_told_without_its_password(
    tmp_path: Path, address: str, code: int
) -> None:
    engine = "postgresql://" + address.format(port=free_port())
    ran = tq("migrate", "--engine", engine, folder=tmp_path)
    assert ran.returncode == code, ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1
    assert "database" in ran.stderr
    assert PASSWORD not in ran.stderr + ran.stdout


def test_without_a_database_it_says_how_to_name_one(tmp_path: Path) -> None:
    ran = tq("migrate", folder=tmp_path)
    assert ran.returncode == 2
    assert "--engine" in ran.stderr


@asynccontextmanager
async def a_role(dsn: str) -> AsyncIterator[str]:
    """A role that may connect, and nothing else."""
    role = f"role_{os.getpid()}"
    async with connected(dsn) as connection:
        await connection.execute(f"CREATE ROLE {role} LOGIN")
        try:
            yield role
        finally:
            await connection.execute(f"DROP ROLE {role}")


def as_role(dsn: str, role: str) -> str:
    """The address for another role."""
    return re.sub("//[^@]*@", f"//{role}@", dsn)


class Roles:
    """The roles of the reference on a database, under names of their own."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.owner = f"owner_{os.getpid()}"
        self.broker = f"broker_{os.getpid()}"

    def written(self) -> list[str]:
        """The SQL of the reference."""
        blocks = re.findall(r"```sql\n(.*?)```", REFERENCE.read_text(), re.DOTALL)
        for name, own in (
            ("taskqueue_owner", self.owner),
            ("taskqueue_broker", self.broker),
            ("DATABASE queue", f"DATABASE {self.dsn.rpartition('/')[2]}"),
        ):
            blocks = [block.replace(name, own) for block in blocks]
        return blocks

    async def set_up(self) -> None:
        """What the reference tells to do."""
        before, after = self.written()
        async with connected(self.dsn) as superuser:
            await superuser.execute(before)
        async with connected(as_role(self.dsn, self.owner)) as owner:
            assert await schema.migrate(owner) == ALL
            await owner.execute(after)

    async def drop(self) -> None:
        """Remove them, and what they own."""
        async with connected(self.dsn) as superuser:
            for role in (self.owner, self.broker):
                await superuser.execute(f"DROP OWNED BY {role} CASCADE")
            for role in (self.owner, self.broker):
                await superuser.execute(f"DROP ROLE {role}")


@pytest.fixture
async def roles(dsn: str) -> AsyncIterator[Roles]:
    roles = Roles(dsn)
    try:
        await roles.set_up()
        yield roles
    finally:
        await roles.drop()


async def test_a_broker_needs_no_more_rights_than_the_reference_gives(
    roles: Roles, tmp_path: Path
) -> None:
    engine = as_role(roles.dsn, roles.broker)
    flags = ("--engine", engine, "--rate-limit", "0")
    with a_broker_process(tmp_path / "broker", *flags) as process:
        body = {"task_type": "work", "payload": "eA=="}
        made = await asyncio.to_thread(asked, process.http, "POST", "/api/v1/tasks", body)
        task = f"/api/v1/tasks/{made['task_id']}"
        await asyncio.to_thread(asked, process.http, "DELETE", task)
        shown = await asyncio.to_thread(asked, process.http, "GET", task)
        assert shown["status"] == "cancelled"
        cluster = await asyncio.to_thread(asked, process.http, "GET", "/api/v1/cluster")
        assert cluster["healthy"] is True
    log = (tmp_path / "broker.log").read_text()
    assert '"level": "warning"' not in log
    assert '"level": "error"' not in log
    storage = PostgresStorage(database_at(engine))
    await storage.open()
    assert await storage.audit() == []
    await storage.close()


def asked(address: str, method: str, path: str, body: object = None) -> Any:
    """What a broker answers."""
    request = urllib.request.Request(
        f"http://{address}{path}",
        method=method,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json"} if body is not None else {},
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        text = answer.read()
    return json.loads(text) if text else None


async def test_that_role_makes_and_drops_the_days(roles: Roles) -> None:
    storage = PostgresStorage(database_at(as_role(roles.dsn, roles.broker)))
    await storage.open()
    try:
        async with connected(as_role(roles.dsn, roles.broker)) as connection:
            days = {name for name in await names(connection) if re.search(r"_d\d+$", name)}
            assert len(days) == 2 * 3
            await storage._keeping.drop_days(connection, 2**62)
            assert not days & await names(connection)
    finally:
        await storage.close()


async def test_that_role_can_do_no_other_harm_to_the_schema(roles: Roles) -> None:
    async with connected(as_role(roles.dsn, roles.broker)) as connection:
        for statement in (
            "DROP TABLE taskqueue.tasks",
            "ALTER TABLE taskqueue.keys ADD COLUMN mine text",
            "INSERT INTO taskqueue.migrations (number) VALUES (99)",
            "DROP SCHEMA taskqueue CASCADE",
            "CREATE TABLE public.mine (one integer)",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)


async def test_the_owner_migrates_what_the_brokers_own(
    roles: Roles, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = PostgresStorage(database_at(as_role(roles.dsn, roles.broker)))
    await storage.open()
    await storage.close()
    wider = (NEXT, "ALTER TABLE archive ADD COLUMN more integer; CREATE TABLE other (one integer)")
    monkeypatch.setattr(schema, "MIGRATIONS", [*schema.MIGRATIONS, wider])
    with pytest.raises(StorageRefused, match="run tq migrate with a role that may"):
        await PostgresStorage(database_at(as_role(roles.dsn, roles.broker))).open()
    async with connected(as_role(roles.dsn, roles.owner)) as owner:
        assert await schema.migrate(owner) == [NEXT]
        await owner.execute(roles.written()[1])
    await storage_opens(as_role(roles.dsn, roles.broker))


async def storage_opens(dsn: str) -> None:
    storage = PostgresStorage(database_at(dsn))
    try:
        await storage.open()
    except BrokerUnavailable as error:
        pytest.fail(error.message)
    await storage.close()
