"""A REST door on a free port, and a client that says exactly what a test wants said."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from taskqueue.broker.access import AccessSettings
from taskqueue.broker.broker import Broker, BrokerSettings
from taskqueue.core.clock import Clock
from taskqueue.doors.http import RestSettings
from taskqueue.doors.rest import RestDoor
from taskqueue.storage.port import Storage
from tests.support.broker import a_broker

TASKS = "/api/v1/tasks"


class Reply(NamedTuple):
    """An answer, as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """Its body, read as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The code of the error it is, if it is one."""
        is_error = self.status >= 400 and self.headers["content-type"] == "application/json"
        return self.json.get("code") if is_error else None


class RestClient:
    """Speaks HTTP to one port; each request has a connection of its own."""

    def __init__(self, broker: Broker, door: RestDoor) -> None:
        self.broker = broker
        self.door = door

    async def ask(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One request; a body that is not bytes is sent as JSON."""
        lines = {"Host": "broker", "Connection": "close"}
        content = b""
        if body is not None:
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            lines |= {"Content-Type": "application/json", "Content-Length": str(len(content))}
        lines |= dict(headers or {})
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
        return parsed(await self.raw(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + content))

    async def raw(self, data: bytes) -> bytes:
        """Send bytes and return all that comes back until the broker closes the connection."""
        return await exchanged(self.door.port, data)

    async def submit(self, **fields: object) -> str:
        """Submit a task and return its id."""
        reply = await self.ask("POST", TASKS, {"task_type": "work", "payload": "eA==", **fields})
        assert reply.status == 201, reply
        return str(reply.json["task_id"])


async def exchanged(port: int, data: bytes) -> bytes:
    """Send bytes to a port; all that comes back until the connection is closed."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        return await asyncio.wait_for(reader.read(), 10)
    finally:
        writer.close()


async def ask_raw(port: int, request: str) -> bytes:
    """The answer to a request without a body, such as `GET /docs`."""
    head = f"{request} HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\r\n"
    return await exchanged(port, head.encode())


def parsed(answer: bytes) -> Reply:
    """The one response in `answer`."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Reply(int(status.split(" ")[1]), headers, body)


@asynccontextmanager
async def a_rest_client(
    folder: Path,
    *,
    clock: Clock | None = None,
    storage: Storage | None = None,
    settings: RestSettings | None = None,
    broker_settings: BrokerSettings | None = None,
    access: AccessSettings | None = None,
) -> AsyncIterator[RestClient]:
    """A client of a broker with a REST door, on SQLite in `folder` unless told otherwise."""
    async with a_broker(
        folder, clock=clock, storage=storage, settings=broker_settings, access=access
    ) as broker:
        door = RestDoor(broker, settings or RestSettings())
        await door.start("127.0.0.1", 0)
        try:
            yield RestClient(broker, door)
        finally:
            await door.close()
