"""`python -m tests.fuzz.grpc --calls 50000`: broken protobuf messages, on a started server.

Each call must end with a status that says whose fault it was; afterwards the server must be as
well as before.
"""

import argparse
import asyncio
import random
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any, Final

import grpc

from taskqueue.doors.grpc import taskqueue_pb2 as pb
from tests.hardening.bystander import assert_well, memory_of
from tests.support.broker import BrokerProcess, a_broker_process

AT_ONCE: Final = 40
MOST_GROWTH: Final = 96 * 1024 * 1024
SECONDS: Final = 20
CALLERS_FAULT: Final = frozenset(
    {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION", "ABORTED", "ALREADY_EXISTS",
     "RESOURCE_EXHAUSTED", "UNIMPLEMENTED", "DEADLINE_EXCEEDED"}
)  # fmt: skip
METHODS: Final = {
    f"/{service.full_name}/{method.name}": method
    for service in pb.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if not method.client_streaming
}
NESTED_GROUPS: Final = b"\x0b" * 10_000 + b"\x0c" * 10_000
PIECES: Final = [
    NESTED_GROUPS,
    b"\xff",
    b"\x0a\xff\xff\xff\xff\x0f",
    b"\x0a\x02\xff\xfe",
    b"\x18\x80\x80",
    b"\x22\x0d\x08\x80\x92\xb8\xc3\x98\xfe\xff\xff\xff\x01\x10\x00",
    b"\x22\x06\x10\x80\x94\xeb\xdc\x03",
    b"\x22\x07\x08\xff\xff\xff\xff\xff\x7f",
    b"\x0a\x00",
    b"\x12\x00",
    b"\x1a\x01\x00",
    b"\x18\x05",
    b"\x28\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"\xf8\xff\xff\xff\x0f\x01",
    b"\x00",
    b"",
]


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.grpc", description=__doc__)
    parser.add_argument("--calls", type=int, default=50_000)
    parser.add_argument("--seed", type=int)
    options = parser.parse_args()
    seed = random.randrange(2**32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        a_broker_process(Path(folder) / "data", "--rate-limit", "0") as broker,
    ):
        print(asyncio.run(call_all(broker, seed, options.calls)), flush=True)


async def call_all(broker: BrokerProcess, seed: int, number: int) -> str:
    """Make so many calls. Raises AssertionError with a finding."""
    rng = random.Random(seed)
    statuses: Counter[str] = Counter()
    room = asyncio.Semaphore(AT_ONCE)
    options = [("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(broker.grpc, options=options) as channel:

        async def call(path: str, message: bytes) -> None:
            async with room:
                status = await status_of(channel, path, message)
            statuses[status] += 1
            assert status in CALLERS_FAULT, (path, status, message[:200])

        settled = memory_of(broker)
        async with asyncio.TaskGroup() as calls:
            for _ in range(number):
                await asyncio.sleep(0)
                calls.create_task(call(rng.choice([*METHODS, "/no/such"]), a_message(rng)))
    await asyncio.to_thread(assert_well, broker)
    growth = memory_of(broker) - settled
    assert growth < MOST_GROWTH, f"the server grew by {growth} bytes"
    told = ", ".join(f"{status} {times}" for status, times in statuses.most_common())
    return f"{number} calls: it is well, memory grew by {growth // 1024} KiB ({told})"


async def status_of(channel: grpc.aio.Channel, path: str, message: bytes) -> str:
    """What a call with these bytes ends with; a stream is left after its first answer."""
    method = METHODS.get(path)
    kind: Any = channel.unary_unary
    if method is not None and method.server_streaming:
        kind = channel.unary_stream
    call = kind(path)(message, timeout=SECONDS)
    try:
        if kind == channel.unary_stream:
            await call.read()
            call.cancel()
        else:
            await call
    except grpc.aio.AioRpcError as error:
        return error.code().name
    except asyncio.CancelledError:
        return "OK"
    return "OK"


def a_message(rng: random.Random) -> bytes:
    """Bytes of a message, sound or not."""
    parts = [rng.choice(PIECES) for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.5:
        sound = pb.SubmitTaskRequest(task_type=rng.choice(["t", "", "a b", "x" * 256]), priority=7)
        parts.append(sound.SerializeToString())
    data = bytearray(b"".join(parts))
    for _ in range(rng.randrange(3)):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


if __name__ == "__main__":
    main()
