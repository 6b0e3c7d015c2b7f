"""What the gRPC door does not take, and how it opens and closes."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest

from taskqueue.core.clock import ManualClock
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.doors.grpc.door import GrpcDoor
from taskqueue.doors.grpc.offers import LARGEST_MESSAGE
from taskqueue.doors.grpc.settings import GrpcSettings
from tests.support.broker import a_broker, until_parked
from tests.support.door import until
from tests.support.grpc import GrpcClient, a_channel, a_grpc_client


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[GrpcClient]:
    async with a_grpc_client(tmp_path / "data", clock=ManualClock()) as client:
        yield client


async def code_of(call: Any) -> str:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return str(caught.value.code().name)


async def test_a_message_beyond_15_mib_is_refused(client: GrpcClient) -> None:
    assert await code_of(client.call("SubmitTask", bytes(LARGEST_MESSAGE + 1))) == (
        "RESOURCE_EXHAUSTED"
    )
    await client.submit()


async def test_a_batch_of_15_mib_is_taken(client: GrpcClient) -> None:
    task = pb.SubmitTaskRequest(task_type="work", payload=bytes(LARGEST_MESSAGE // 1_000 - 100))
    reply = await client.call("SubmitTasks", pb.SubmitTasksRequest(tasks=[task] * 1_000))
    assert {result.WhichOneof("outcome") for result in reply.results} == {"response"}


async def test_metadata_beyond_16_kib_is_refused(client: GrpcClient) -> None:
    metadata = [("x-request-id", "x" * 17_000)]
    assert await code_of(client.call("GetStats", b"", metadata)) == "RESOURCE_EXHAUSTED"
    await client.submit()


async def test_an_unknown_method_is_unimplemented(client: GrpcClient) -> None:
    for path in ("/taskqueue.TaskQueue/Nothing", "/other.Service/SubmitTask"):
        method: Any = client.channel.unary_unary(path, None, None)
        assert await code_of(method(b"")) == "UNIMPLEMENTED"


async def test_more_calls_than_one_connection_takes_at_once_are_all_answered(
    client: GrpcClient,
) -> None:
    calls = [client.submit() for _ in range(1_500)]
    assert len(set(await asyncio.gather(*calls))) == 1_500


async def test_calls_beyond_the_limit_of_the_door_are_refused(tmp_path: Path) -> None:
    settings = GrpcSettings(max_calls=2)
    async with a_grpc_client(tmp_path / "data", settings=settings) as client:
        claim = pb.ClaimRequest(worker_id="w1", task_types=["work"], wait_ms=60_000)
        waiting = [asyncio.ensure_future(client.call("Claim", claim)) for _ in range(2)]
        await until_parked()
        assert await code_of(client.call("GetStats", b"")) == "RESOURCE_EXHAUSTED"
        await client.broker.close()
        assert [list((await one).tasks) for one in waiting] == [[], []]


async def test_connections_beyond_the_limit_of_the_door_are_refused(tmp_path: Path) -> None:
    settings = GrpcSettings(max_connections=2)
    async with (
        a_grpc_client(tmp_path / "data", settings=settings) as client,
        AsyncExitStack() as stack,
    ):
        codes = []
        for _ in range(5):
            channel = await stack.enter_async_context(a_channel(client.door.port))
            other = GrpcClient(client.broker, client.door, channel)
            try:
                await other.call("GetStats", b"", timeout=0.5)
            except grpc.aio.AioRpcError as error:
                codes.append(error.code().name)
            else:
                codes.append("OK")
        assert codes[:2] == ["OK", "OK"]
        assert "OK" not in codes[2:]


async def test_a_port_that_is_taken_is_an_error(client: GrpcClient) -> None:
    other = GrpcDoor(client.broker, GrpcSettings())
    with pytest.raises(OSError, match="in use"):
        await other.start("127.0.0.1", client.door.port)
    await other.close()
    with pytest.raises(OSError, match="assign"):
        await GrpcDoor(client.broker, GrpcSettings()).start("192.0.2.1", 0)


async def test_a_name_and_an_address_of_version_6_can_be_listened_on(tmp_path: Path) -> None:
    async with a_broker(tmp_path / "data") as broker:
        for host in ("localhost", "::1"):
            door = GrpcDoor(broker, GrpcSettings())
            await door.start(host, 0)
            assert door.port > 0
            await door.close()


async def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    async with a_broker(tmp_path / "data") as broker:
        with pytest.raises(ValueError, match="nonsense"):
            GrpcDoor(broker, GrpcSettings(trusted_proxies="nonsense"))


async def test_closing_ends_what_does_not_end_by_itself(client: GrpcClient) -> None:
    updates = client.call(
        "StreamTaskUpdates", pb.StreamTaskUpdatesRequest(task_id=await client.submit())
    )
    await updates.read()
    with socket.create_connection(("127.0.0.1", client.door.port)):  # says nothing at all
        async with asyncio.timeout(5):
            await client.door.close()
    assert await code_of(updates.read()) in ("UNAVAILABLE", "CANCELLED")
    await until(lambda: client.broker.updates.follower_count == 0)


async def test_noise_instead_of_http_2_is_no_harm(client: GrpcClient) -> None:
    for noise in (b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n", bytes(range(256)) * 64):
        reader, writer = await asyncio.open_connection("127.0.0.1", client.door.port)
        writer.write(noise)
        async with asyncio.timeout(10):
            while await reader.read(65_536):
                pass
        writer.close()
    await client.submit()
