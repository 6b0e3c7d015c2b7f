"""What tools find at the gRPC door beside the API: health, reflection, notes on what will go."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from taskqueue.broker.access import AccessSettings
from taskqueue.broker.operation import Deprecation
from taskqueue.broker.operations import BY_NAME
from taskqueue.core.clock import ManualClock
from taskqueue.core.errors import BrokerUnavailable
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.doors.grpc.calls import Call
from taskqueue.doors.grpc.exchange import House, Unread
from taskqueue.doors.grpc.offers import Offer
from taskqueue.doors.grpc.server import new_server
from taskqueue.doors.grpc.settings import GrpcSettings
from taskqueue.doors.visit import Proxies
from taskqueue.wire import messages as m
from tests.support.broker import a_broker
from tests.support.door import PATIENCE
from tests.support.gate import GatedStorage
from tests.support.grpc import GrpcClient, a_channel, a_grpc_client, rest_of

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ["", "taskqueue.TaskQueue", "taskqueue.Work"]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[GrpcClient]:
    access = AccessSettings(required=True, rate_limit=1)
    async with a_grpc_client(tmp_path / "data", clock=ManualClock(), access=access) as client:
        yield client


def check(client: GrpcClient, service: str) -> Any:
    method: Any = client.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    return method(health_pb2.HealthCheckRequest(service=service))


def watch(client: GrpcClient, service: str) -> Any:
    method: Any = client.channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        health_pb2.HealthCheckRequest.SerializeToString,
        health_pb2.HealthCheckResponse.FromString,
    )
    return method(health_pb2.HealthCheckRequest(service=service))


@pytest.mark.parametrize("service", SERVICES)
async def test_health_is_told_without_a_key_and_without_a_limit(
    client: GrpcClient, service: str
) -> None:
    for _ in range(5):
        assert (await check(client, service)).status == SERVING


async def test_the_health_of_an_unknown_service_is_not_found(client: GrpcClient) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await check(client, "other.Service")
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_watchers_are_told_when_the_broker_cannot_write_and_when_it_can_again() -> None:
    storage = GatedStorage()
    async with a_grpc_client(Path(), storage=storage) as client:
        watches = [watch(client, service) for service in SERVICES]
        unknown = watch(client, "other.Service")
        for one in watches:
            assert (await one.read()).status == SERVING
        told = (await unknown.read()).status
        assert told == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN

        refused = client.broker.submit(m.SubmitRequest(task_type="work", payload=b"x"))
        await asyncio.sleep(0)
        storage.fail(BrokerUnavailable("the disk is gone"))
        with pytest.raises(BrokerUnavailable):
            await refused
        for one in watches:
            assert (await asyncio.wait_for(one.read(), 10)).status == NOT_SERVING
        assert (await check(client, "")).status == NOT_SERVING

        again = client.broker.submit(m.SubmitRequest(task_type="work", payload=b"x"))
        await asyncio.sleep(0)
        storage.commit()
        await again
        for one in watches:
            assert (await asyncio.wait_for(one.read(), 10)).status == SERVING

        rest = [asyncio.ensure_future(rest_of(one)) for one in (*watches, unknown)]
        await client.door.close()
        *ended, of_unknown = await asyncio.wait_for(asyncio.gather(*rest), 10)
        assert [[one.status for one in answers] for answers in ended] == [[NOT_SERVING]] * 3
        assert of_unknown == []


async def reflected(client: GrpcClient, version: str, **question: str) -> Any:
    method: Any = client.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    stream = method(iter([reflection_pb2.ServerReflectionRequest(**question)]))
    [answer] = await rest_of(stream)
    return answer


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_tools_can_ask_what_there_is(client: GrpcClient, version: str) -> None:
    answer = await reflected(client, version, list_services="")
    names = {service.name for service in answer.list_services_response.service}
    assert names >= {"taskqueue.TaskQueue", "taskqueue.Work", "grpc.health.v1.Health"}
    answer = await reflected(client, version, file_containing_symbol="taskqueue.TaskQueue")
    files = [
        FileDescriptorProto.FromString(data)
        for data in answer.file_descriptor_response.file_descriptor_proto
    ]
    assert "taskqueue/taskqueue.proto" in [file.name for file in files]


async def test_reflection_can_be_switched_off(tmp_path: Path) -> None:
    settings = GrpcSettings(reflection=False)
    async with a_grpc_client(tmp_path / "data", settings=settings) as client:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await reflected(client, "v1alpha", list_services="")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_call_that_will_go_says_so(tmp_path: Path) -> None:
    going = BY_NAME["stats"]._replace(deprecated=Deprecation(1_700_000_000, 1_800_000_000, "use X"))
    offer = Offer("GetStats", going, pb.GetStatsRequest, pb.GetStatsResponse)
    async with a_broker(tmp_path / "data") as broker:
        server = grpc.aio.server()
        call = Call(offer, House(broker, Proxies(""), 30, Unread()))
        handler = grpc.unary_unary_rpc_method_handler(call.answer)
        service = grpc.method_handlers_generic_handler("taskqueue.TaskQueue", {"GetStats": handler})
        server.add_generic_rpc_handlers([service])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with a_channel(port) as channel:
                method: Any = channel.unary_unary(
                    "/taskqueue.TaskQueue/GetStats", None, pb.GetStatsResponse.FromString
                )
                answer = method(b"")
                await answer
                headers = dict(await answer.initial_metadata())
        finally:
            await server.stop(None)
    assert headers["deprecation"] == "@1700000000"
    assert headers["sunset"] == "Fri, 15 Jan 2027 08:00:00 GMT"
    assert "use X" in str(headers["warning"])


async def test_a_server_that_ends_by_itself_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers: list[grpc.aio.Server] = []

    def noted(options: list[tuple[str, Any]], most_calls: int) -> grpc.aio.Server:
        servers.append(new_server(options, most_calls))
        return servers[-1]

    monkeypatch.setattr("taskqueue.doors.grpc.door.new_server", noted)
    async with a_grpc_client(tmp_path) as client:
        await client.submit()
        await servers[0].stop(None)
        async with asyncio.timeout(PATIENCE):
            await client.call(
                "SubmitTask", pb.SubmitTaskRequest(task_type="t", payload=b"x"), wait_for_ready=True
            )
    assert len(servers) == 2
