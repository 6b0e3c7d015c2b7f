"""Connections that end in the middle: after each byte of each command, and of each answer."""

from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import hiredis
import pytest

from taskqueue.core.ids import new_task_id
from tests.hardening.attacker import a_native_client, all_of, answer_to
from tests.hardening.bystander import memory_of, unharmed
from tests.support.broker import BrokerProcess, a_broker_process
from tests.support.door import a_cutting_proxy, until
from tests.support.resp import RespClient, Word, a_resp_house, as_dict, words_of
from tests.support.rest import TASKS, a_rest_client, parsed

MIB = 1024 * 1024

WHOLE = 1 << 60
"""More bytes than there are: no cut."""


class Step(NamedTuple):
    """A command about a task, and what it comes to if it is carried out once or more than once."""

    words: Callable[[str], tuple[Word, ...]]
    answers: tuple[Any, ...]
    status: str
    retry_count: int = 0
    before: str = "claimed"


def about(name: str, *rest: Word) -> Callable[[str], tuple[Word, ...]]:
    """A word about a claim."""
    return lambda task_id: (name, task_id, 1, *rest)


STEPS = {
    "submit": Step(
        lambda task_id: ("TQ.SUBMIT", "work", "x", "ID", task_id), (), "pending", before="nothing"
    ),
    "complete": Step(about("TQ.COMPLETE", "RESULT", "done"), (b"completed",), "completed"),
    "fail": Step(about("TQ.FAIL", "no"), (b"failed",), "failed", retry_count=1),
    "release": Step(about("TQ.RELEASE"), (b"pending",), "pending"),
    "progress": Step(about("TQ.PROGRESS", "0.5"), (b"in_progress",), "in_progress"),
    "beat": Step(lambda task_id: ("TQ.BEAT", "w1", task_id, 1), (), "in_progress"),
    "leave": Step(lambda _task_id: ("TQ.LEAVE", "w1"), (0, 1), "pending"),
    "cancel": Step(
        lambda task_id: ("TQ.CANCEL", task_id),
        (b"OK", "INVALID_STATUS"),
        "cancelled",
        before="submitted",
    ),
    "retry": Step(
        lambda task_id: ("TQ.RETRY", task_id),
        (b"pending", "INVALID_STATUS"),
        "pending",
        before="cancelled",
    ),
}


async def prepared(client: RespClient, before: str) -> str:
    """The id of a task that is where a step begins."""
    if before == "nothing":
        return new_task_id()
    task_id = await client.submit("RETRIES", 1)
    if before == "claimed":
        [task] = await client.claim()
        assert task[0].decode() == task_id
    elif before == "cancelled":
        assert await client.ask("TQ.CANCEL", task_id) == b"OK"
    return task_id


async def put_away(client: RespClient, task_id: str) -> None:
    """See to it that nobody claims the task any more."""
    if (await client.task(task_id))["status"] in (b"pending", b"failed"):
        await client.ask("TQ.CANCEL", task_id)


async def cut_off(port: int, words: tuple[Word, ...]) -> None:
    """Send a command by way of a proxy, and see the connection end."""
    async with a_native_client(f"127.0.0.1:{port}") as client:
        client.send(*words)
        await all_of(client.reader)


async def size_of_answer(client: RespClient, step: Step) -> int:
    """How many bytes the answer to a step has."""
    task_id = await prepared(client, step.before)
    client.send(*step.words(task_id))
    answer = await client.reader.read(65_536)
    await put_away(client, task_id)
    return len(answer)


@pytest.mark.parametrize("name", STEPS)
async def test_each_command_is_done_once_or_not_at_all_and_may_be_repeated(
    tmp_path: Path, name: str
) -> None:
    """F34: the repeat is answered as if the first had been, whatever became of that."""
    step = STEPS[name]
    request = len(words_of(*step.words(new_task_id())))
    async with a_resp_house(tmp_path) as house:
        client = await house.connect()
        cuts = [(size, WHOLE) for size in range(request + 1)]
        cuts += [(WHOLE, size) for size in range(await size_of_answer(client, step))]
        async with a_cutting_proxy(house.door.port, *cuts) as proxy:
            for cut in cuts:
                task_id = await prepared(client, step.before)
                await cut_off(proxy.port, step.words(task_id))
                answer = await client.ask(*step.words(task_id))
                if isinstance(answer, hiredis.ReplyError):
                    answer = str(answer).partition(" ")[0]
                assert not step.answers or answer in step.answers, cut
                task = await client.task(task_id)
                outcome = task["status"].decode(), task["retry_count"]
                assert outcome == (step.status, step.retry_count), cut
                await put_away(client, task_id)
        await until(lambda: house.connections == 1)
        assert house.door.held_bytes == 0


