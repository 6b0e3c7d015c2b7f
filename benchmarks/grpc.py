"""Submits over gRPC, one a call and in batches, from one client process."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final

import grpc.aio

from benchmarks.brokers import MeasuredBroker
from taskqueue.doors.grpc import taskqueue_pb2 as pb

UNDER_WAY: Final = 80
BATCH: Final = 100
BATCHES_UNDER_WAY: Final = 8

Figures = dict[str, float]


async def submits_over_grpc(broker: MeasuredBroker, seconds: float) -> Figures:
    """Durable submits per second: calls of one task each, then calls of a hundred."""
    one = pb.SubmitTaskRequest(task_type="noop", payload=bytes(range(200)))
    many = pb.SubmitTasksRequest(tasks=[one] * BATCH)
    options = [("grpc.enable_http_proxy", 0)]
    async with grpc.aio.insecure_channel(broker.grpc, options=options) as channel:
        submit: Any = channel.unary_unary(
            "/taskqueue.TaskQueue/SubmitTask",
            pb.SubmitTaskRequest.SerializeToString,
            pb.SubmitTaskResponse.FromString,
        )
        submit_many: Any = channel.unary_unary(
            "/taskqueue.TaskQueue/SubmitTasks",
            pb.SubmitTasksRequest.SerializeToString,
            pb.SubmitTasksResponse.FromString,
        )
        alone = await _rate(lambda: submit(one), UNDER_WAY, seconds)
        together = await _rate(lambda: submit_many(many), BATCHES_UNDER_WAY, seconds)
    return {
        "submits/s, gRPC, one a call": alone,
        f"submits/s, gRPC, {BATCH} a call": together * BATCH,
    }


async def _rate(call: Callable[[], Awaitable[object]], under_way: int, seconds: float) -> float:
    """Calls per second with so many under way at any time."""
    done = 0
    begun = time.perf_counter()

    async def one_after_the_other() -> None:
        nonlocal done
        while time.perf_counter() - begun < seconds:
            await call()
            done += 1

    await asyncio.gather(*(one_after_the_other() for _ in range(under_way)))
    return done / (time.perf_counter() - begun)
