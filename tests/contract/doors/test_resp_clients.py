"""The Redis clients that people have work with the native door as they come."""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from taskqueue.core.ids import new_task_id
from taskqueue.wire import messages as m
from tests.support.redis_tools import redis_benchmark, redis_cli
from tests.support.resp import RespHouse, a_resp_house


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[RespHouse]:
    async with a_resp_house(tmp_path) as house:
        yield house


async def in_thread(house: RespHouse, use: Callable[[Any], Any], **options: Any) -> Any:
    """What `use` returns for a client of redis-py, which blocks."""

    def run() -> Any:
        with redis.Redis(port=house.door.port, **options) as client:
            return use(client)

    return await asyncio.to_thread(run)


@pytest.mark.parametrize("protocol", [None, 2, 3])
async def test_redis_py_submits_claims_completes_and_waits(
    house: RespHouse, protocol: int | None
) -> None:
    def use(client: Any) -> Any:
        assert client.ping()
        task_id = client.execute_command("TQ.SUBMIT", "work", b"\x00\xff", "PRIORITY", 9)
        [task] = client.execute_command("TQ.CLAIM", "w1", "BLOCK", 1000, "TYPES", "work")
        assert task[:4] == [task_id, 1, b"work", b"\x00\xff"]
        done = client.execute_command("TQ.COMPLETE", task_id, task[1], "RESULT", b"\r\n")
        return done, client.execute_command("TQ.WAIT", task_id, 1000)

    options = {} if protocol is None else {"protocol": protocol}
    done, answer = await in_thread(house, use, **options)
    assert done == b"completed"
    task = answer if isinstance(answer, dict) else dict(zip(answer[::2], answer[1::2], strict=True))
    assert (task[b"status"], task[b"result"]) == (b"completed", b"\r\n")


async def test_redis_py_raises_errors_with_their_code(house: RespHouse) -> None:
    def use(client: Any) -> None:
        client.execute_command("TQ.GET", new_task_id())

    with pytest.raises(redis.ResponseError, match="TASK_NOT_FOUND Task not found"):
        await in_thread(house, use)


async def test_redis_py_decodes_and_names_its_connection(house: RespHouse) -> None:
    def use(client: Any) -> Any:
        return client.execute_command("CLIENT", "GETNAME"), client.execute_command("ECHO", "ü")

    answers = await in_thread(house, use, decode_responses=True, client_name="me", protocol=3)
    assert answers == ("me", "ü")


async def test_a_pipeline_of_redis_py_is_answered_in_order(house: RespHouse) -> None:
    ids = [new_task_id() for _ in range(500)]

    def use(client: Any) -> Any:
        with client.pipeline(transaction=False) as pipeline:
            for task_id in ids:
                pipeline.execute_command("TQ.SUBMIT", "work", "x", "ID", task_id)
                pipeline.execute_command("ECHO", task_id)
            return pipeline.execute()

    answers = await in_thread(house, use)
    assert [one.decode() for one in answers] == [one for one in ids for _ in range(2)]


async def test_asyncio_redis_py_works_while_another_command_blocks(house: RespHouse) -> None:
    client: Any = redis.asyncio.Redis(port=house.door.port)
    async with client:
        claim = asyncio.create_task(
            client.execute_command("TQ.CLAIM", "w1", "BLOCK", 20_000, "TYPES", "work")
        )
        task_id = await client.execute_command("TQ.SUBMIT", "work", "x")
        [task] = await claim
        assert task[0] == task_id
        assert await client.execute_command("TQ.RELEASE", task[0], task[1]) == b"pending"


async def test_redis_cli_is_a_usable_console(house: RespHouse) -> None:
    task_id = new_task_id()
    typed = (
        f'TQ.SUBMIT send_email "{{\\"to\\": \\"ada\\"}}" ID {task_id}\n'
        "tq.claim w1 types send_email\n"
        f"TQ.COMPLETE {task_id} 1 RESULT sent\n"
        f"TQ.WAIT {task_id} 100\n"
        "NOPE\n"
    )
    printed = await asyncio.to_thread(redis_cli, house.door.port, typed=typed)
    lines = printed.splitlines()
    assert lines[0] == task_id
    assert '{"to": "ada"}' in lines
    assert lines[9] == "completed"
    assert lines[lines.index("result") + 1] == "sent"
    assert "ERR unknown command 'NOPE'" in lines


async def test_redis_cli_takes_a_payload_from_a_file(house: RespHouse) -> None:
    task_id = await asyncio.to_thread(
        redis_cli, house.door.port, "-x", "TQ.SUBMIT", "work", typed="line 1\r\nline 2"
    )
    client = await house.connect()
    [task] = await client.claim()
    assert (task[0].decode(), task[3]) == (task_id.strip(), b"line 1\r\nline 2")


async def test_redis_cli_pipe_loads_tasks_in_bulk(house: RespHouse) -> None:
    lines = "".join(f"TQ.SUBMIT work payload-{number}\r\n" for number in range(2_000))
    printed = await asyncio.to_thread(redis_cli, house.door.port, "--pipe", typed=lines)
    assert "errors: 0, replies: 2000" in printed
    assert (await house.broker.stats(m.NoRequest())).pending_count == 2_000


async def test_redis_cli_knows_the_commands(house: RespHouse) -> None:
    printed = await asyncio.to_thread(redis_cli, house.door.port, "COMMAND", "COUNT")
    assert int(printed) > 20
    printed = await asyncio.to_thread(redis_cli, house.door.port, "COMMAND", "DOCS", "tq.submit")
    assert "Submit a task: TQ.SUBMIT task_type payload [ID task_id]" in printed


@pytest.mark.parametrize("pipelined", [1, 16])
async def test_redis_benchmark_measures_submits(house: RespHouse, pipelined: int) -> None:
    printed = await asyncio.to_thread(
        redis_benchmark,
        house.door.port,
        *("-n", "2000", "-c", "20", "-P", str(pipelined), "-q"),
        *("TQ.SUBMIT", "work", "payload-__rand_int__"),
    )
    assert re.search(r"[\d.]+ requests per second", printed)
    assert (await house.broker.stats(m.NoRequest())).pending_count == 2_000


async def test_redis_benchmark_runs_its_own_pings(house: RespHouse) -> None:
    printed = await asyncio.to_thread(
        redis_benchmark, house.door.port, "-t", "ping", "-n", "2000", "-q"
    )
    assert "PING_INLINE: " in printed
    assert "PING_MBULK: " in printed


async def test_a_line_typed_into_any_terminal_is_a_command(house: RespHouse) -> None:
    answer = await house.raw(b"ping\r\nTQ.SUBMIT work 'two words'\r\n\r\nquit\r\n")
    assert re.fullmatch(rb"\+PONG\r\n\$36\r\n[0-9a-f-]{36}\r\n\+OK\r\n", answer)
