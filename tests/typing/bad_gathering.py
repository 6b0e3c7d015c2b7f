"""Mistakes in waiting for tasks: each marked line is one that the checkers find."""

from taskqueue import App, as_completed, gather, gather_sync

app = App()


@app.task
async def double(number: int) -> int:
    return 2 * number


@app.task
async def name(number: int) -> str:
    return str(number)


async def mistakes() -> None:
    doubling, naming = await double.submit(1), await name.submit(1)
    text: str = (await gather(doubling, naming))[0]  # error
    numbers: list[str] = await gather([doubling])  # error
    maybe: list[int] = await gather([doubling], return_exceptions=True)  # error
    await gather(double.submit(1))  # error
    gather_sync(doubling, timeout="soon")  # error
    async for handle in as_completed([naming]):
        print(await handle.result() + 1)  # error
    print(text, numbers, maybe)