async def test_a_claim_may_be_repeated_after_any_cut(tmp_path: Path) -> None:
    """F34, F36: with its request id it gets the same task, and no other is taken beside it."""
    words: tuple[Word, ...] = ("TQ.CLAIM", "w1", "ID", "c000", "TYPES", "work")
    cuts = [(size, WHOLE) for size in range(len(words_of(*words)) + 1)]
    cuts += [(WHOLE, size) for size in range(0, 160, 3)]
    async with (
        a_resp_house(tmp_path) as house,
        a_cutting_proxy(house.door.port, *cuts) as proxy,
    ):
        client = await house.connect()
        for number, cut in enumerate(cuts):
            task_ids = [await client.submit(payload=b"x" * 100) for _ in range(2)]
            words = ("TQ.CLAIM", "w1", "ID", f"c{number:03}", "TYPES", "work")
            await cut_off(proxy.port, words)
            [task] = await client.ask(*words)
            assert task[0].decode() == task_ids[0], cut
            assert await client.ask("TQ.COMPLETE", task[0], task[1]) == b"completed", cut
            assert (await client.task(task_ids[1]))["status"] == b"pending", cut
            await put_away(client, task_ids[1])


async def test_a_submit_over_http_may_be_repeated_after_any_cut(tmp_path: Path) -> None:
    """F34, B24: with a task id or an idempotency key there is one task in the end."""
    async with a_rest_client(tmp_path) as client:
        address = f"127.0.0.1:{client.door.port}"

        def request(number: int) -> bytes:
            body = b'{"task_type": "work", "payload": "eA==", "idempotency_key": "k%04d"}' % number
            head = f"POST {TASKS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            return head.encode() + b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (
                len(body),
                body,
            )

        answer = await answer_to(address, request(9_999))
        cuts = [(size, WHOLE) for size in range(len(request(0)) + 1)]
        cuts += [(WHOLE, size) for size in range(0, len(answer), 3)]
        async with a_cutting_proxy(client.door.port, *cuts) as proxy:
            for number in range(len(cuts)):
                await answer_to(f"127.0.0.1:{proxy.port}", request(number))
                reply = parsed(await answer_to(address, request(number)))
                assert reply.status == 201, cuts[number]
        [count] = await client.broker.counts()
        assert count.present == len(cuts) + 1


async def with_half_a_command(broker: BrokerProcess, clients: int) -> None:
    """Send three whole commands and most of a megabyte from each of several clients; kill them."""
    half = words_of("TQ.SUBMIT", "halved", b"x" * 1_000_000)[:-10]
    whole = words_of("TQ.SUBMIT", "whole", "x")
    async with unharmed(broker), AsyncExitStack() as stack:
        killed = [
            await stack.enter_async_context(a_native_client(broker.native)) for _ in range(clients)
        ]
        for one in killed:
            one.writer.write(whole * 3 + half)
        for one in killed:
            assert [len(answer) for answer in await one.answers(3)] == [36] * 3
            await one.writer.drain()


async def test_half_commands_of_clients_that_are_killed_are_forgotten(
    broker: BrokerProcess,
) -> None:
    """F15: the whole commands before them are carried out."""
    await with_half_a_command(broker, 50)
    async with a_native_client(broker.native) as client:
        assert as_dict(await client.ask("TQ.LIST", "TYPE", "halved"))["total"] == 0
        assert as_dict(await client.ask("TQ.LIST", "TYPE", "whole"))["total"] == 150


async def test_the_memory_of_half_commands_is_free_again(tmp_path: Path) -> None:
    """F15: at once, not when Python comes to collect what is left of their connections."""
    with a_broker_process(tmp_path / "data", "--rate-limit", "0") as broker:
        await with_half_a_command(broker, 100)
        before = memory_of(broker)
        for _ in range(4):
            await with_half_a_command(broker, 100)
        assert memory_of(broker) < before + 150 * MIB, "four times a hundred megabytes were sent"
