"""A started server as the reference's reader meets it: HTTP by hand, curl, and a worker."""

import json
import os
import re
import shlex
import socket
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import redis

from tests.support.broker import BrokerProcess, a_broker_process

KEY = "a-key-for-automation-of-32-characters-or-more"
TASKS = "/api/v1/tasks"
EXAMPLE_ID = "550e8400-e29b-41d4-a716-446655440000"
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")


class Reply(NamedTuple):
    """An answer over REST."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    def is_error(self, status: int, code: str) -> bool:
        """Whether it is this error, in the documented form."""
        assert (self.status, self.json["code"]) == (status, code), self
        assert self.headers["content-type"] == "application/json"
        assert set(self.json) == {"error", "code", "timestamp"}
        assert isinstance(self.json["error"], str)
        assert self.json["error"]
        assert TIME.fullmatch(self.json["timestamp"])
        return True


class Served:
    """A server, and how to talk to it."""

    def __init__(self, broker: BrokerProcess, key: str | None = None) -> None:
        self.broker = broker
        self.key = key

    def ask(
        self, method: str, path: str, body: object = None, key: str | None = None, **headers: str
    ) -> Reply:
        """A request over REST, with the server's key if it has one."""
        shown = key or self.key
        lines = {name.replace("_", "-"): value for name, value in headers.items()}
        if shown:
            lines["Authorization"] = f"Bearer {shown}"
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        if body is not None:
            lines.setdefault("Content-Type", "application/json")
        request = urllib.request.Request(
            f"http://{self.broker.http}{path}",
            data=None if body is None else data,
            headers=lines,
            method=method,
        )
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return Reply(answer.status, _lower(answer.headers), answer.read())
        except urllib.error.HTTPError as refusal:
            return Reply(refusal.code, _lower(refusal.headers), refusal.read())

    def curl(self, line: str) -> tuple[int, str]:
        """The status and body that a printed curl line gets."""
        line = line.replace("http://localhost:8080", f"http://{self.broker.http}")
        words = shlex.split(line.replace("\\\n", " "))
        if self.key and "my_api_key" in line:
            words = [word.replace("my_api_key", self.key) for word in words]
        elif self.key:
            words += ["-H", f"Authorization: Bearer {self.key}"]
        ran = subprocess.run(
            [*words, "-s", "-w", "\n%{http_code}"],
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
            env=os.environ | {"no_proxy": "*"},
        )
        body, _, status = ran.stdout.rpartition("\n")
        return int(status), body

    def grpcurl_words(self, line: str) -> str:
        """A printed grpcurl line, for this server."""
        line = line.replace("\\\n", " ").replace("localhost:9090", self.broker.grpc)
        if self.key:
            line = line.replace("-plaintext", f"-plaintext -H 'authorization: Bearer {self.key}'")
        return line

    def submit(self, **fields: object) -> str:
        """A task's id."""
        reply = self.ask("POST", "/api/v1/tasks", {"task_type": "t", "payload": "", **fields})
        assert reply.status == 201, reply
        task_id: str = reply.json["task_id"]
        return task_id

    def limited_key(self, *permissions: str) -> str:
        """A key that may do no more than this."""
        body = {"name": f"limited-{uuid.uuid4()}", "permissions": permissions}
        key: str = self.ask("POST", "/api/v1/keys", body).json["key"]
        return key

    def flood(self, path: str, times: int, key: str | None = None) -> list[int]:
        """The statuses of many GET requests sent at once, over one connection."""
        shown = key or self.key
        head = f"GET {path} HTTP/1.1\r\nHost: broker\r\n"
        head += f"Authorization: Bearer {shown}\r\n" if shown else ""
        sent = f"{head}\r\n" * (times - 1) + f"{head}Connection: close\r\n\r\n"
        host, _, port = self.broker.http.rpartition(":")
        with socket.create_connection((host, int(port)), 20) as connection:
            connection.sendall(sent.encode())
            answers = b"".join(iter(lambda: connection.recv(65_536), b""))
        return [int(status) for status in re.findall(rb"HTTP/1.1 (\d{3}) ", answers)]

    def task(self, task_id: str) -> Any:
        """How a task stands."""
        return self.ask("GET", f"/api/v1/tasks/{task_id}").json

    def worker(self) -> "Worker":
        """Somebody who works on tasks."""
        host, _, port = self.broker.native.rpartition(":")
        return Worker(redis.Redis(host=host, port=int(port), password=self.key, protocol=3))


class Worker:
    """Claims tasks and says what became of them."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def claim(self, task_type: str = "t") -> tuple[str, int]:
        """The id and token of a task."""
        claimed: Any = self._connection.execute_command(
            "TQ.CLAIM", "worker-1-12345", "BLOCK", 5000, "TYPES", task_type
        )
        [[task_id, token, *_]] = claimed
        return task_id.decode(), token

    def call(self, *words: object) -> Any:
        """The answer to any command."""
        return self._connection.execute_command(*words)

    def complete(self, claim: tuple[str, int], result: bytes = b"") -> None:
        """It succeeded."""
        self._connection.execute_command("TQ.COMPLETE", *claim, "RESULT", result)

    def fail(self, claim: tuple[str, int], message: str, *options: object) -> None:
        """It failed."""
        self._connection.execute_command("TQ.FAIL", *claim, message, *options)

    def close(self) -> None:
        """Go."""
        self._connection.close()


@contextmanager
def a_closed_server(folder: Path, *flags: str) -> Iterator[Served]:
    """A server whose environment names a key, so that it demands one."""
    with ExitStack() as running:
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("TQ_BOOTSTRAP_KEY", KEY)
            broker = running.enter_context(a_broker_process(folder, *flags))
        yield Served(broker, KEY)


def _lower(headers: Any) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
