"""Submits in transactions as a user does; both type checkers find nothing to say here."""

from typing import Any, assert_type

import asyncpg
import psycopg

from taskqueue import App, Handle, Task, outbox

app = App("127.0.0.1:6379")


@app.task
async def double(number: int) -> int:
    return 2 * number


async def in_coroutines(
    theirs: "asyncpg.Connection[asyncpg.Record]", other: psycopg.AsyncConnection[Any]
) -> None:
    await outbox.create_table(theirs, notify=True)
    assert_type(await outbox.submit(theirs, double, 1), Handle[int])
    assert_type(await outbox.submit(other, double.options(delay=1), number=2), Handle[int])
    assert_type(await outbox.submit_task(other, Task("work", b"")), str)
    await outbox.relay("postgresql://localhost/shop", "127.0.0.1:6379")


def elsewhere(connection: psycopg.Connection[Any]) -> None:
    outbox.create_table_sync(connection)
    assert_type(outbox.submit_sync(connection, double, 1), Handle[int])
    assert_type(outbox.submit_task_sync(connection, Task("work", b"")), str)
