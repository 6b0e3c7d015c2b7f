"""A move while the broker works, and the switch as workers and producers see it."""

import asyncio
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest

from taskqueue.storage.postgres.connections import database_at
from taskqueue.storage.postgres.engine import PostgresStorage
from tests.move.commands import a_move, tq_move
from tests.move.filling import Folder
from tests.support.broker import BrokerProcess
from tests.support.door import PATIENCE
from tests.support.resp import RespClient

STILL_RUNNING: Final = 6
FREE: Final = ("--rate-limit", "0")


@asynccontextmanager
async def a_client(broker: BrokerProcess, folder: Folder) -> AsyncIterator[RespClient]:
    """A connection to a broker, with a key that the embedded one made."""
    host, _, port = broker.native.rpartition(":")
    client = RespClient(*await asyncio.open_connection(host, int(port)))
    try:
        assert await client.ask("AUTH", folder.secrets[0]) == b"OK"
        yield client
    finally:
        client.hang_up()


@pytest.fixture
def old(folder: Folder) -> BrokerProcess:
    """The embedded broker, which does not run yet."""
    return BrokerProcess(folder.path, *FREE)


@pytest.fixture
def new(tmp_path: Path, dsn: str) -> BrokerProcess:
    """A broker on the database, which does not run yet."""
    return BrokerProcess(tmp_path / "unused", "--engine", dsn, *FREE)


async def told(process: subprocess.Popen[str], word: str) -> str:
    """The line on stderr that has a word."""
    assert process.stderr is not None
    async with asyncio.timeout(PATIENCE):
        while word not in (line := await asyncio.to_thread(process.stderr.readline)):
            assert line, f"the move ended without {word!r}"
    return line


async def test_what_happens_during_the_move_is_moved_too(
    folder: Folder, dsn: str, old: BrokerProcess, new: BrokerProcess
) -> None:
    await asyncio.to_thread(old.start)
    try:
        with a_move(folder, dsn, "--wait", "60") as process:
            async with a_client(old, folder) as client:
                early = [await client.submit() for _ in range(20)]
                [done, held] = await client.claim("COUNT", "2")
                await told(process, "still uses")
                late = [await client.submit(payload=b"y" * 500) for _ in range(20)]
                await client.ask("TQ.COMPLETE", *done[:2], "RESULT", "by the old one")
                await client.ask("TQ.CANCEL", early[10])
            await asyncio.to_thread(old.stop)
            _, messages = await asyncio.to_thread(process.communicate)
            assert process.returncode == 0, messages
        await asyncio.to_thread(new.start)
        async with a_client(new, folder) as client:
            assert await client.ask("TQ.COMPLETE", *held[:2]) == b"completed"
            statuses = [(await client.task(task))["status"] for task in (*early, *late)]
        assert early[:2] == [done[0].decode(), held[0].decode()]
        assert statuses == [
            *(b"completed", b"completed"),
            *(b"cancelled" if at == 10 else b"pending" for at in range(2, 40)),
        ]
    finally:
        await asyncio.to_thread(old.stop)
        await asyncio.to_thread(new.stop)
    await require_sound(dsn)


async def test_without_a_wait_the_rest_is_left_to_a_second_run(
    folder: Folder, dsn: str, old: BrokerProcess, new: BrokerProcess
) -> None:
    """The broker is killed, so that its write-ahead log is there when the second run begins."""
    await asyncio.to_thread(old.start)
    try:
        async with a_client(old, folder) as client:
            before = await client.submit()
            [[task_id, token, *_]] = await client.claim()
            ran = await asyncio.to_thread(tq_move, folder, dsn)
            assert (ran.returncode, ran.stdout) == (STILL_RUNNING, "")
            assert "stop it and run the same command again" in ran.stderr
            after = await client.submit()
            old.kill()
        ran = await asyncio.to_thread(tq_move, folder, dsn)
        assert ran.returncode == 0, ran.stderr
        await asyncio.to_thread(new.start)
        async with a_client(new, folder) as client:
            assert task_id.decode() == before
            assert await client.ask("TQ.COMPLETE", task_id, token) == b"completed"
            [[next_id, next_token, *_]] = await client.claim()
            assert (next_id.decode(), next_token) == (after, 1)
    finally:
        old.kill()
        await asyncio.to_thread(new.stop)
    await require_sound(dsn)


async def test_a_broker_that_starts_meanwhile_is_refused(
    folder: Folder, dsn: str, old: BrokerProcess
) -> None:
    with a_move(folder, dsn) as process:
        await told(process, "copied")
        process.send_signal(signal.SIGSTOP)
        with pytest.raises(AssertionError, match="is in use by another"):
            await asyncio.to_thread(old.start)
        process.send_signal(signal.SIGCONT)
        await asyncio.to_thread(process.communicate)
        assert process.returncode == 0


async def require_sound(dsn: str) -> None:
    """Counters and rows agree."""
    storage = PostgresStorage(database_at(dsn))
    await storage.open()
    try:
        assert await storage.audit() == []
    finally:
        await storage.close()
