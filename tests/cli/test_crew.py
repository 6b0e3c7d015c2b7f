"""`tq workers` and `tq logs`, with a real worker."""

import json

from taskqueue import SyncClient, Task
from tests.cli.running import Here
from tests.support.broker import BrokerProcess


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
    assert "TASK_NOT_FOUND" in tq("logs", "0192f0c1-2f8e-7cc2-98b4-000000000000", code=5).err


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
