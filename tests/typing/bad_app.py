"""Mistakes in declaring and submitting tasks: each marked line is one that the checkers find."""

from taskqueue import App, CallNext, Context, Retry, SubmitNext, Task

app = App()


@app.task(retries=5)
async def send_email(ctx: Context, to: str, subject: str = "Hello") -> str:
    return to + subject + ctx.task_id


@app.task
def add(a: int, b: int = 0) -> int:
    return a + b


@app.task(retrys=5)  # error
def misspelt() -> None: ...


@app.raw("text")  # error
def not_bytes(payload: str) -> str:
    return payload


@app.task(isolation="thread")  # error
def elsewhere() -> None: ...


@app.raw("bytes", isolation=True)  # error
def raw(payload: bytes) -> bytes:
    return payload


@app.middleware  # error
def not_async(ctx: Context, call_next: CallNext) -> bytes:
    return ctx.payload


@app.submit_middleware  # error
async def not_an_id(task: Task, call_next: SubmitNext) -> Task:
    return task


@app.task
def stated(ctx: Context[int]) -> None:
    text: str = ctx.state  # error
    raise Retry(text, delay="soon")  # error


async def mistakes() -> None:
    await send_email.submit(3)  # error
    await send_email.submit()  # error
    await send_email.submit("ada@example.org", title="Hi")  # error
    await send_email.submit("ada@example.org", "Hi", "more")  # error
    await add.submit(1, b="2")  # error
    await add.options(prio=255).submit(1)  # error
    await add.options(priority="urgent").submit(1)  # error
    handle = await add.submit(1)
    length = len(await handle.result())  # error
    text: str = add.submit_sync(1).result_sync()  # error
    print(length, text)
