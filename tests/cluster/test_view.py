"""What a broker and `tq cluster` show of a real primary with a real standby, and of their loss."""

import asyncio
import json
import os
import subprocess
import sys
import urllib.error
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, NamedTuple

import asyncpg
import pytest

from taskqueue.client.aio import AsyncClient
from taskqueue.client.task import Task
from taskqueue.core.errors import BrokerUnavailable
from taskqueue.core.ids import new_task_id
from taskqueue.core.task import Status
from taskqueue.wire.cluster import ClusterReply
from tests.support.broker import BrokerProcess, a_broker_process
from tests.support.door import PATIENCE
from tests.support.ports import free_port
from tests.support.postgres import USER, PostgresServer, a_server

RELEASE: Final = "16"
NAME: Final = "second"
"""What the standby calls itself."""


def tq(broker: BrokerProcess, *words: str) -> "subprocess.CompletedProcess[str]":
    """What `tq cluster` comes to."""
    return subprocess.run(
        [sys.executable, "-m", "taskqueue.cli.main", "cluster", *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"TQ_URL": broker.native},
    )


class Standby(PostgresServer):
    """A server that follows another one."""

    def follow(self, primary: PostgresServer) -> None:
        """Make the data folder out of the primary's."""
        folder = self.folder / "data"
        self.folder.mkdir()
        if os.geteuid() == 0:
            os.chown(self.folder, *_owner_of(primary.folder))
        self._run("pg_basebackup", "-D", str(folder), "-d", primary.dsn(), "-R", "-c", "fast", "-N")
        with (folder / "postgresql.conf").open("a") as file:
            file.write(f"port = {self.port}\nunix_socket_directories = '{self.folder}'\n")
            file.write(f"cluster_name = '{NAME}'\nwal_receiver_timeout = 1s\n")


def _owner_of(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_uid, found.st_gid


class Place(NamedTuple):
    """A broker on a primary with a standby that confirms each commit."""

    broker: BrokerProcess
    client: AsyncClient
    primary: PostgresServer
    standby: Standby

    async def until(self, is_so: Callable[[ClusterReply], bool]) -> ClusterReply:
        """The view as soon as it is as told."""
        async with asyncio.timeout(PATIENCE):
            while not is_so(view := await self.client.cluster()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        return view

    async def tq(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """What `tq cluster` comes to."""
        return await asyncio.to_thread(tq, self.broker, *words)


@contextmanager
def two_servers() -> Iterator[tuple[PostgresServer, Standby]]:
    """A primary, and a standby that confirms each commit."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)  # the database's user passes through to its own folders
        with a_server(RELEASE, folder / "first") as primary:
            standby = Standby(RELEASE, folder / "second", free_port())
            standby.follow(primary)
            standby.start()
            try:
                yield primary, standby
            finally:
                standby.stop("immediate")


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    with two_servers() as (primary, standby):
        connection = await asyncpg.connect(primary.dsn())
        await connection.execute(f"ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 ({NAME})'")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        flags = ("--engine", f"postgresql://{USER}@{hosts}/postgres", "--rate-limit", "0")
        with a_broker_process(tmp_path / "broker", *flags) as broker:
            async with AsyncClient(broker.native, timeout=PATIENCE) as client:
                yield Place(broker, client, primary, standby)


def test_an_embedded_broker_is_alone(tmp_path: Path) -> None:
    with a_broker_process(tmp_path / "data") as broker:
        ran = tq(broker)
    assert ran.returncode == 0, ran.stderr
    head, brokers = ran.stdout.split("\n\n")
    assert head.splitlines()[:2] == ["status\thealthy", "leader\t1"]
    assert brokers.split("\t")[:2] == ["1", broker.native]


async def test_a_standby_is_shown_with_its_lag(place: Place) -> None:
    await place.client.submit_task(Task("work", b"x"))
    view = await place.until(lambda view: bool(view.brokers[0].address) and view.healthy)
    assert (view.quorum, view.is_leader, view.complaint) == (1, True, None)
    first, second = view.database
    assert (first.role, first.lag_bytes) == ("primary", None)
    assert (second.name.split()[0], second.role) == (NAME, "quorum standby")
    assert second.state == "streaming"
    assert second.lag_bytes is not None
    assert second.lag_bytes >= 0

    ran = await place.tq()
    assert ran.returncode == 0, ran.stderr
    head, brokers, database = [part.splitlines() for part in ran.stdout.split("\n\n")]
    assert head == ["status\thealthy", "leader\t1", f"term\t{view.term}", "quorum\t1"]
    [row] = [line.split("\t") for line in brokers]
    assert row[:3] == ["1", place.broker.native, version("taskqueue")]
    assert row[4] == "0 s"
    assert row[-1] == "leader, asked"
    assert [line.split("\t")[1] for line in database] == ["primary", "quorum standby"]
    shown = json.loads((await place.tq("-o", "json")).stdout)
    assert (shown["term"], shown["database"][1]["role"]) == (view.term, "quorum standby")
    assert (await place.tq("-o", "id")).stdout == "1\n"


async def test_without_its_standby_it_is_degraded_until_that_is_back(place: Place) -> None:
    task_id = await place.client.submit_task(Task("work", b"x"))
    await asyncio.to_thread(place.standby.stop)
    try:
        view = await place.until(lambda view: "1 synchronous standbys" in str(view.complaint))
        assert not view.healthy
        assert [node.role for node in view.database] == ["primary"]
        assert not (await place.client.health()).cluster_healthy
        with pytest.raises(urllib.error.HTTPError) as degraded:
            await asyncio.to_thread(place.broker.health)
        assert degraded.value.code == 503
        degraded.value.close()
        ran = await place.tq()
        assert ran.returncode == 1
        assert ran.stdout.startswith("status\tdegraded\n")
        assert "1 synchronous standbys" in ran.stderr
        assert json.loads((await place.tq("-o", "json")).stdout)["healthy"] is False
        async with AsyncClient(place.broker.native, timeout=0.5) as impatient:
            with pytest.raises(BrokerUnavailable):
                await impatient.submit_task(Task("work", b"y"))
        assert (await place.client.get_status(task_id)).status is Status.PENDING
    finally:
        await asyncio.to_thread(place.standby.start)
    await place.until(lambda view: view.healthy)
    await place.client.submit_task(Task("work", b"z"))


async def test_without_its_primary_it_still_shows_what_there_is(place: Place) -> None:
    task_id = await place.client.submit_task(Task("work", b"x"))
    await place.until(lambda view: len(view.database) == 2)
    await asyncio.to_thread(place.primary.stop, "immediate")
    try:
        async with asyncio.timeout(PATIENCE):
            while (await place.client.health()).cluster_healthy:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await place.client.get_status(task_id)).status is Status.PENDING
        view = await place.until(lambda view: not view.healthy)
        assert "primary" in str(view.complaint)
        assert [broker.is_me for broker in view.brokers] == [True]
        async with AsyncClient(place.broker.native, timeout=0.5) as impatient:
            with pytest.raises(BrokerUnavailable):  # the standby is not the one to say that
                await impatient.get_status(new_task_id())
    finally:
        await asyncio.to_thread(place.primary.start)
    await place.until(lambda view: view.healthy)
