"""A client that minds its own business while somebody else attacks the broker."""

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path

import grpc

from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.wire.resp import command
from tests.support.broker import BrokerProcess
from tests.support.door import PATIENCE, until
from tests.support.grpc import OPTIONS
from tests.support.rest import TASKS

SPARE_FILES = 5
"""Files that the broker may open for later use."""

TASK_TYPE = "bystander"
TASK = json.dumps({"task_type": TASK_TYPE, "payload": "eA=="})


class Bystander:
    """Submits at every door, over and over, and fails at the first answer that is not as usual."""

    def __init__(self, process: BrokerProcess, key: str | None = None) -> None:
        self.has_begun = threading.Event()
        self.is_over = threading.Event()
        self._process = process
        self._key = key
        self._shown = {"authorization": f"Bearer {key}"} if key else {}

    def work(self) -> None:
        """Go on until told that it is over."""
        with self._rest() as rest, self._native() as native, self._channel() as channel:
            while True:
                self._submit(rest, native, channel)
                self.has_begun.set()
                if self.is_over.wait(0.01):
                    return

    def submit(self) -> None:
        """Be served once, on new connections."""
        with self._rest() as rest, self._native() as native, self._channel() as channel:
            self._submit(rest, native, channel)

    def _submit(
        self, rest: http.client.HTTPConnection, native: socket.socket, channel: grpc.Channel
    ) -> None:
        rest.request("GET", "/api/v1/health")
        with rest.getresponse() as reply:
            assert (reply.status, json.load(reply)["status"]) == (200, "healthy")
        rest.request("POST", TASKS, TASK, {"Content-Type": "application/json", **self._shown})
        with rest.getresponse() as reply:
            assert reply.status == 201, reply.read()
            reply.read()
        if self._key is not None:
            native.sendall(command(b"AUTH", self._key.encode()))
            assert native.recv(4_096) == b"+OK\r\n"
        native.sendall(command(b"TQ.SUBMIT", TASK_TYPE.encode(), b"x"))
        answer = native.recv(4_096)
        assert answer.startswith(b"$36\r\n"), answer
        submit = channel.unary_unary(
            "/taskqueue.TaskQueue/SubmitTask",
            pb.SubmitTaskRequest.SerializeToString,
            pb.SubmitTaskResponse.FromString,
        )
        request = pb.SubmitTaskRequest(task_type=TASK_TYPE, payload=b"x")
        shown = tuple(self._shown.items())
        assert submit(request, timeout=PATIENCE, metadata=shown).status == "pending"

    def _rest(self) -> "closing[http.client.HTTPConnection]":
        return closing(http.client.HTTPConnection(self._process.http, timeout=PATIENCE))

    def _channel(self) -> grpc.Channel:
        return grpc.insecure_channel(self._process.grpc, OPTIONS)

    def _native(self) -> socket.socket:
        host, port = self._process.native.rsplit(":", 1)
        return socket.create_connection((host, int(port)), timeout=PATIENCE)


@asynccontextmanager
async def unharmed(process: BrokerProcess, key: str | None = None) -> AsyncIterator[None]:
    """Others are served all through the block and after it, and the broker logs no fault.

    What the block leaves open is closed again in the end. `key` is shown where one is needed.
    """
    logged = len(log_of(process))
    open_files = files_of(process)
    bystander = Bystander(process, key)
    work = asyncio.create_task(asyncio.to_thread(bystander.work))
    try:
        await until(lambda: bystander.has_begun.is_set() or work.done())
        yield
    finally:
        bystander.is_over.set()
        await work
    await asyncio.to_thread(assert_well, process, key, logged)
    await until(lambda: files_of(process) <= open_files + SPARE_FILES)


def assert_well(process: BrokerProcess, key: str | None = None, logged: int = 0) -> None:
    """A new client is served at every door, and the log tells of no fault since its `logged`th
    character. Raises AssertionError."""
    Bystander(process, key).submit()
    log = log_of(process)[logged:]
    assert "Traceback" not in log, log[:2_000]
    assert '"level":"error"' not in log.replace(" ", ""), log[:2_000]


def files_of(process: BrokerProcess) -> int:
    """How many files and connections the broker has open."""
    return len(list(Path(f"/proc/{process.pid}/fd").iterdir()))


def memory_of(process: BrokerProcess) -> int:
    """Bytes of memory the broker takes now."""
    return resident(process.pid)


def resident(pid: int | str = "self") -> int:
    """Bytes of memory that a process takes now, or this one."""
    status = Path(f"/proc/{pid}/status").read_text()
    [line] = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def log_of(process: BrokerProcess) -> str:
    """All that the broker has logged."""
    return process.folder.with_suffix(".log").read_text()
