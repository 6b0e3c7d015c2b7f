"""The published gRPC API: as its reference says, well-kept, never broken, and its code up to date.

tests/house/wire.json holds what has been published. What is new is added to it by

    python -m tests.house.test_proto

which refuses to change or remove what is there: whoever has the file as it was goes on working.
"""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

ROOT = Path(__file__).parent.parent.parent
PROTO = ROOT / "proto"
WIRE = Path(__file__).with_name("wire.json")

REFERENCE = {
    "SubmitTaskRequest": {
        1: "string task_type",
        2: "bytes payload",
        3: "uint32 priority",
        4: "google.protobuf.Timestamp schedule_at",
        5: "uint64 timeout_seconds",
        6: "uint32 max_retries",
    },
    "SubmitTaskResponse": {
        1: "string task_id",
        2: "string status",
        3: "google.protobuf.Timestamp created_at",
    },
    "GetTaskStatusRequest": {1: "string task_id"},
    "GetTaskStatusResponse": {
        1: "string task_id",
        2: "string status",
        3: "bytes result",
        4: "string error",
        5: "uint32 retry_count",
        6: "string worker_id",
    },
}
"""The messages of the API reference; `optional` is left out, as it does not show on the wire."""

REFERENCE_CALLS = {
    "SubmitTask": "SubmitTaskRequest -> SubmitTaskResponse",
    "GetTaskStatus": "GetTaskStatusRequest -> GetTaskStatusResponse",
    "CancelTask": "CancelTaskRequest -> CancelTaskResponse",
    "ListTasks": "ListTasksRequest -> ListTasksResponse",
    "StreamTaskUpdates": "StreamTaskUpdatesRequest -> stream TaskUpdate",
    "GetStats": "GetStatsRequest -> GetStatsResponse",
}

OTHER_ANSWERS = {"StreamTaskUpdates": "TaskUpdate", "Session": "SessionReply"}
"""Calls whose answers are not called after them: what a stream says is not its whole answer."""

Wire = dict[str, dict[str, str]]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> FileDescriptorProto:
    return described(tmp_path_factory.mktemp("proto") / "set")


def described(target: Path) -> FileDescriptorProto:
    """The published file with its comments, as protoc reads it."""
    name = "taskqueue/taskqueue.proto"
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}"),
        *("--include_source_info", f"--descriptor_set_out={target}", name),
    ]
    subprocess.run(command, check=True)
    [file] = FileDescriptorSet.FromString(target.read_bytes()).file
    return file


def wire_of(file: FileDescriptorProto) -> Wire:
    """What clients rest on: each field by its message and number, each call by its service."""
    wire: Wire = {}
    for message in file.message_type:
        for inner in message.nested_type:
            wire[f"{message.name}.{inner.name}"] = fields_of(inner)
        wire[message.name] = fields_of(message)
    for service in file.service:
        wire[f"service {service.name}"] = {
            method.name: f"{'stream ' * method.client_streaming}{short(method.input_type)} -> "
            f"{'stream ' * method.server_streaming}{short(method.output_type)}"
            for method in service.method
        }
    return wire


def fields_of(message: DescriptorProto) -> dict[str, str]:
    return {str(field.number): f"{kind_of(message, field)} {field.name}" for field in message.field}


