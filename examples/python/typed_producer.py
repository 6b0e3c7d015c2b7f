"""Submits typed tasks and waits for their results: `python typed_producer.py`."""

import asyncio

from tasks import add, send_email


async def main() -> None:
    """Submit an e-mail and an addition."""
    handle = await send_email.submit("ada@example.org", subject="Hi")
    print(await handle.result(timeout=10))
    urgent = add.options(priority=255)
    print(await (await urgent.submit(2, b=3)).result(timeout=10))


asyncio.run(main())
