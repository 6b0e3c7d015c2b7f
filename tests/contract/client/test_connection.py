"""Clients whose connection is cut, whose broker restarts, or that come from several threads."""

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress

import pytest

from taskqueue import (
    AsyncClient,
    BrokerUnavailable,
    OutcomeUnknown,
    Status,
    SyncClient,
    Task,
    TaskStatus,
)
from taskqueue.wire import messages as m
from tests.contract.client.conftest import ConnectTo
from tests.support.broker import claimed
from tests.support.door import NativeDoor, a_cutting_proxy, until
from tests.support.ports import free_port

WHOLE = 1 << 60
HELLO = len(b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n")


@pytest.mark.parametrize("passed", [0, 1, HELLO, HELLO + 1, HELLO + 50, HELLO + 100_000])
async def test_a_submit_that_is_cut_off_on_its_way_there_makes_one_task(
    door: NativeDoor, connect: ConnectTo, passed: int
) -> None:
    async with a_cutting_proxy(door.port, (passed, WHOLE)) as proxy:
        client = connect(f"127.0.0.1:{proxy.port}")
        task_id = await client.submit_task(Task("work", bytes(200_000)))
        page = await client.list_tasks()
    assert [one.task_id for one in page.tasks] == [task_id]
    assert proxy.connections >= 2


@pytest.mark.parametrize("lacking", [1, 20, 42, 43])
async def test_a_submit_whose_answer_is_cut_off_is_repeated_with_its_id(
    door: NativeDoor, connect: ConnectTo, lacking: int
) -> None:
    answer = len(b"$36\r\n\r\n") + 36
    hello = await greeting_size(door)
    cut = hello + answer - lacking
    async with a_cutting_proxy(door.port, (WHOLE, cut), (WHOLE, cut)) as proxy:
        client = connect(f"127.0.0.1:{proxy.port}")
        task_id = await client.submit_task(Task("work", b"x"))
        page = await client.list_tasks()
    assert [one.task_id for one in page.tasks] == [task_id]
    assert proxy.connections == 3


async def test_many_that_are_cut_off_halfway_are_each_made_once(
    door: NativeDoor, connect: ConnectTo
) -> None:
    async with a_cutting_proxy(door.port, (9_000, WHOLE), (WHOLE, 3_000)) as proxy:
        client = connect(f"127.0.0.1:{proxy.port}")
        ids = await client.submit_many(Task("work", b"%d" % number) for number in range(200))
    claims = await claimed(door.broker, count=400)
    assert [one.task.id for one in sorted(claims, key=lambda one: int(one.payload))] == ids


async def test_a_wait_that_is_cut_off_goes_on(door: NativeDoor, connect: ConnectTo) -> None:
    hello = await greeting_size(door)
    async with a_cutting_proxy(
        door.port, (WHOLE, WHOLE), (WHOLE, hello + 10), (WHOLE, hello + 10)
    ) as proxy:
        client = connect(f"127.0.0.1:{proxy.port}")
        task_id = await client.submit_task(Task("work", b"x"))
        waiting = asyncio.create_task(client.wait_for_result(task_id))
        [one] = await claimed(door.broker)
        request = m.CompleteRequest(task_id=task_id, token=one.task.token, result=b"done")
        await door.broker.complete(request)
        assert await waiting == b"done"
    assert proxy.connections == 4


async def test_a_cancel_that_is_cut_off_is_not_repeated_and_says_so(
    door: NativeDoor, connect: ConnectTo
) -> None:
    task_id = await connect(door.url).submit_task(Task("work", b"x"))
    hello = await greeting_size(door)
    async with a_cutting_proxy(door.port, (WHOLE, hello + 1)) as proxy:
        client = connect(f"127.0.0.1:{proxy.port}")
        with pytest.raises(OutcomeUnknown, match="status"):
            await client.cancel(task_id)
        assert (await client.get_status(task_id)).status is Status.CANCELLED


async def test_a_client_survives_a_restart_of_its_broker(
    door: NativeDoor, connect: ConnectTo
) -> None:
    client = connect(door.url)
    first = await client.submit_task(Task("work", b"1"))
    await door.stop()
    submitting = asyncio.create_task(client.submit_task(Task("work", b"2")))
    cancelling = asyncio.create_task(client.cancel(first))
    waiting = asyncio.create_task(client.wait_for_end(first))
    await asyncio.sleep(0)
    await door.start()
    second = await submitting
    await cancelling
    assert (await waiting).status is Status.CANCELLED
    assert (await client.get_status(second)).status is Status.PENDING


async def test_a_wait_survives_a_restart_of_its_broker(
    door: NativeDoor, connect: ConnectTo
) -> None:
    client = connect(door.url)
    task_id = await client.submit_task(Task("work", b"1"))
    connections = door.broker.metrics.connections["native"]
    waiting = asyncio.create_task(client.wait_for_result(task_id))
    await until(lambda: connections() == 2)
    await door.stop()
    await door.start()
    [one] = await claimed(door.broker)
    request = m.CompleteRequest(task_id=task_id, token=one.task.token, result=b"done")
    await door.broker.complete(request)
    assert await waiting == b"done"


async def test_where_nobody_listens_the_error_names_the_address(connect: ConnectTo) -> None:
    address = f"127.0.0.1:{free_port()}"
    client = connect(address, timeout=0.1)
    for asked in (client.stats(), client.submit_task(Task("work", b"")), client.cancel("x")):
        with pytest.raises(BrokerUnavailable, match=address):
            await asked
    with pytest.raises(BrokerUnavailable, match=address):
        await client.wait_for_result("x", timeout=0.1)


async def test_a_broker_that_is_silent_is_not_waited_for_longer_than_the_timeout(
    connect: ConnectTo,
) -> None:
    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError):  # a client that gave up as it came
            await reader.readuntil(b"3\r\n")
            writer.write(b"+OK\r\n")
            await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    client = connect(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout=0.5)
    for asked in (client.stats(), client.cancel("x"), client.wait_for_result("x", timeout=0.1)):
        with pytest.raises(OutcomeUnknown):
            await asked
    await client.close()
    server.close()


