"""The way from one broker to the nodes of the database, which can be shut and opened again."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Literal

Shut = Literal["refused", "silent"]


class Gate:
    """Passes bytes on to some addresses, from a port of its own for each.

    Shut as "refused" it breaks the connections and takes no new ones. Shut as "silent" it takes
    everything and passes nothing on until it is opened again, as a network that loses all packets
    and then recovers: what was sent meanwhile arrives late.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses: list[str] = []
        self._passes = asyncio.Event()
        self._is_refusing = False
        self._transports: set[asyncio.WriteTransport] = set()
        self._carrying: set[asyncio.Task[None]] = set()
        self._servers: list[asyncio.Server] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._do(self._serve(addresses))

    def shut(self, how: Shut) -> None:
        """Let nothing through any more."""
        self._do(self._shut(how))

    def open(self) -> None:
        """Let everything through again."""
        self._do(self._open())

    def close(self) -> None:
        """Break all connections and end."""
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    async def _serve(self, addresses: Sequence[str]) -> None:
        self._passes.set()
        for address in addresses:
            server = await asyncio.start_server(self._to(address), "127.0.0.1", 0)
            self.addresses.append(f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
            self._servers.append(server)

    async def _shut(self, how: Shut) -> None:
        self._passes.clear()
        if how == "refused":
            self._is_refusing = True
            self._break()

    async def _open(self) -> None:
        self._is_refusing = False
        self._passes.set()

    async def _close(self) -> None:
        self._is_refusing = True
        self._passes.set()
        for server in self._servers:
            server.close()
        self._break()
        if self._carrying:
            await asyncio.wait(self._carrying)

    def _break(self) -> None:
        for transport in list(self._transports):
            transport.abort()

    def _to(self, address: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], None]:
        def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.get_running_loop().create_task(self._carry(address, reader, writer))
            self._carrying.add(task)
            task.add_done_callback(self._carrying.discard)

        return take

    async def _carry(
        self, address: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if not self._is_refusing:
            await self._passes.wait()
        host, _, port = address.rpartition(":")
        ends = {writer.transport}
        self._transports |= ends
        try:
            if self._is_refusing:
                return
            there, back = await asyncio.open_connection(host, int(port))
            ends.add(back.transport)
            self._transports |= ends
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pass_on(reader, back))
                ways.create_task(self._pass_on(there, writer))
        except* OSError:
            pass  # the node is down, or hangs up without a word: so does the way to it
        finally:
            self._transports -= ends
            for end in ends:
                end.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            await self._passes.wait()
            writer.write(data)
            await writer.drain()
        await self._passes.wait()
        writer.write_eof()
