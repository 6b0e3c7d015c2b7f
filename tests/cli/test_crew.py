"""`tq workers` and `tq logs`, with a real worker."""

import asyncio
import json
import subprocess

from taskqueue import AsyncClient, SyncClient, Task
from taskqueue.client.address import broker_addresses
from taskqueue.client.connection import Connection
from tests.cli.running import PATIENCE, TQ, Here
from tests.support.broker import BrokerProcess

NO_TASK = "0192f0c1-2f8e-7cc2-98b4-000000000000"


def the_worker(broker: BrokerProcess) -> str:
    """The shared worker's id, once the broker knows it."""
    with SyncClient(broker.native) as client:
        while not (workers := client.workers()):
            pass
    return workers[0].worker_id


def test_workers_are_listed_and_told_what_to_do(tq: Here, broker: BrokerProcess) -> None:
    worker_id = the_worker(broker)
    assert worker_id in tq("workers").out
    assert worker_id in tq("workers", "-o", "id").out
    [row] = json.loads(tq("workers", "-o", "json").out)
    assert (row["worker_id"], row["slots"].partition("/")[2]) == (worker_id, "10")
    assert tq("workers", "quiet", worker_id).out == f"{worker_id}\tquiet\n"
    assert tq("workers", "work", worker_id).out == f"{worker_id}\twork\n"


def test_an_order_needs_a_worker_that_is_alive_and_a_stop_a_yes(tq: Here) -> None:
    assert "WORKER_NOT_FOUND" in tq("workers", "quiet", "nobody", code=5).err
    assert "no worker is named" in tq("workers", "quiet", code=2).err
    assert "--yes" in tq("workers", "stop", "nobody", code=2).err
    assert "WORKER_NOT_FOUND" in tq("workers", "stop", "nobody", "--yes", code=5).err


def test_the_log_of_a_task_is_printed(tq: Here, broker: BrokerProcess) -> None:
    with SyncClient(broker.native) as client:
        task_id = client.submit_task(Task("nobody.runs.this", b""))
    assert tq("logs", task_id, "-o", "json").out.strip() == "[]"
    assert "TASK_NOT_FOUND" in tq("logs", NO_TASK, code=5).err


async def test_a_log_is_followed_to_the_end_of_its_task(broker: BrokerProcess) -> None:
    async with AsyncClient(broker.native) as client:
        task_id = await client.submit_task(Task("nobody.else.runs.this", b""))
    (address,) = broker_addresses(broker.native)
    worker = await Connection.connect(address)
    await worker.send(b"TQ.CLAIM", b"w-logs", b"TYPES", b"nobody.else.runs.this")
    attempt = (task_id.encode(), b"1")
    await worker.send(b"TQ.LOG", *attempt, b"first")
    words = ("logs", task_id, "--follow", "--fields", "level,message", "--url", broker.native)
    process = await asyncio.create_subprocess_exec(*TQ, *words, stdout=subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE):
        assert await process.stdout.readline() == b"info\tfirst\n"
        await worker.send(b"TQ.LOG", *attempt, b"second", b"LEVEL", b"error")
        assert await process.stdout.readline() == b"error\tsecond\n"
        await worker.send(b"TQ.LOG", *attempt, b"third")
        await worker.send(b"TQ.COMPLETE", *attempt)
        assert await process.stdout.read() == b"info\tthird\n"
        assert await process.wait() == 0
    worker.close()


def test_followed_lines_are_lines_in_each_form(tq: Here, client: SyncClient) -> None:
    task_id = client.submit_task(Task("count", b'{"to": 1}'))
    client.wait_for_end(task_id)
    [line] = tq("logs", task_id, "-f", "-o", "json").out.splitlines()
    assert json.loads(line)["message"] == "counted to 1"
    assert "use jsonl" in tq("logs", task_id, "-f", "-o", "yaml", code=2).err
    assert "TASK_NOT_FOUND" in tq("logs", NO_TASK, "-f", code=5).err


def test_a_submit_has_labels_expiry_and_a_unique_key(tq: Here) -> None:
    options = ("--tag", "a", "--tag", "b", "--meta", "k=v", "--expires", "60", "--unique", "cli")
    task_id = tq("submit", "nobody.runs.this", *options).out.strip()
    assert tq("submit", "nobody.runs.this", *options).out.strip() == task_id
    shown = json.loads(tq("status", task_id, "-o", "json").out)
    assert (shown["tags"], shown["metadata"]) == (["a", "b"], {"k": "v"})
    assert shown["expires_at"] is not None
    other = tq("submit", "nobody.runs.this", *options, "--replace").out.strip()
    assert other != task_id
    assert "cancelled" in tq("status", task_id).out
    assert "write name=value" in tq("submit", "x", "--meta", "k", code=2).err


def test_a_submit_has_delays_between_retries_a_retention_and_a_period(
    tq: Here, client: SyncClient
) -> None:
    options = ("--backoff", "7.5", "--keep", "2h", "--unique", "p", "--unique-while", "15m")
    task_id = tq("submit", "cli.kept", *options).out.strip()
    assert tq("submit", "cli.kept", *options).out.strip() == task_id
    client.cancel(task_id)
    assert tq("submit", "cli.kept", *options).out.strip() == task_id  # the period goes on
    waiting = ("submit", "cli.kept", "--unique", "w", "--unique-while", "pending", "--keep", "0")
    other = tq(*waiting).out.strip()
    client.cancel(other)
    assert tq(*waiting).out.strip() != other
    for words, said in (
        (("--unique-while", "soon"), "'soon' is neither pending nor running"),
        (("--keep", "soon"), "'soon' is no time"),
        (("--backoff", "-1"), "backoff.first"),
    ):
        assert said in tq("submit", "x", "--unique", "x", *words, code=2).err
