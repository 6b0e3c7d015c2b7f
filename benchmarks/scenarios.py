"""What is measured, one function a scenario; each says what its figures mean."""

import asyncio
import base64
import json
import statistics
import struct
import time
from typing import Final

from benchmarks.brokers import MeasuredBroker, a_worker
from benchmarks.clients import Rate, frame, submit_natively, submit_over_rest
from taskqueue import AsyncClient, Task

PAYLOAD: Final = bytes(range(200))
NATIVE_SUBMIT: Final = frame(b"TQ.SUBMIT", b"noop", PAYLOAD)
REST_SUBMIT: Final = json.dumps(
    {"task_type": "noop", "payload": base64.b64encode(PAYLOAD).decode()}
).encode()
CONCURRENCY: Final = 500

Figures = dict[str, float]


async def submits_one_at_a_time(
    broker: MeasuredBroker, connections: int, seconds: float
) -> Figures:
    """Durable submits per second; each connection sends the next when it has its answer."""
    rate = await submit_natively(
        broker.native,
        NATIVE_SUBMIT,
        connections=connections,
        window=1,
        number=10**9,
        seconds=seconds,
    )
    return {f"submits/s, {connections} connections, one at a time": rate.per_second}


async def submits_pipelined(broker: MeasuredBroker, seconds: float) -> Figures:
    """Durable submits per second over 4 connections with up to 250 under way on each."""
    rate = await submit_natively(
        broker.native,
        NATIVE_SUBMIT,
        connections=4,
        window=250,
        number=10**9,
        seconds=seconds,
    )
    return {"submits/s, pipelined": rate.per_second}


async def submits_over_rest(broker: MeasuredBroker, seconds: float) -> Figures:
    """Durable submits per second over 50 REST connections, one at a time on each."""
    rate = await submit_over_rest(
        broker.http, REST_SUBMIT, connections=50, number=10**9, seconds=seconds
    )
    return {"submits/s, REST, 50 connections": rate.per_second}


async def fill(broker: MeasuredBroker, number: int) -> Rate:
    """Put `number` tasks in the queue."""
    return await submit_natively(
        broker.native,
        NATIVE_SUBMIT,
        connections=4,
        window=250,
        number=number,
        seconds=600,
    )


async def drain(broker: MeasuredBroker, number: int, seconds: float) -> Figures:
    """Tasks per second that one async worker completes, results stored.

    Counted from the first completion seen to the last, or to the end of `seconds`.
    """
    before = broker.completed()
    with a_worker(broker, CONCURRENCY):
        first = await _first_completed(broker, before)
        started = time.perf_counter()
        last, ends_at = first, started + seconds
        while last - before < number and time.perf_counter() < ends_at:
            await asyncio.sleep(0.05)
            last = broker.completed()
        elapsed = time.perf_counter() - started
    return {"tasks/s, drained by one worker": (last - first) / elapsed}


async def _first_completed(broker: MeasuredBroker, before: int) -> int:
    for _ in range(3_000):
        if (seen := broker.completed()) > before:
            return seen
        await asyncio.sleep(0.02)
    raise TimeoutError("the worker completed nothing in a minute")


async def live(broker: MeasuredBroker, seconds: float) -> Figures:
    """Tasks per second from submit to stored result while both go on at full speed."""
    with a_worker(broker, CONCURRENCY):
        await asyncio.sleep(2)
        before, started = broker.completed(), time.perf_counter()
        await fill_for(broker, seconds)
        elapsed = time.perf_counter() - started
        done = broker.completed() - before
    return {"tasks/s, live end to end": done / elapsed}


async def fill_for(broker: MeasuredBroker, seconds: float) -> Rate:
    """Submit, 100 under way, for a while."""
    return await submit_natively(
        broker.native,
        NATIVE_SUBMIT,
        connections=2,
        window=50,
        number=10**9,
        seconds=seconds,
    )


async def latency(broker: MeasuredBroker, seconds: float) -> Figures:
    """Milliseconds from before the submit to the handler's first line, at 100 tasks a second."""
    with a_worker(broker, 50):
        await asyncio.sleep(2)
        async with AsyncClient(broker.native) as client:
            ids: list[str] = []
            started = time.perf_counter()
            for index in range(round(seconds * 100)):
                await asyncio.sleep(max(0, started + index / 100 - time.perf_counter()))
                payload = struct.pack("<q", time.perf_counter_ns())
                ids.append(await client.submit_task(Task("clocked", payload)))
            results = [await client.wait_for_result(one, timeout=30) for one in ids]
    waits = sorted(struct.unpack("<q", result)[0] / 1e6 for result in results)
    cuts = statistics.quantiles(waits, n=100)
    return {
        "submit to start at 100/s, ms, p50": cuts[49],
        "submit to start at 100/s, ms, p95": cuts[94],
        "submit to start at 100/s, ms, p99": cuts[98],
    }
