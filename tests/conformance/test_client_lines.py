"""The reference's client examples, in Python, against a started server."""

import threading

from taskqueue import AsyncClient, SyncClient, Task
from tests.conformance.catalogue import proves
from tests.conformance.served import Served, Worker


def finish_one(worker: Worker, task_type: str) -> threading.Thread:
    """Complete the next task of a type, beside the test."""
    thread = threading.Thread(target=lambda: worker.complete(worker.claim(task_type), b"sent"))
    thread.start()
    return thread


@proves("client.sync")
def test_the_sync_client(server: Served, worker: Worker) -> None:
    client = SyncClient(server.broker.native, api_key=server.key)
    try:
        task = Task("sync_email", b"to ada").with_priority(150).with_timeout(600)
        task_id = client.submit_task(task)
        status = client.get_status(task_id)
        assert (status.status, status.priority, status.timeout_seconds) == ("pending", 150, 600)
        working = finish_one(worker, "sync_email")
        assert client.wait_for_result(task_id, 60) == b"sent"
        working.join()
        assert client.get_status(task_id).status == "completed"
    finally:
        client.close()


@proves("client.async")
async def test_the_async_client(server: Served, worker: Worker) -> None:
    client = AsyncClient(server.broker.native, api_key=server.key)
    try:
        task_id = await client.submit_task(Task("async_email", b"to grace"))
        working = finish_one(worker, "async_email")
        assert await client.wait_for_result(task_id, 60) == b"sent"
        working.join()
    finally:
        await client.close()
