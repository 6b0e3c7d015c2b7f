"""Mistakes in using the clients: each marked line is one that the checkers find."""

from taskqueue import AsyncClient, SyncClient, Task
from taskqueue import Tassk as Misspelt  # error


async def mistakes(client: AsyncClient, sync_client: SyncClient) -> None:
    Task("send_email", "not bytes")  # error
    Task("send_email")  # error
    Task("send_email", b"").with_priority("urgent")  # error
    Task("send_email", b"").priority = 3  # error
    await client.submit_task("send_email")  # error
    await client.get_status(7)  # error
    print(client.get_status("id").status)  # error
    print(sync_client.wait_for_result("id", 60).status)  # error
    sync_client.list_tasks(state="pending")  # error
    Misspelt()