def kind_of(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    kind = short(field.type_name) or FieldDescriptorProto.Type.Name(field.type)[5:].lower()
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {kind}"
    if field.proto3_optional:
        return f"optional {kind}"
    if field.HasField("oneof_index"):
        return f"oneof {message.oneof_decl[field.oneof_index].name} {kind}"
    return kind


def short(name: str) -> str:
    return name.removeprefix(".taskqueue.").removeprefix(".")


def breaks(published: Wire, wire: Wire) -> list[str]:
    """What of the published API has changed or is gone."""
    return [
        f"{group}: {key} was {was!r}, is {wire.get(group, {}).get(key)!r}"
        for group, entries in published.items()
        for key, was in entries.items()
        if wire.get(group, {}).get(key) != was
    ] + [f"{group} is gone" for group in published if group not in wire]


def published() -> Wire:
    wire: Wire = json.loads(WIRE.read_text())
    return wire


def test_the_code_is_what_the_file_says() -> None:
    script = ROOT / "scripts" / "generate_proto.sh"
    ran = subprocess.run([script, "--check"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_api_is_that_of_the_reference(file: FileDescriptorProto) -> None:
    wire = wire_of(file)
    for name, fields in REFERENCE.items():
        for number, field in fields.items():
            assert wire[name][str(number)].removeprefix("optional ") == field
    assert wire["service TaskQueue"].items() >= REFERENCE_CALLS.items()


def test_nothing_published_is_changed_or_removed(file: FileDescriptorProto) -> None:
    assert breaks(published(), wire_of(file)) == []


def test_everything_is_entered_as_published(file: FileDescriptorProto) -> None:
    assert wire_of(file) == published(), "run python -m tests.house.test_proto"


def test_a_break_is_noticed(file: FileDescriptorProto) -> None:
    """The comparison itself: another type, another name, another number, a call that is gone."""
    changes: list[tuple[str, str, str | None]] = [
        ("SubmitTaskRequest", "3", "optional uint64 priority"),
        ("SubmitTaskRequest", "3", "optional uint32 rank"),
        ("SubmitTaskRequest", "3", None),
        ("service Work", "Claim", None),
    ]
    for group, key, entry in changes:
        wire = wire_of(file)
        del wire[group][key]
        if entry is not None:
            wire[group][key] = entry
        assert breaks(published(), wire) != []


def test_the_package_is_where_its_name_says(file: FileDescriptorProto) -> None:
    assert file.syntax == "proto3"
    assert file.name == f"{file.package.replace('.', '/')}/{file.package}.proto"
    assert [found.relative_to(PROTO).as_posix() for found in PROTO.rglob("*.proto")] == [file.name]


def test_names_have_their_usual_forms(file: FileDescriptorProto) -> None:
    large, small = re.compile(r"[A-Z][A-Za-z0-9]*"), re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
    for message in file.message_type:
        assert large.fullmatch(message.name)
        for field in message.field:
            assert small.fullmatch(field.name), f"{message.name}.{field.name}"
        for oneof in message.oneof_decl:
            assert small.fullmatch(oneof.name.removeprefix("_"))
    for service in file.service:
        assert large.fullmatch(service.name)
        for method in service.method:
            assert large.fullmatch(method.name)
    # Words of the API are texts, as in the reference: an enum would be a number on the wire.
    assert not file.enum_type


def test_each_call_has_a_request_and_an_answer_of_its_own(file: FileDescriptorProto) -> None:
    used: list[str] = []
    for service in file.service:
        for method in service.method:
            answer = OTHER_ANSWERS.get(method.name, f"{method.name}Response")
            assert short(method.input_type) == f"{method.name}Request"
            assert short(method.output_type) == answer
            used += [method.input_type, method.output_type]
    assert len(set(used)) == len(used)


def test_everything_has_a_comment(file: FileDescriptorProto) -> None:
    comments = {
        tuple(place.path): place.leading_comments.strip()
        for place in file.source_code_info.location
    }
    for path, name in places(file):
        comment = comments.get(path, "")
        assert comment, f"{name} has no comment"
        assert comment.endswith("."), f"the comment of {name} is no sentence"


def places(file: FileDescriptorProto) -> Iterator[tuple[tuple[int, ...], str]]:
    """Where each message, field, choice, service and call stands, in the numbers of protoc."""
    for number, message in enumerate(file.message_type):
        yield (4, number), message.name
        for place, field in enumerate(message.field):
            yield (4, number, 2, place), f"{message.name}.{field.name}"
        for place, oneof in enumerate(message.oneof_decl):
            if not oneof.name.startswith("_"):
                yield (4, number, 8, place), f"{message.name}.{oneof.name}"
    for number, service in enumerate(file.service):
        yield (6, number), service.name
        for place, method in enumerate(service.method):
            yield (6, number, 2, place), f"{service.name}.{method.name}"


def main() -> None:
    """Enter what is new as published."""
    target = WIRE.with_suffix(".set")
    try:
        wire = wire_of(described(target))
    finally:
        target.unlink(missing_ok=True)
    known: Any = published() if WIRE.exists() else {}
    if broken := breaks(known, wire):
        raise SystemExit("this would break clients:\n" + "\n".join(broken))
    WIRE.write_text(json.dumps(wire, indent=2) + "\n")


if __name__ == "__main__":
    main()
