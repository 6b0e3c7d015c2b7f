"""Clients whose broker falls silent: the link is up, and nothing comes through it."""

import asyncio
import subprocess
import sys

import pytest

from taskqueue import AsyncClient, BrokerUnavailable, OutcomeUnknown, Task
from taskqueue.wire import messages as m
from tests.contract.client.conftest import ConnectTo
from tests.support.broker import claimed
from tests.support.door import NativeDoor, until
from tests.support.hole import a_hole


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskqueue.client.connection.SILENCE_SECONDS", 0.05)


@pytest.mark.usefixtures("impatient")
async def test_a_submit_whose_answer_vanishes_is_repeated_with_its_id(
    door: NativeDoor, connect: ConnectTo
) -> None:
    async with a_hole(door.port) as hole:
        client = connect(hole.url)
        await client.health()
        hole.swallows_answers = True
        submitting = asyncio.create_task(client.submit_task(Task("work", b"x")))
        await until(lambda: hole.connections == 3)
        hole.heal()
        task_id = await submitting
        page = await client.list_tasks()
    assert [one.task_id for one in page.tasks] == [task_id]


@pytest.mark.usefixtures("impatient")
async def test_a_wait_whose_answer_vanishes_goes_on(
    door: NativeDoor, connect: ConnectTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue.client.aio.LONGEST_WAIT_SLICE", 0.02)
    async with a_hole(door.port) as hole:
        client = connect(hole.url)
        task_id = await client.submit_task(Task("work", b"x"))
        waiting = asyncio.create_task(client.wait_for_result(task_id))
        await until(lambda: hole.connections == 2)
        hole.swallow()
        [one] = await claimed(door.broker)
        request = m.CompleteRequest(task_id=task_id, token=one.task.token, result=b"done")
        await door.broker.complete(request)
        await until(lambda: hole.connections > 2)
        hole.heal()
        assert await waiting == b"done"


async def test_what_was_sent_and_not_answered_in_time_is_unknown(
    door: NativeDoor, connect: ConnectTo
) -> None:
    async with a_hole(door.port) as hole:
        client = connect(hole.url, timeout=0.1)
        await client.health()
        hole.swallow()
        with pytest.raises(OutcomeUnknown):
            await client.submit_task(Task("work", b"x"))


async def test_what_was_never_sent_is_not_unknown(door: NativeDoor, connect: ConnectTo) -> None:
    async with a_hole(door.port) as hole:
        hole.swallow()
        client = connect(hole.url, timeout=0.1)
        with pytest.raises(BrokerUnavailable, match="could not be reached") as caught:
            await client.submit_task(Task("work", b"x"))
    assert not isinstance(caught.value, OutcomeUnknown)


async def test_a_wait_ends_soon_after_its_time_though_nothing_is_heard(
    door: NativeDoor, connect: ConnectTo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue.client.aio.ANSWER_SECONDS", 0.05)
    async with a_hole(door.port) as hole:
        client = connect(hole.url)
        task_id = await client.submit_task(Task("work", b"x"))
        hole.swallow()
        with pytest.raises(BrokerUnavailable):
            await asyncio.wait_for(client.wait_for_result(task_id, timeout=0.05), 10)


async def test_a_broker_that_is_full_is_tried_again(door: NativeDoor, connect: ConnectTo) -> None:
    refused = 0

    async def refuse_twice(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal refused
        if refused == 2:
            await hole.serve(reader, writer)
            return
        refused += 1
        writer.write(b"-ERR max number of clients reached\r\n")
        writer.close()

    async with a_hole(door.port) as hole:
        server = await asyncio.start_server(refuse_twice, "127.0.0.1", 0)
        client = connect(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert (await client.health()).status == "healthy"
        assert refused == 2
        server.close()


async def test_a_broker_that_hangs_up_unasked_is_connected_to_anew(
    door: NativeDoor, connect: ConnectTo, caplog: pytest.LogCaptureFixture
) -> None:
    asked = 0

    async def hang_up_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        if asked > 1:
            await hole.serve(reader, writer)
            return
        await reader.readuntil(b"3\r\n")
        writer.write(b"%0\r\n-ERR you have been idle\r\n")
        await reader.read()
        writer.close()

    async with a_hole(door.port) as hole:
        server = await asyncio.start_server(hang_up_once, "127.0.0.1", 0)
        client = connect(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        assert (await client.health()).status == "healthy"
        server.close()
    assert (asked, caplog.records) == (2, [])


async def test_more_than_one_slice_of_many_keeps_their_order(
    door: NativeDoor, client: AsyncClient
) -> None:
    ids = await client.submit_many(Task("work", b"%d" % number) for number in range(1_201))
    found: list[str] = []
    while claims := await claimed(door.broker, count=500):
        found += [one.task.id for one in claims]
    assert found == ids


PARENT_AND_CHILD = """
import os, sys
from taskqueue import SyncClient, Task
client = SyncClient(sys.argv[1], timeout=10)
task_id = client.submit_task(Task("work", b"x"))
if (child := os.fork()) == 0:
    client.close()
    os._exit(0)
os.waitpid(child, 0)
print(client.get_status(task_id).status)
"""


async def test_a_forked_process_that_closes_the_client_leaves_its_parents_alone(
    door: NativeDoor,
) -> None:
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-W", "ignore", "-c", PARENT_AND_CHILD, door.url],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("pending\n", "")
