"""Connections to PostgreSQL: how one is made, and what its errors mean."""

import asyncio
import socket
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from msgspec import Struct

from taskqueue.core.errors import BrokerUnavailable, StorageRefused

if TYPE_CHECKING:  # it is generic in its stubs only
    Connection: TypeAlias = asyncpg.Connection[Any]
else:
    Connection = asyncpg.Connection

CONNECT_SECONDS: Final = 3.0
"""How long one attempt to connect may take, over all servers of the address."""

SILENT_MS: Final = 10_000
"""How long sent bytes may go unacknowledged before the network gives the connection up."""

KEEPALIVE: Final = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 2), (socket.TCP_KEEPCNT, 3))

SERVER_KEEPALIVE: Final = {
    "tcp_keepalives_idle": "5",
    "tcp_keepalives_interval": "2",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": str(SILENT_MS),
}
"""So the server ends what a vanished broker has left open, too. A pooler would refuse them."""

LOST: Final = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)
"""Errors after which a connection is of no more use."""

Wanted = Literal["read-write", "any"]


class Database(Struct, frozen=True):
    """Where the database is, and whether connections keep prepared statements.

    A pooler that lends connections for single transactions does not know those of asyncpg: then
    the address says `?prepared_statements=false`.
    """

    dsn: str
    prepares: bool = True

    def __str__(self) -> str:
        """The address without user and password."""
        parts = urlsplit(self.dsn)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def database_at(url: str) -> Database:
    """The database that a URL names."""
    try:
        parts = urlsplit(url)
    except ValueError:
        raise StorageRefused("the address of the database makes no sense") from None
    options = parse_qsl(parts.query, keep_blank_values=True)
    stated = dict(options).get("prepared_statements", "true")
    rest = urlencode([one for one in options if one[0] != "prepared_statements"])
    return Database(urlunsplit(parts._replace(query=rest)), stated != "false")


async def connect(database: Database, wanted: Wanted, purpose: str) -> Connection:
    """A connection to a server that can do what is wanted. Raises BrokerUnavailable.

    No statement on it has a time limit of ours: asyncpg's would cancel it, and a commit whose wait
    for a standby is cancelled is confirmed all the same.
    """
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            connection: Connection = await asyncpg.connect(
                database.dsn,
                target_session_attrs=SessionAttribute(wanted),
                statement_cache_size=500 if database.prepares else 0,
                server_settings={
                    "application_name": f"taskqueue {purpose}",
                    **(SERVER_KEEPALIVE if database.prepares else {}),
                },
            )
    except (*LOST, asyncpg.PostgresError, asyncpg.TargetServerAttributeNotMatched) as error:
        raise unavailable(database, error) from error
    except (ValueError, OverflowError):
        # Its message may hold a part of the password.
        raise StorageRefused(
            "the address of the database makes no sense; write "
            "postgresql://user:password@host:port/database, with %2F for a / in the password"
        ) from None
    _watch_over(connection)
    return connection


def unavailable(database: Database, error: BaseException) -> BrokerUnavailable:
    """What callers are told of a database that did not do its part; nothing was changed."""
    reason = str(error) or type(error).__name__
    return BrokerUnavailable(
        f"The database {database} does not answer as it should: {reason}; "
        "nothing was changed, try again",
        retry_after=1.0,
    )


async def close(connection: Connection | None) -> None:
    """Hang up, politely if that takes no time."""
    if connection is None or connection.is_closed():
        return
    try:
        await connection.close(timeout=1)
    except (*LOST, asyncpg.PostgresError):
        connection.terminate()


async def with_patience(work: Awaitable[None], seconds: float) -> bool:
    """Wait for work that must not be cancelled; whether it ended in time. Raises what it raised."""
    task = asyncio.ensure_future(work)
    done, _ = await asyncio.wait({task}, timeout=seconds)
    if done:
        task.result()
    return bool(done)


def _watch_over(connection: Connection) -> None:
    # asyncpg has no setting for it. Without, a connection to a vanished host lasts for hours.
    transport: Any = connection._transport  # type: ignore[attr-defined]
    wire = transport.get_extra_info("socket")
    if wire is None or wire.family == socket.AF_UNIX:
        return
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in KEEPALIVE:
        wire.setsockopt(socket.IPPROTO_TCP, option, value)
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_MS)
