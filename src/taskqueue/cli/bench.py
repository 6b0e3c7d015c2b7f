"""`tq bench`: what this broker does for this machine, with throw-away tasks."""

import asyncio
import os
import platform
import secrets
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated, Any, Final

from cyclopts import Parameter

from taskqueue.cli.bench_load import Drain, Latency, Submits
from taskqueue.cli.doctor_broker import ask
from taskqueue.cli.doctor_reach import is_local
from taskqueue.cli.options import HERE, Target
from taskqueue.cli.output import PLAIN, Form, is_for_programs, print_record, print_rows
from taskqueue.client.address import BrokerAddress, broker_addresses
from taskqueue.client.connection import Connection
from taskqueue.client.link import Link
from taskqueue.core.errors import InvalidRequest, PermissionDenied, TaskQueueError

PREFIX: Final = "tq.bench."
COLUMNS: Final = ("figure", "value", "unit")
MOST_TASKS: Final = 1_000_000
LARGEST_PAYLOAD: Final = 1_000_000
MOST_CONNECTIONS: Final = 500
MOST_WORKERS: Final = 32
LONGEST: Final = 3_600.0


def bench(
    *,
    tasks: Annotated[int, Parameter(help="tasks to submit at most in each of two ways")] = 5_000,
    payload: Annotated[int, Parameter(help="bytes of each task")] = 200,
    connections: Annotated[int, Parameter(help="connections that submit one at a time")] = 10,
    workers: Annotated[int, Parameter(help="workers in this process that drain the queue")] = 2,
    seconds: Annotated[float, Parameter(help="how long all of it may take")] = 20.0,
    yes: Annotated[
        bool, Parameter(negative="", help="also load a broker that is not on this machine")
    ] = False,
    target: Target = HERE,
    form: Form = PLAIN,
) -> None:
    """Measure submits, draining and the time from submit to start, from this machine.

    Other work on the broker is slowed down meanwhile. The tasks have a type of their own; those
    that are left at the end are cancelled.
    """
    for name, value, most in (
        ("tasks", tasks, MOST_TASKS),
        ("connections", connections, MOST_CONNECTIONS),
        ("workers", workers, MOST_WORKERS),
        ("payload", payload, LARGEST_PAYLOAD),
        ("seconds", seconds, LONGEST),
    ):
        if not 1 <= value <= most:
            raise InvalidRequest(f"{name} must be 1 to {most:g}, got {value:g}", field=name)
    chosen = target.chosen()
    addresses = broker_addresses(chosen.url, chosen.api_key)
    _require_leave(addresses, yes=yes)
    run = Run(addresses, tasks, b"x" * payload, connections, workers)
    figures = asyncio.run(run.all(seconds))
    _print(run.measured, figures, form)


class Run:
    """One measurement, stage after stage."""

    def __init__(
        self,
        addresses: tuple[BrokerAddress, ...],
        tasks: int,
        payload: bytes,
        connections: int,
        workers: int,
    ) -> None:
        self.measured: dict[str, Any] = {}
        """What was measured, and on what."""
        self._addresses = addresses
        self._type = f"{PREFIX}{secrets.token_hex(8)}"
        self._tasks, self._payload = tasks, payload
        self._connections, self._workers = connections, workers

    async def all(self, seconds: float) -> list[dict[str, Any]]:
        """Every stage, each with its share of the time; then nothing is left behind."""
        home = await Link(self._addresses).open()
        try:
            self.measured = await self._described(home)
            try:
                return await self._stages(home, seconds)
            finally:
                await _cancel_left(home, self._type)
        finally:
            home.close()

    async def _stages(self, home: Connection, seconds: float) -> list[dict[str, Any]]:
        share = seconds / 4
        submits = Submits(home.address, self._type, self._payload)
        _say(f"submitting over {self._connections} connections, one at a time …")
        single = await submits.run(self._connections, 1, self._tasks, share)
        _say("submitting pipelined …")
        pipelined = await submits.run(min(4, self._connections), 250, self._tasks, share)
        drain = Drain(home.address, self._type, self._workers)
        async with drain.working():
            _say(f"draining {submits.done} tasks with {self._workers} workers …")
            drained = await drain.run(submits.done, share)
            _say("waiting for single tasks to start …")
            waits = await Latency(home, self._type, drain).run(self._tasks, share)
        return [
            _figure(f"submits, {self._connections} connections, one at a time", single, "/s"),
            _figure("submits, pipelined", pipelined, "/s"),
            _figure("tasks drained, results stored", drained, "/s"),
            *(_figure(f"submit to start, p{name}", value, "ms") for name, value in waits.items()),
        ]

    async def _described(self, home: Connection) -> dict[str, Any]:
        hello = await ask(home, "HELLO", "3")
        return {
            "broker": str(home.address),
            "broker_version": str(hello["version"]),
            "durability": await _durability(home),
            "task_type": self._type,
            "tasks": self._tasks,
            "payload_bytes": len(self._payload),
            "connections": self._connections,
            "workers": self._workers,
            "tq_version": version("taskqueue"),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, {platform.system()} "
            f"{platform.release()}, Python {platform.python_version()}",
            "note": "figures of this machine, this broker and this moment; load generator and "
            "workers take their share of the cores",
        }


def _require_leave(addresses: Sequence[BrokerAddress], *, yes: bool) -> None:
    far = [str(address) for address in addresses if not is_local(address.host)]
    if far and not yes:
        raise InvalidRequest(
            f"{', '.join(far)} is not this machine, and what works there would be slowed down; "
            "say --yes if that is meant",
            field="yes",
        )


async def _durability(home: Connection) -> str:
    try:
        view = await ask(home, "TQ.CLUSTER")
    except PermissionDenied:
        return "the key may not ask"
    if not view["database"]:
        return "embedded engine: every answer after its transaction was synced to disk"
    return f"PostgreSQL: every answer after its commit, with {view['quorum']} standbys waited for"


async def _cancel_left(home: Connection, task_type: str) -> None:
    """Cancel what has not run, page after page; each page is of other tasks than the one before."""
    if not home.is_open:
        _say(f"the broker is gone; tq cancel --type {task_type} ends what is left of it")
        return
    while True:
        page = await ask(home, "TQ.LIST", "STATUS", "pending", "TYPE", task_type, "LIMIT", "1000")
        ids = [task["task_id"] for task in page["tasks"]]
        if not ids:
            return
        futures = [home.send(b"TQ.CANCEL", task_id.encode()) for task_id in ids]
        for outcome in await asyncio.gather(*futures, return_exceptions=True):
            if isinstance(outcome, BaseException) and not isinstance(outcome, TaskQueueError):
                raise outcome


def _figure(figure: str, value: float, unit: str) -> dict[str, Any]:
    return {"figure": figure, "value": round(value, 2 if unit == "ms" else 0), "unit": unit}


def _print(measured: dict[str, Any], figures: list[dict[str, Any]], form: Form) -> None:
    if is_for_programs(form) and form.output != "jsonl":
        print_record({"measured": measured, "figures": figures}, form)
        return
    print_rows(figures, form, COLUMNS)
    if not is_for_programs(form):
        for name, value in measured.items():
            print(f"{name.replace('_', ' ')}: {value}", file=sys.stderr)


def _say(text: str) -> None:
    print(f"tq: {text}", file=sys.stderr, flush=True)
