"""A gRPC door on a free port, and a client made from the published file alone."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc.aio import EOF  # type: ignore[attr-defined]  # the stubs do not know it

from taskqueue.broker.access import AccessSettings
from taskqueue.broker.broker import Broker, BrokerSettings
from taskqueue.core.clock import Clock
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.doors.grpc.door import GrpcDoor
from taskqueue.doors.grpc.settings import GrpcSettings
from taskqueue.storage.port import Storage
from tests.support.broker import a_broker

Metadata = Sequence[tuple[str, str | bytes]]

METHODS = {
    method.name: (service.full_name, method)
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
"""Every method of the API by its name; no name is used twice."""

OPTIONS = (
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", 15 * 1024 * 1024),
    ("grpc.enable_http_proxy", 0),
)


class GrpcClient:
    """Calls methods by their names, over one channel."""

    def __init__(self, broker: Broker, door: GrpcDoor, channel: grpc.aio.Channel) -> None:
        self.broker = broker
        self.door = door
        self.channel = channel

    def callable(self, name: str) -> Any:
        """The method, to be called with a message or with bytes."""
        service, method = METHODS[name]
        answer = getattr(pb, method.output_type.name)
        kinds = {
            (False, False): self.channel.unary_unary,
            (False, True): self.channel.unary_stream,
            (True, True): self.channel.stream_stream,
        }
        kind: Any = kinds[method.client_streaming, method.server_streaming]
        return kind(f"/{service}/{name}", written, answer.FromString)

    def call(
        self, name: str, request: Message | bytes = b"", metadata: Metadata = (), **options: Any
    ) -> Any:
        """Call a method with one request; to be awaited, or iterated over for a stream."""
        return self.callable(name)(request, metadata=metadata, **options)

    def session(self, metadata: Metadata = ()) -> Any:
        """Open a session."""
        return self.callable("Session")(metadata=metadata)

    async def submit(self, task_type: str = "work", **fields: Any) -> str:
        """Submit a task and return its id."""
        request = pb.SubmitTaskRequest(task_type=task_type, payload=b"x", **fields)
        return str((await self.call("SubmitTask", request)).task_id)

    async def claim(self, worker_id: str = "w1", **fields: Any) -> list[pb.ClaimedTask]:
        """Claim tasks of the type "work"."""
        request = pb.ClaimRequest(worker_id=worker_id, task_types=["work"], **fields)
        return list((await self.call("Claim", request)).tasks)


def written(message: Message | bytes) -> bytes:
    """The bytes of a message; bytes are sent as they are."""
    return message if isinstance(message, bytes) else message.SerializeToString()


class Refusal:
    """What an error says of itself in the details that go with its status."""

    def __init__(self, error: grpc.aio.AioRpcError) -> None:
        self.status = error.code().name
        self.message = error.details() or ""
        trailing: Any = error.trailing_metadata()
        self.metadata: dict[str, Any] = dict(trailing)
        self.code = ""
        self.domain = ""
        self.fields: list[str] = []
        self.retry_seconds: float | None = None
        details = status_pb2.Status.FromString(self.metadata["grpc-status-details-bin"])
        assert details.code == error.code().value[0]
        assert details.message == self.message
        for detail in details.details:
            self._read(detail)

    def _read(self, detail: Any) -> None:
        info, bad, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        if detail.Unpack(info):
            self.code, self.domain = info.reason, info.domain
        elif detail.Unpack(bad):
            self.fields = [violation.field for violation in bad.field_violations]
        elif detail.Unpack(retry):
            self.retry_seconds = retry.retry_delay.ToNanoseconds() / 1e9


async def refusal_of(call: Any) -> Refusal:
    """The error a call ends with."""
    try:
        answer = await (rest_of(call) if hasattr(call, "read") else call)
    except grpc.aio.AioRpcError as error:
        return Refusal(error)
    raise AssertionError(f"the call was not refused, it got {answer}")


async def rest_of(stream: Any) -> list[Any]:
    """What a stream says from here to its end."""
    rest = []
    while (answer := await stream.read()) is not EOF:
        rest.append(answer)
    return rest


@asynccontextmanager
async def a_grpc_client(
    folder: Path,
    *,
    clock: Clock | None = None,
    storage: Storage | None = None,
    settings: GrpcSettings | None = None,
    broker_settings: BrokerSettings | None = None,
    access: AccessSettings | None = None,
) -> AsyncIterator[GrpcClient]:
    """A client of a broker with a gRPC door, on SQLite in `folder` unless told otherwise."""
    async with a_broker(
        folder, clock=clock, storage=storage, settings=broker_settings, access=access
    ) as broker:
        door = GrpcDoor(broker, settings or GrpcSettings())
        await door.start("127.0.0.1", 0)
        try:
            async with a_channel(door.port) as channel:
                yield GrpcClient(broker, door, channel)
        finally:
            await broker.close()
            await door.close()


@asynccontextmanager
async def a_channel(port: int) -> AsyncIterator[grpc.aio.Channel]:
    """A connection of its own to the door on `port`."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", OPTIONS) as channel:
        yield channel
