"""Mistakes in submitting in transactions: each marked line is one that the checkers find."""

from typing import Any

import psycopg

from taskqueue import App, outbox

app = App()


@app.task
async def double(number: int) -> int:
    return 2 * number


async def mistakes(connection: psycopg.AsyncConnection[Any]) -> None:
    await outbox.submit(connection, double, "1")  # error
    await outbox.submit(connection, double)  # error
    await outbox.submit(connection, double.function, 1)  # error
    await outbox.submit("postgresql://localhost/shop", double, 1)  # error
