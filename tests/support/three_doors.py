"""One broker with its three doors, and the same words for the same thing at each of them."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlencode

import grpc
import hiredis
from google.protobuf.json_format import MessageToDict

from taskqueue.broker.broker import Broker, BrokerSettings
from taskqueue.core.clock import ManualClock
from taskqueue.doors.bounds import RespSettings
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.doors.grpc.door import GrpcDoor
from taskqueue.doors.grpc.settings import GrpcSettings
from taskqueue.doors.http import RestSettings
from taskqueue.doors.resp import RespDoor
from taskqueue.doors.rest import RestDoor
from tests.support.broker import a_broker
from tests.support.grpc import GrpcClient, Refusal, a_channel
from tests.support.resp import RespClient, as_dict
from tests.support.rest import TASKS, RestClient

KEYWORDS = {
    "priority": "PRIORITY",
    "delay_seconds": "DELAY",
    "task_id": "ID",
    "max_retries": "RETRIES",
    "expires_in_seconds": "EXPIRES",
    "unique_key": "UNIQUE",
    "unique_while": "WHILE",
    "unique_seconds": "PERIOD",
    "retry_delay_seconds": "BACKOFF",
    "retry_jitter": "JITTER",
    "retention_seconds": "KEEP",
}
"""The words of the native protocol for the fields of the other two."""


class Refused(Exception):
    """What a door answered with an error."""

    def __init__(self, code: str | None, message: str) -> None:
        super().__init__(f"{code} {message}")
        self.code = code


class Way(Protocol):
    """What can be asked for at every door."""

    async def submit(self, **fields: Any) -> str:
        """Submit a task of the type "work"; its id. Raises Refused, as the others do."""
        ...

    async def submit_many(self, number: int) -> list[str]:
        """Submit so many in one request; their ids."""
        ...

    async def get(self, task_id: str) -> dict[str, Any]:
        """How a task stands: `status`, `priority`, `error`, `tags`, `metadata` among others."""
        ...

    async def find(self, *tags: str, **metadata: str) -> list[str]:
        """The ids of the tasks with these labels, newest first."""
        ...

    async def change(self, task_id: str, **fields: Any) -> None:
        """Change a task that waits."""
        ...

    async def purge(self, task_id: str) -> None:
        """Delete a task that has ended."""
        ...

    async def logs(self, task_id: str) -> list[tuple[int, str, str]]:
        """Attempt, level and text of each line of its log."""
        ...

    async def workers(self) -> dict[str, dict[str, Any]]:
        """What each worker tells of itself."""
        ...

    async def order(self, worker_id: str, order: str) -> None:
        """Tell a worker what to do."""
        ...


class RestWay(Way):
    """Over HTTP."""

    def __init__(self, client: RestClient) -> None:
        self._client = client

    async def submit(self, **fields: Any) -> str:
        body = {"task_type": "work", "payload": "eA==", **fields}
        return str((await self._ask("POST", TASKS, body))["task_id"])

    async def submit_many(self, number: int) -> list[str]:
        tasks = [{"task_type": "work", "payload": ""}] * number
        reply = await self._ask("POST", f"{TASKS}/batch", {"tasks": tasks})
        return [one["task_id"] for one in reply["results"]]

    async def get(self, task_id: str) -> dict[str, Any]:
        return dict(await self._ask("GET", f"{TASKS}/{task_id}"))

    async def find(self, *tags: str, **metadata: str) -> list[str]:
        asked = [("tags", tag) for tag in tags]
        asked += [("metadata", f"{name}={value}") for name, value in metadata.items()]
        reply = await self._ask("GET", f"{TASKS}?{urlencode(asked)}")
        assert reply["total"] == len(reply["tasks"])
        return [task["task_id"] for task in reply["tasks"]]

    async def change(self, task_id: str, **fields: Any) -> None:
        await self._ask("PATCH", f"{TASKS}/{task_id}", fields)

    async def purge(self, task_id: str) -> None:
        await self._ask("POST", f"{TASKS}/{task_id}/purge")

    async def logs(self, task_id: str) -> list[tuple[int, str, str]]:
        reply = await self._ask("GET", f"{TASKS}/{task_id}/logs")
        return [(one["attempt"], one["level"], one["message"]) for one in reply["lines"]]

    async def workers(self) -> dict[str, dict[str, Any]]:
        reply = await self._ask("GET", "/api/v1/workers")
        return {one["worker_id"]: one for one in reply["workers"]}

    async def order(self, worker_id: str, order: str) -> None:
        await self._ask("POST", f"/api/v1/workers/{worker_id}/order?order={order}")

    async def _ask(self, method: str, path: str, body: object = None) -> Any:
        reply = await self._client.ask(method, path, body)
        if reply.status >= 400:
            raise Refused(reply.code, reply.json["error"])
        return reply.json if reply.body else None


class NativeWay(Way):
    """Over the native protocol."""

    def __init__(self, client: RespClient) -> None:
        self.client = client

    async def submit(self, **fields: Any) -> str:
        return str((await self.ask("TQ.SUBMIT", "work", "x", *_words(fields))).decode())

    async def submit_many(self, number: int) -> list[str]:
        for _ in range(number):
            self.client.send("TQ.SUBMIT", "work", "")
        return [one.decode() for one in await self.client.answers(number)]

    async def get(self, task_id: str) -> dict[str, Any]:
        return {name: _text(value) for name, value in (await self.client.task(task_id)).items()}

    async def find(self, *tags: str, **metadata: str) -> list[str]:
        labels = {"tags": tags, "metadata": metadata}
        page = as_dict(await self.ask("TQ.LIST", *_words(labels)))
        assert page["total"] == len(page["tasks"])
        return [_text(as_dict(task)["task_id"]) for task in page["tasks"]]

    async def change(self, task_id: str, **fields: Any) -> None:
        await self.ask("TQ.CHANGE", task_id, *_words(fields))

    async def purge(self, task_id: str) -> None:
        await self.ask("TQ.PURGE", task_id)

    async def logs(self, task_id: str) -> list[tuple[int, str, str]]:
        reply = as_dict(await self.ask("TQ.LOGS", task_id))
        lines = [as_dict(line) for line in reply["lines"]]
        return [(one["attempt"], _text(one["level"]), _text(one["message"])) for one in lines]

    async def workers(self) -> dict[str, dict[str, Any]]:
        reply = as_dict(await self.ask("TQ.WORKERS"))
        rows = [as_dict(worker) for worker in reply["workers"]]
        return {
            _text(row["worker_id"]): {name: _text(value) for name, value in row.items()}
            for row in rows
        }

    async def order(self, worker_id: str, order: str) -> None:
        await self.ask("TQ.ORDER", worker_id, order)

    async def ask(self, *words: Any) -> Any:
        """The answer to a command. Raises Refused."""
        answer = await self.client.ask(*words)
        if isinstance(answer, hiredis.ReplyError):
            code, _, message = str(answer).partition(" ")
            raise Refused(code, message)
        return answer


class GrpcWay(Way):
    """Over gRPC."""

    def __init__(self, client: GrpcClient) -> None:
        self._client = client

    async def submit(self, **fields: Any) -> str:
        request = pb.SubmitTaskRequest(task_type="work", payload=b"x", **fields)
        return str((await self._call("SubmitTask", request)).task_id)

    async def submit_many(self, number: int) -> list[str]:
        request = pb.SubmitTasksRequest(tasks=[pb.SubmitTaskRequest(task_type="work")] * number)
        reply = await self._call("SubmitTasks", request)
        return [one.response.task_id for one in reply.results]

    async def get(self, task_id: str) -> dict[str, Any]:
        return _fields(await self._call("GetTaskStatus", pb.GetTaskStatusRequest(task_id=task_id)))

    async def find(self, *tags: str, **metadata: str) -> list[str]:
        reply = await self._call("ListTasks", pb.ListTasksRequest(tags=tags, metadata=metadata))
        assert reply.total == len(reply.tasks)
        return [task.task_id for task in reply.tasks]

    async def change(self, task_id: str, **fields: Any) -> None:
        await self._call("ChangeTask", pb.ChangeTaskRequest(task_id=task_id, **fields))

    async def purge(self, task_id: str) -> None:
        await self._call("PurgeTask", pb.PurgeTaskRequest(task_id=task_id))

    async def logs(self, task_id: str) -> list[tuple[int, str, str]]:
        reply = await self._call("GetTaskLogs", pb.GetTaskLogsRequest(task_id=task_id))
        return [(one.attempt, one.level, one.message) for one in reply.lines]

    async def workers(self) -> dict[str, dict[str, Any]]:
        reply = await self._call("ListWorkers", pb.ListWorkersRequest())
        return {one.worker_id: _fields(one) for one in reply.workers}

    async def order(self, worker_id: str, order: str) -> None:
        await self._call("OrderWorker", pb.OrderWorkerRequest(worker_id=worker_id, order=order))

    async def _call(self, name: str, request: Any) -> Any:
        try:
            return await self._client.call(name, request)
        except grpc.aio.AioRpcError as error:
            refusal = Refusal(error)
            raise Refused(refusal.code, refusal.message) from None


class ThreeDoors(NamedTuple):
    """A broker and a client at each of its doors; chores run when a test says so."""

    broker: Broker
    clock: ManualClock
    rest: RestWay
    native: NativeWay
    grpc: GrpcWay
    native_port: int

    def way(self, name: str) -> Way:
        """That of a door: rest, native or grpc."""
        found: Way = getattr(self, name)
        return found

    async def pass_seconds(self, seconds: float) -> None:
        """Let time pass as a healthy broker sees it: a round of chores in each second."""
        while seconds > 0:
            self.clock.advance(min(1.0, seconds))
            seconds -= 1.0
            await self.broker.upkeep.promote()
            await self.broker.upkeep.round()


@asynccontextmanager
async def three_doors(
    folder: Path, settings: BrokerSettings | None = None
) -> AsyncIterator[ThreeDoors]:
    """A broker with all its doors on free ports, and a clock that the test moves."""
    clock = ManualClock()
    async with a_broker(folder, clock=clock, settings=settings) as broker:
        rest, native, calls = (
            RestDoor(broker, RestSettings()),
            RespDoor(broker, RespSettings()),
            GrpcDoor(broker, GrpcSettings()),
        )
        for door in (rest, native, calls):
            await door.start("127.0.0.1", 0)
        client = await a_native_client(native.port)
        try:
            async with a_channel(calls.port) as channel:
                yield ThreeDoors(
                    broker,
                    clock,
                    RestWay(RestClient(broker, rest)),
                    NativeWay(client),
                    GrpcWay(GrpcClient(broker, calls, channel)),
                    native.port,
                )
        finally:
            client.hang_up()
            await broker.close()
            for door in (rest, native, calls):
                await door.close()


async def a_native_client(port: int) -> RespClient:
    """A connection to a native door."""
    return RespClient(*await asyncio.open_connection("127.0.0.1", port))


def _words(fields: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in fields.items():
        match name:
            case "tags":
                words += [word for tag in value for word in ("TAG", tag)]
            case "metadata":
                words += [word for key in value for word in ("META", f"{key}={value[key]}")]
            case "replace":
                words += ["REPLACE", "yes" if value else "no"]
            case _:
                words += [KEYWORDS[name], str(value)]
    return words


def _text(value: Any) -> Any:
    match value:
        case bytes():
            return value.decode()
        case list() if value and isinstance(value[0], bytes):
            return [one.decode() for one in value]
        case _:
            return value


def _fields(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


WAYS: Sequence[str] = ("rest", "native", "grpc")
