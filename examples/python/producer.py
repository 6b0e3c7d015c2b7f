"""Submits bytes and waits for bytes, without asyncio: `python producer.py`."""

from taskqueue import SyncClient, Task

payload = b'{"to": "grace@example.org"}'

with SyncClient() as client:
    task_id = client.submit_task(Task("send_email", payload).with_priority(150).with_timeout(600))
    print(task_id, client.get_status(task_id).status)
    print(client.wait_for_result(task_id, timeout=60))