async def test_something_else_than_a_broker_is_told_apart(connect: ConnectTo) -> None:
    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(10)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(listen, "127.0.0.1", 0)
    client = connect(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", timeout=0.1)
    with pytest.raises(BrokerUnavailable):
        await client.stats()
    server.close()


async def test_threads_share_one_client(door: NativeDoor) -> None:
    def work(client: SyncClient, number: int) -> list[str]:
        ids = [client.submit_task(Task("work", b"%d" % number)) for _ in range(20)]
        assert [client.get_status(one).task_id for one in ids] == ids
        return ids

    def everything() -> list[str]:
        with SyncClient(door.url) as client, ThreadPoolExecutor(8) as threads:
            return [one for ids in threads.map(work, [client] * 8, range(8)) for one in ids]

    ids = await asyncio.to_thread(everything)
    claims = await claimed(door.broker, count=200)
    assert {one.task.id for one in claims} == set(ids)
    assert len(ids) == 160


async def test_a_closed_client_can_be_used_again(door: NativeDoor, connect: ConnectTo) -> None:
    client = connect(door.url)
    await client.health()
    await client.close()
    await client.close()
    assert (await client.health()).status == "healthy"


async def test_a_client_can_be_used_from_one_event_loop_after_another(door: NativeDoor) -> None:
    client = AsyncClient(door.url)

    async def work() -> TaskStatus:
        try:
            return await client.get_status(await client.submit_task(Task("work", b"")))
        finally:
            await client.close()

    for _ in range(2):
        status = await asyncio.to_thread(asyncio.run, work())
        assert status.status is Status.PENDING


async def test_closing_tells_a_thread_that_still_waits(door: NativeDoor) -> None:
    client = SyncClient(door.url)
    task_id = await asyncio.to_thread(client.submit_task, Task("work", b""))
    connections = door.broker.metrics.connections["native"]
    outcome: list[BaseException] = []

    def wait() -> None:
        try:
            client.wait_for_result(task_id, 3600)
        except CancelledError as error:
            outcome.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    await until(lambda: connections() == 2)
    await asyncio.to_thread(client.close)
    await asyncio.to_thread(thread.join)
    assert len(outcome) == 1
    await until(lambda: connections() == 0)


FORKING = """
import gc, os, sys
from taskqueue import SyncClient, Task

client = SyncClient(sys.argv[1])
client.submit_task(Task("work", b"before"))
child = os.fork()
if child == 0:
    gc.collect()
    client.submit_task(Task("work", b"child"))
    client.close()
    os._exit(0)
client.submit_task(Task("work", b"parent"))
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
client.submit_task(Task("work", b"after"))
client.close()
"""


async def test_a_forked_process_uses_the_client_it_has_from_its_parent(door: NativeDoor) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKING, door.url]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
    claims = await claimed(door.broker, count=10)
    assert {one.payload for one in claims} == {b"before", b"child", b"parent", b"after"}
    assert len(claims) == 4


async def greeting_size(door: NativeDoor) -> int:
    """How many bytes the broker answers to HELLO 3."""
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n*1\r\n$4\r\nQUIT\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return len(answer.removesuffix(b"+OK\r\n"))
