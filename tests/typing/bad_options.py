"""Mistakes in options, contexts and orders: each marked line is one that the checkers find."""

from taskqueue import App, AsyncClient, Backoff, Context, Task

app = App()

Task("mail", b"", priority="urgent")  # error
Task("mail", b"", tags={1, 2})  # error
Task("mail", b"", metadata={"customer": 1})  # error
Task("mail", b"", unique_while="always")  # error
Task("mail", b"", backoff=5)  # error
Backoff(5)  # error
Backoff(first="1")  # error


@app.task(retry_on="OSError")  # error
def by_name() -> None: ...


@app.task(weight="3")  # error
def heavy() -> None: ...


@app.task(backoff=1.5)  # error
def hasty() -> None: ...


@app.task
async def work(ctx: Context) -> None:
    ctx.log("text", "loud")  # error
    await ctx.extend("30")  # error
    number: int = ctx.saved_as(list[int])  # error
    ctx.metadata["customer"] = "ada"  # error
    print(number)


async def operate(client: AsyncClient) -> None:
    await client.order("w", "pause")  # error
    await client.change("t", priority="urgent")  # error
    await client.list_tasks(tags=[1])  # error
    await work.options(expires_in="soon").submit()  # error
