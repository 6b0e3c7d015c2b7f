"""Calls gRPC methods as the tool grpcurl does: without stubs, by what the server says of itself.

`grpcurl("-plaintext -d '{…}' HOST:PORT package.Service/Method")` takes the tool's own words and
returns the messages as JSON has them.
"""

import json
import shlex
from collections.abc import Iterator
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc_reflection.v1alpha import reflection_pb2

REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
SECONDS = 20


class Refused(Exception):
    """The call ended with a status other than OK."""

    def __init__(self, error: grpc.RpcError) -> None:
        call: Any = error
        super().__init__(f"{call.code().name}: {call.details()}")
        self.status: str = call.code().name
        self.details: str = call.details()
        self.metadata = dict(call.initial_metadata() or ()) | dict(call.trailing_metadata() or ())

    @property
    def code(self) -> str:
        """The reference's code of the error: the reason in its ErrorInfo."""
        info = error_details_pb2.ErrorInfo()
        packed = status_pb2.Status.FromString(self.metadata["grpc-status-details-bin"])
        assert any(detail.Unpack(info) for detail in packed.details), packed
        return str(info.reason)


def grpcurl(words: str) -> list[dict[str, Any]]:
    """The messages that a call answers. Raises Refused."""
    return list(follow(words))


def follow(words: str) -> Iterator[dict[str, Any]]:
    """The messages that a call answers, each as it comes. Raises Refused."""
    address, method, data, metadata = _parse(shlex.split(words))
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel:
        found = find_method(channel, method, metadata)
        request: Any = message_factory.GetMessageClass(found.input_type)()
        json_format.Parse(data, request)
        response = message_factory.GetMessageClass(found.output_type)
        # A call with one answer is, on the wire, a stream of one.
        call: Any = channel.unary_stream(
            f"/{found.containing_service.full_name}/{found.name}",
            type(request).SerializeToString,
            response.FromString,
        )
        try:
            for answer in call(request, metadata=metadata, timeout=SECONDS):
                yield as_json(answer)
        except grpc.RpcError as error:
            raise Refused(error) from error


def as_json(message: Any) -> dict[str, Any]:
    """A message as grpcurl prints it."""
    fields: dict[str, Any] = json.loads(json_format.MessageToJson(message))
    return fields


def find_method(
    channel: grpc.Channel, name: str, metadata: list[tuple[str, str]]
) -> MethodDescriptor:
    """A method by `package.Service/Method`, from what the server's reflection says."""
    service, _, method = name.partition("/")
    pool = descriptor_pool.DescriptorPool()
    ask: Any = channel.stream_stream(
        REFLECTION,
        reflection_pb2.ServerReflectionRequest.SerializeToString,
        reflection_pb2.ServerReflectionResponse.FromString,
    )
    request = reflection_pb2.ServerReflectionRequest(file_containing_symbol=service)
    for answer in ask(iter([request]), metadata=metadata, timeout=SECONDS):
        for data in reversed(answer.file_descriptor_response.file_descriptor_proto):
            pool.Add(descriptor_pb2.FileDescriptorProto.FromString(data))
    found: MethodDescriptor = pool.FindServiceByName(service).methods_by_name[method]
    return found


def _parse(words: list[str]) -> tuple[str, str, str, list[tuple[str, str]]]:
    data, metadata, rest = "{}", [], []
    remaining = iter(words)
    for word in remaining:
        if word == "-d":
            data = next(remaining)
        elif word == "-H":
            name, _, value = next(remaining).partition(":")
            metadata.append((name.strip().lower(), value.strip()))
        elif word not in ("grpcurl", "-plaintext"):
            rest.append(word)
    address, method = rest
    return address, method, data, metadata
