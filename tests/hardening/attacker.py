"""Ways to speak to a broker's ports that no well-behaved client has."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from tests.support.door import PATIENCE
from tests.support.resp import RespClient
from tests.support.rest import Reply, parsed

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def open_streams(address: str, receive_buffer: int | None = None) -> Streams:
    """A connection to an address, as settings write it.

    `receive_buffer` is how many bytes the system may keep that were not read yet; usually it takes
    several megabytes.
    """
    host, port = address.rsplit(":", 1)
    plug = socket.socket()
    plug.setblocking(False)
    if receive_buffer is not None:
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    try:
        await asyncio.get_running_loop().sock_connect(plug, (host, int(port)))
    except OSError:
        plug.close()
        raise
    return await asyncio.open_connection(sock=plug)


async def answer_to(address: str, data: bytes) -> bytes:
    """Send bytes; all that comes back until the broker ends the connection, however it does."""
    reader, writer = await open_streams(address)
    try:
        writer.write(data)
        return await all_of(reader)
    finally:
        writer.transport.abort()


async def all_of(reader: asyncio.StreamReader) -> bytes:
    """All that still comes, also before a reset."""
    parts: list[bytes] = []
    async with asyncio.timeout(PATIENCE):
        with suppress(ConnectionError):
            while part := await reader.read(65_536):
                parts.append(part)
    return b"".join(parts)


async def ask(
    address: str,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """One HTTP request on a connection of its own."""
    lines = {"Host": "broker", "Connection": "close"}
    if body is not None:
        lines |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
    lines |= dict(headers or {})
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    request = f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode("latin-1") + (body or b"")
    return parsed(await answer_to(address, request))


@asynccontextmanager
async def a_native_client(address: str) -> AsyncIterator[RespClient]:
    """A connection to a native door."""
    client = RespClient(*await open_streams(address))
    try:
        yield client
    finally:
        client.hang_up()
