"""The gate of the drill shuts, and opens, as it says."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator

import pytest

from tests.ha.gate import Gate

HANG_UP = b"hang up"


@pytest.fixture
async def gate() -> AsyncIterator[Gate]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            if data == HANG_UP:
                # As when a process is killed: what it has not read makes of the end a reset.
                wire = writer.get_extra_info("socket")
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                break
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    gate = Gate([f"127.0.0.1:{server.sockets[0].getsockname()[1]}"])
    yield gate
    await asyncio.to_thread(gate.close)
    server.close()


async def connected(gate: Gate) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = gate.addresses[0].rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def has_ended(reader: asyncio.StreamReader) -> bool:
    """Whether a connection ends before anything more comes."""
    try:
        return not await reader.read(1)
    except ConnectionError:
        return True


async def test_passes_both_ways(gate: Gate) -> None:
    reader, writer = await connected(gate)
    writer.write(b"there")
    assert await reader.readexactly(5) == b"there"
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()


async def test_a_connection_that_breaks_is_broken_on_the_other_side(gate: Gate) -> None:
    reader, writer = await connected(gate)
    writer.write(HANG_UP)
    assert await has_ended(reader)
    writer.close()


async def test_silent_holds_everything_until_it_is_opened(gate: Gate) -> None:
    reader, writer = await connected(gate)
    writer.write(b"one")
    assert await reader.readexactly(3) == b"one"
    gate.shut("silent")
    writer.write(b"two")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await reader.readexactly(1)
    gate.open()
    assert await reader.readexactly(3) == b"two"
    writer.close()


async def test_refused_breaks_connections_and_takes_none(gate: Gate) -> None:
    reader, writer = await connected(gate)
    writer.write(b"one")
    assert await reader.readexactly(3) == b"one"
    gate.shut("refused")
    assert await has_ended(reader)
    other_reader, other_writer = await connected(gate)
    assert await has_ended(other_reader)
    gate.open()
    again_reader, again_writer = await connected(gate)
    again_writer.write(b"three")
    assert await again_reader.readexactly(5) == b"three"
    for one in (writer, other_writer, again_writer):
        one.close()
