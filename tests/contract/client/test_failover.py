"""Clients that know several brokers, and go on at another one when theirs fails."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from taskqueue import AuthenticationFailed, BrokerUnavailable, OutcomeUnknown, Status, Task
from taskqueue.client.address import BrokerAddress
from taskqueue.client.link import Backoff, Link, NobodyAnswers
from taskqueue.core.errors import InternalError
from taskqueue.wire import messages as m
from tests.contract.client.conftest import ConnectTo
from tests.support.broker import claimed
from tests.support.door import NativeDoor, until
from tests.support.ways import Way, some_ways, url_of, used


@pytest.fixture
async def ways(door: NativeDoor) -> AsyncIterator[list[Way]]:
    async with some_ways(door.port) as ways:
        yield ways


def addresses_of(ways: list[Way]) -> list[BrokerAddress]:
    return [BrokerAddress("127.0.0.1", way.port) for way in ways]


def other(ways: list[Way], one: Way) -> Way:
    return next(way for way in ways if way is not one)


async def test_one_broker_that_is_down_is_passed_over(connect: ConnectTo, ways: list[Way]) -> None:
    await ways[0].shut()
    for _ in range(10):
        assert (await connect(url_of(ways)).health()).status == "healthy"


async def test_clients_spread_over_the_brokers(connect: ConnectTo, ways: list[Way]) -> None:
    for _ in range(40):
        await connect(url_of(ways)).health()
    assert all(way.connections for way in ways)
    assert sum(way.connections for way in ways) == 40


async def test_a_client_stays_at_one_broker(connect: ConnectTo, ways: list[Way]) -> None:
    client = connect(url_of(ways))
    task_id = await client.submit_task(Task("work", b"x"))
    for _ in range(20):
        await client.get_status(task_id)
    waiting = [asyncio.create_task(client.wait_for_end(task_id)) for _ in range(5)]
    await client.cancel(task_id)
    await asyncio.wait(waiting)
    assert other(ways, used(ways)).connections == 0


async def test_a_client_goes_on_at_another_broker_and_back(
    connect: ConnectTo, ways: list[Way]
) -> None:
    client = connect(url_of(ways))
    ids = [await client.submit_task(Task("work", b"1"))]
    for _ in range(4):
        lost = used(ways)
        await lost.shut()
        ids.append(await client.submit_task(Task("work", b"2")))
        assert used(ways) is other(ways, lost)
        await lost.open()
    assert {one.task_id for one in (await client.list_tasks()).tasks} == set(ids)
    assert len(set(ids)) == 5


async def test_a_wait_goes_on_at_another_broker(
    door: NativeDoor, connect: ConnectTo, ways: list[Way]
) -> None:
    client = connect(url_of(ways))
    task_id = await client.submit_task(Task("work", b"x"))
    waiting = asyncio.create_task(client.wait_for_result(task_id))
    lost = used(ways)
    await until(lambda: lost.carried == 2)
    await lost.shut()
    await until(lambda: other(ways, lost).carried >= 1)
    [one] = await claimed(door.broker)
    request = m.CompleteRequest(task_id=task_id, token=one.task.token, result=b"done")
    await door.broker.complete(request)
    assert await waiting == b"done"


async def test_a_broker_that_loses_its_database_is_left_for_good(
    connect: ConnectTo, ways: list[Way]
) -> None:
    ways[0].is_without_database = True
    clients = [connect(url_of(ways)) for _ in range(10)]
    for client in clients:
        task_id = await client.submit_task(Task("work", b"x"))
        await client.cancel(task_id)
        assert (await client.wait_for_end(task_id)).status is Status.CANCELLED
    assert 1 <= ways[0].refused <= 10
    assert ways[1].connections == 20


async def test_where_all_brokers_lost_their_database_the_error_says_so(
    connect: ConnectTo, ways: list[Way]
) -> None:
    for way in ways:
        way.is_without_database = True
    client = connect(url_of(ways), timeout=2)
    with pytest.raises(BrokerUnavailable, match="The database was lost") as caught:
        await client.submit_task(Task("work", b"x"))
    assert not isinstance(caught.value, OutcomeUnknown)
    assert all(way.refused for way in ways)


async def test_where_nobody_answers_the_error_names_all_addresses_and_no_key(
    connect: ConnectTo, ways: list[Way]
) -> None:
    for way in ways:
        await way.shut()
    client = connect(f"tq://secret@{url_of(ways)}", timeout=0.2)
    for asked in (client.health(), client.cancel("x"), client.wait_for_result("x", 0.1)):
        with pytest.raises(BrokerUnavailable) as caught:
            await asked
        assert all(way.url in caught.value.message for way in ways)
        assert "secret" not in caught.value.message
        assert not isinstance(caught.value, OutcomeUnknown)


async def test_a_submit_to_a_broker_that_falls_silent_is_repeated_at_another(
    connect: ConnectTo, ways: list[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue.client.connection.SILENCE_SECONDS", 0.1)
    client = connect(url_of(ways))
    await client.health()
    silent = used(ways)
    silent.swallows_answers = True
    task_id = await client.submit_task(Task("work", b"x"))
    assert [one.task_id for one in (await client.list_tasks()).tasks] == [task_id]
    assert other(ways, silent).connections == 1


async def test_a_wait_at_a_broker_that_falls_silent_goes_on_at_another(
    door: NativeDoor, connect: ConnectTo, ways: list[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue.client.aio.LONGEST_WAIT_SLICE", 0.05)
    monkeypatch.setattr("taskqueue.client.aio.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("taskqueue.client.connection.CONNECT_SECONDS", 600)
    monkeypatch.setattr("taskqueue.client.connection.SILENCE_SECONDS", 600)
    client = connect(url_of(ways))
    ended = await client.submit_task(Task("work", b"x"))
    await client.cancel(ended)
    await client.wait_for_end(ended)  # the connection that waits is open now
    task_id = await client.submit_task(Task("work", b"x"))
    silent = used(ways)
    silent.swallow()
    waiting = asyncio.create_task(client.wait_for_result(task_id))
    await until(lambda: other(ways, silent).carried >= 1)
    [one] = await claimed(door.broker)
    request = m.CompleteRequest(task_id=task_id, token=one.task.token, result=b"done")
    await door.broker.complete(request)
    assert await waiting == b"done"


async def test_a_broker_that_swallows_what_it_is_sent_costs_a_bounded_time(
    connect: ConnectTo, ways: list[Way], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("taskqueue.client.connection.CONNECT_SECONDS", 0.1)
    ways[0].swallow()
    for _ in range(10):
        assert (await connect(url_of(ways)).health()).status == "healthy"
    assert ways[0].connections > 0


async def test_a_call_that_could_not_wait_for_a_broker_lets_the_next_one_try_another(
    connect: ConnectTo, ways: list[Way]
) -> None:
    ways[0].swallow()
    failures = 0
    for _ in range(8):
        client = connect(url_of(ways), timeout=0.5)
        try:
            await client.health()
        except BrokerUnavailable:
            failures += 1
            assert (await client.health()).status == "healthy"
    assert failures == ways[0].connections


async def test_a_cancel_that_is_cut_off_is_not_repeated_at_another_broker(
    door: NativeDoor, connect: ConnectTo, ways: list[Way]
) -> None:
    client = connect(url_of(ways))
    task_id = await client.submit_task(Task("work", b"x"))
    lost = used(ways)
    lost.hold_answers()
    cancelling = asyncio.create_task(client.cancel(task_id))
    await until(lambda: lost.held == 1)
    await lost.shut()
    with pytest.raises(OutcomeUnknown, match=lost.url):
        await cancelling
    assert other(ways, lost).connections == 0
    assert (await client.get_status(task_id)).status is Status.CANCELLED


async def test_what_is_under_way_at_a_broker_that_is_left_is_still_answered(
    ways: list[Way],
) -> None:
    link = Link(addresses_of(ways))
    connection = await link.shared()
    left = used(ways)
    left.hold_answers()
    answer = connection.send(b"PING")
    await until(lambda: left.held == 1)
    link.leave(connection)
    assert (await link.shared()).address != connection.address
    left.let_go()
    assert await answer == b"PONG"
    await until(lambda: left.carried == 0)
    link.close()


async def test_closing_hangs_up_at_a_broker_that_was_left_too(ways: list[Way]) -> None:
    link = Link(addresses_of(ways))
    connection = await link.shared()
    left = used(ways)
    left.hold_answers()
    answer = connection.send(b"PING")
    link.leave(connection)
    link.close()
    with pytest.raises(ConnectionError):
        await answer
    await until(lambda: left.carried == 0)


async def test_idle_connections_to_a_broker_that_is_left_are_closed(ways: list[Way]) -> None:
    link = Link(addresses_of(ways))
    async with link.blocking() as connection, link.blocking() as busy:
        pass
    left = used(ways)
    assert left.carried == 2
    async with link.blocking() as busy:
        link.leave(connection)
        assert await busy.send(b"PING") == b"PONG"
    await until(lambda: left.carried == 0)
    link.close()


async def test_without_another_broker_nothing_is_left(ways: list[Way]) -> None:
    link = Link(addresses_of(ways[:1]))
    connection = await link.shared()
    async with link.blocking() as idle:
        pass
    link.leave(connection)
    assert await link.shared() is connection
    async with link.blocking() as again:
        assert again is idle
    link.close()


def test_each_of_the_other_brokers_is_tried_at_once_and_then_there_are_pauses() -> None:
    backoff = Backoff(others=2)
    pauses = [backoff.next_pause(BrokerUnavailable("")) for _ in range(5)]
    assert pauses[:2] == [0, 0]
    assert all(pauses[2:])


@pytest.mark.parametrize("error", [NobodyAnswers("all were tried"), InternalError("everywhere")])
def test_what_another_broker_does_no_better_is_not_tried_again_at_once(error: Exception) -> None:
    backoff = Backoff(others=2)
    assert backoff.next_pause(error)
    assert backoff.next_pause(BrokerUnavailable(""))


async def test_a_wrong_key_is_told_and_not_tried_elsewhere(connect: ConnectTo) -> None:
    asked = 0

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await reader.read(100)
        writer.write(b"-AUTHENTICATION_FAILED The key is not valid\r\n")
        await reader.read()
        writer.close()

    servers = [await asyncio.start_server(refuse, "127.0.0.1", 0) for _ in range(2)]
    url = ",".join(f"127.0.0.1:{one.sockets[0].getsockname()[1]}" for one in servers)
    with pytest.raises(AuthenticationFailed):
        await connect(f"tq://key@{url}").health()
    assert asked == 1
    for server in servers:
        server.close()
