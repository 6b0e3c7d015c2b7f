"""What a submit, a handler and its context can have, as a user writes it under strict checks."""

from datetime import UTC, datetime

from taskqueue import App, AsyncClient, Backoff, Context, SyncClient, Task

app = App()

plain = Task(
    "mail",
    b"{}",
    priority="high",
    tags=("welcome", "vip"),
    metadata={"customer": "ada"},
    expires_in=60.0,
    unique_key="ada",
    unique_while="period",
    unique_seconds=3600,
    replace=False,
    backoff=Backoff(first=1, factor=3.0, longest=60, jitter=0.2),
    retention=86_400,
)


@app.task(
    retry_on=(OSError, TimeoutError),
    fail_on=PermissionError,
    weight=3,
    isolation="process",
    backoff=Backoff(first=0.5),
    tags=["nightly"],
    metadata={"team": "data"},
    unique_key="report",
    unique_while="pending",
)
def report(ctx: Context, pages: int) -> int:
    done: list[int] = ctx.saved_as(list[int]) or []
    for page in range(len(done), pages):
        if ctx.cancelled.is_set() or ctx.remaining < 1.0:
            break
        done.append(page)
        ctx.checkpoint_sync(done)
        ctx.log(f"page {page}", "debug")
    ctx.extend_sync(30)
    customer: str | None = ctx.metadata.get("customer")
    due: datetime = ctx.deadline
    print(customer, due, ctx.saved)
    return len(done)


@app.task
async def stream(ctx: Context) -> None:
    await ctx.checkpoint(b"bytes")
    await ctx.extend(10)
    await ctx.cancelled.wait()
    await ctx.lines_told()


async def submit(client: AsyncClient) -> None:
    await report.options(priority="low", expires_in=5, retention=0).submit(pages=3)
    task_id = await client.submit_task(plain)
    await client.change(task_id, priority="critical")
    await client.change(task_id, schedule_at=datetime.now(UTC))
    for line in await client.logs(task_id):
        print(line.at, line.attempt, line.level, line.message)
    for worker in await client.workers():
        await client.order(worker.worker_id, "quiet")
    page = await client.list_tasks(tags=["vip"], metadata={"customer": "ada"})
    await client.purge(page.tasks[0].task_id)


def submit_sync(client: SyncClient) -> None:
    client.change(client.submit_task(plain), delay=5)
    print(client.logs("…"), client.workers())
    client.order("…", "stop")
    client.cancel("…", running=True)
