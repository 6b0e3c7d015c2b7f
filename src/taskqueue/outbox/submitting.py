"""Puts tasks in the outbox, over a connection and in a transaction of the program's own."""

import uuid
from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from msgspec import structs

from taskqueue.client.sync import LoopThread
from taskqueue.client.task import Task
from taskqueue.core.errors import InvalidRequest
from taskqueue.core.ids import new_task_id
from taskqueue.outbox.table import INSERT_MARKED, INSERT_NUMBERED, NOTIFY, TABLE
from taskqueue.worker.handle import Handle
from taskqueue.worker.handler import TaskHandler
from taskqueue.worker.middleware import submit_through

if TYPE_CHECKING:
    from typing_extensions import TypeIs  # comes with Python 3.13

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class AsyncpgConnection(Protocol):
    """What is asked of a connection of asyncpg, or of its pool."""

    def execute(self, query: str, /, *args: Any) -> Awaitable[Any]: ...

    def fetchval(self, query: str, /, *args: Any) -> Awaitable[Any]: ...


class AsyncPsycopgConnection(Protocol):
    """What is asked of an AsyncConnection of psycopg 3."""

    def execute(self, query: bytes, params: Sequence[Any] | None = None, /) -> Awaitable[Any]: ...


class PsycopgConnection(Protocol):
    """What is asked of a Connection of psycopg 3."""

    def execute(self, query: bytes, params: Sequence[Any] | None = None, /) -> Any: ...


AsyncConnection = AsyncpgConnection | AsyncPsycopgConnection

_loop = LoopThread()
"""Where the middleware of submits without asyncio runs."""


async def create_table(connection: AsyncConnection, *, notify: bool = False) -> None:
    """Make the outbox's table if it is not there, in the connection's transaction.

    With `notify` each commit wakes the relay.
    """
    for statement in (TABLE, NOTIFY) if notify else (TABLE,):
        if _is_asyncpg(connection):
            await connection.execute(statement)
        else:
            await connection.execute(statement.encode())


def create_table_sync(connection: PsycopgConnection, *, notify: bool = False) -> None:
    """As `create_table`, for connections without asyncio."""
    for statement in (TABLE, NOTIFY) if notify else (TABLE,):
        connection.execute(statement.encode())


async def submit(
    connection: AsyncConnection,
    task: TaskHandler[Arguments, Result],
    /,
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Handle[Result]:
    """Submit a call of a task's function if the connection's transaction commits.

    The handle knows the id at once; to the broker the task is known when the relay has sent it.
    """
    clients = task._clients  # pyright: ignore[reportPrivateUsage]

    async def write(changed: Task) -> str:
        return await submit_task(connection, changed)

    asked = task._task(args, kwargs)  # pyright: ignore[reportPrivateUsage]
    task_id = await submit_through(clients.middleware, asked, write)
    return Handle(clients, task_id, task.codec.decode_result)


def submit_sync(
    connection: PsycopgConnection,
    task: TaskHandler[Arguments, Result],
    /,
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Handle[Result]:
    """As `submit`, for connections without asyncio."""
    clients = task._clients  # pyright: ignore[reportPrivateUsage]
    wanted: list[Task] = []

    async def keep(changed: Task) -> str:
        wanted.append(changed if changed.task_id else changed.with_task_id(new_task_id()))
        return str(wanted[-1].task_id)

    asked = task._task(args, kwargs)  # pyright: ignore[reportPrivateUsage]
    # The connection is used in this thread only: it is the program's, and so are its rules.
    task_id = _loop.run(submit_through(clients.middleware, asked, keep))
    for one in wanted:
        submit_task_sync(connection, one)
    return Handle(clients, task_id, task.codec.decode_result)


async def submit_task(connection: AsyncConnection, task: Task) -> str:
    """Submit a task if the connection's transaction commits; its id.

    Raises InvalidRequest, PayloadTooLarge, and what the connection raises.
    """
    row = _row(task)
    if _is_asyncpg(connection):
        await connection.execute(INSERT_NUMBERED, *row)
    else:
        await connection.execute(INSERT_MARKED.encode(), row)
    return str(row[0])


def submit_task_sync(connection: PsycopgConnection, task: Task) -> str:
    """As `submit_task`, for connections without asyncio."""
    row = _row(task)
    connection.execute(INSERT_MARKED.encode(), row)
    return str(row[0])


def _is_asyncpg(connection: AsyncConnection) -> "TypeIs[AsyncpgConnection]":
    return hasattr(connection, "fetchval")


def _row(task: Task) -> tuple[Any, ...]:
    if task.idempotency_key is not None:
        raise InvalidRequest(
            "a task in the outbox cannot have an idempotency_key: its id is fixed there; "
            "give it a task_id of your own",
            field="idempotency_key",
        )
    if task.task_id is None:
        task = structs.replace(task, task_id=new_task_id())
    task.command(task.task_id)  # refuses what a client refuses, while it can still be told
    return (
        uuid.UUID(task.task_id),
        task.task_type,
        task.payload,
        task.priority,
        task.timeout,
        task.max_retries,
        task.schedule_at,
        None if task.delay is None else float(task.delay),
    )
