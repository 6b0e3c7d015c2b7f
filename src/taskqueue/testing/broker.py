"""A real broker beside a test, and an app's worker in it."""

import asyncio
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from taskqueue.client.address import broker_addresses
from taskqueue.client.aio import AsyncClient
from taskqueue.client.sync import LoopThread, SyncClient
from taskqueue.worker.app import App
from taskqueue.worker.runner import Worker
from taskqueue.worker.settings import WorkerSettings

START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 30.0
SHUTDOWN_SECONDS: Final = 5.0
_GREETING: Final = re.compile(
    r"listens: REST (?P<http>http://\S+)  native (?P<native>\S+)  gRPC (?P<grpc>\S+)"
)


class LocalBroker:
    """A `tq serve` for the length of a block, with its tasks in `folder`, on free ports.

    Settings of yours (`TQ_…`, tq.toml) do not reach it; `flags` are for `tq serve`. Raises
    RuntimeError with what it has said if it does not start.
    """

    def __init__(self, folder: Path, *flags: str) -> None:
        self.folder = folder
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        self._where: dict[str, str] = {}
        self._client: SyncClient | None = None

    def __enter__(self) -> "LocalBroker":
        self.folder.mkdir(parents=True, exist_ok=True)
        own = {name: value for name, value in os.environ.items() if not name.startswith("TQ_")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                [
                    *(sys.executable, "-m", "taskqueue.cli.main", "serve"),
                    *("--http", "127.0.0.1:0", "--native", "127.0.0.1:0", "--grpc", "127.0.0.1:0"),
                    *("--data", "data", "--rate-limit", "0", *self._flags),
                ],
                cwd=self.folder,
                env=own,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            self._await_greeting(self._process)
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None
        self._stop()

    @property
    def url(self) -> str:
        """Where clients and workers reach it: for App, AsyncClient, SyncClient."""
        return self._where["native"]

    @property
    def http(self) -> str:
        """Where its REST API is: `http://host:port`."""
        return self._where["http"]

    @property
    def grpc(self) -> str:
        """Where its gRPC API is: `host:port`."""
        return self._where["grpc"]

    @property
    def client(self) -> SyncClient:
        """A client, hung up with the broker."""
        if self._client is None:
            self._client = SyncClient(self.url, api_key="")
        return self._client

    @property
    def log(self) -> str:
        """What it has logged."""
        return self._log.read_text(errors="replace")

    def working(self, app: App, settings: WorkerSettings | None = None) -> "Working":
        """For the length of a block, this broker is the app's, and a worker runs its tasks here.

        In an `async with` on the test's event loop, in a `with` on one in a thread.
        """
        return Working(app, self.url, settings or WorkerSettings(shutdown_seconds=SHUTDOWN_SECONDS))

    @property
    def _log(self) -> Path:
        return self.folder / "broker.log"

    def _await_greeting(self, process: subprocess.Popen[bytes]) -> None:
        ends_at = time.monotonic() + START_SECONDS
        while (greeting := _GREETING.search(self.log)) is None:
            if process.poll() is not None or time.monotonic() > ends_at:
                raise RuntimeError(f"the broker did not start:\n{self.log[-4000:]}")
            time.sleep(0.02)
        self._where = greeting.groupdict()

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Working:
    """An app's worker that runs in this process; see `LocalBroker.working`."""

    def __init__(self, app: App, url: str, settings: WorkerSettings) -> None:
        self._app = app
        self._url = url
        self._settings = settings
        self._home = LoopThread()
        self._worker: Worker | None = None
        self._running: asyncio.Task[None] | None = None
        self._aio: dict[asyncio.AbstractEventLoop, AsyncClient] = {}
        self._sync = SyncClient(url, api_key="")

    def __enter__(self) -> "Working":
        self._home.run(self.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._home.run(self.__aexit__(kind, error, traceback))
        finally:
            self._home.stop()

    async def __aenter__(self) -> "Working":
        names: dict[str, Any] = {"aio": self._client_here, "sync": lambda: self._sync}
        if "aio" in vars(self._app.clients):
            raise RuntimeError("the app is at work in a test already")
        self._worker = Worker(self._app, broker_addresses(self._url, ""), self._settings)
        vars(self._app.clients).update(names)
        self._running = asyncio.create_task(self._worker.run())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._worker is not None  # noqa: S101  it was entered
        assert self._running is not None  # noqa: S101
        self._worker.stop()
        try:
            await self._running  # raises what has ended it before its time
        finally:
            for name in ("aio", "sync"):
                del vars(self._app.clients)[name]
            if (here := self._aio.pop(asyncio.get_running_loop(), None)) is not None:
                await here.close()
            await asyncio.to_thread(self._sync.close)

    def _client_here(self) -> AsyncClient:
        # The test and, in a thread, the worker: a client belongs to one loop.
        loop = asyncio.get_running_loop()
        if loop not in self._aio:
            self._aio[loop] = AsyncClient(self._url, api_key="")
        return self._aio[loop]
