"""Uses the clients as a user does; both type checkers find nothing to say here."""

from datetime import UTC, datetime
from typing import assert_type

from taskqueue import AsyncClient, Status, SyncClient, Task, TaskFailed, TaskPage, TaskStatus


def with_threads() -> None:
    with SyncClient("127.0.0.1:6379", timeout=5) as client:
        task = Task("send_email", b"{}").with_priority(150).with_timeout(600)
        task_id = client.submit_task(task)
        assert_type(task_id, str)
        assert_type(client.submit_many(Task("a", b"%d" % n) for n in range(3)), list[str])
        status = client.get_status(task_id)
        assert_type(status, TaskStatus)
        assert_type(status.status, Status)
        assert_type(status.result, bytes | None)
        assert_type(client.wait_for_result(task_id, timeout=60), bytes)
        assert_type(client.list_tasks(status="pending", limit=10), TaskPage)
        client.cancel(task_id)
        client.retry(task_id)


async def with_asyncio() -> None:
    async with AsyncClient() as client:
        at = datetime(2130, 1, 1, tzinfo=UTC)
        task_id = await client.submit_task(Task("a", b"", priority=1, schedule_at=at))
        assert_type(await client.get_status(task_id), TaskStatus)
        try:
            assert_type(await client.wait_for_result(task_id, timeout=0.5), bytes)
        except TaskFailed as error:
            assert_type(error.status, Status)
            print(error.traceback)
        page = await client.list_tasks(status=Status.DEAD_LETTER)
        assert_type(page.next_cursor, str | None)
        assert_type((await client.stats()).pending_count, int)
        assert_type((await client.health()).is_leader, bool)
