"""Runs a worker as a process: its event loop, its signals, its end."""

import asyncio
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

from taskqueue.client.address import broker_addresses
from taskqueue.core.errors import InvalidRequest
from taskqueue.worker.app import App
from taskqueue.worker.loops import loop_factory
from taskqueue.worker.runner import Worker
from taskqueue.worker.settings import WorkerSettings


def load_app(path: str) -> App:
    """The app that `module:name` means. Raises InvalidRequest if there is none."""
    module_name, _, name = path.partition(":")
    if not module_name or module_name.startswith("."):
        raise InvalidRequest(f"{path!r} names no module; write module:app")
    if str(os.curdir) not in sys.path:
        sys.path.insert(0, os.curdir)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise InvalidRequest(
            f"there is no module {error.name!r} to import for {path!r}; "
            "write module:app, from the folder in which the module is"
        ) from error
    app = getattr(module, name or "app", None)
    if not isinstance(app, App):
        raise InvalidRequest(f"{path!r} is not a taskqueue.App; write module:app")
    return app


def run_worker(
    app: App | Sequence[App],
    url: str | None = None,
    settings: WorkerSettings | None = None,
    on_start: Callable[[Worker], None] = lambda _worker: None,
) -> None:
    """Run a worker until SIGTERM or SIGINT; the second one stops it at once.

    Of several apps the first one says where the broker is if `url` does not. Raises InvalidRequest.
    """
    apps = [app] if isinstance(app, App) else list(app)
    if not apps:
        raise InvalidRequest("no app is named; write module:app")
    addresses = broker_addresses(url or apps[0].clients.url, apps[0].clients.api_key)

    async def work() -> bool:
        worker = Worker(apps, addresses, settings or WorkerSettings())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, worker.stop)
        on_start(worker)
        await worker.run()
        for one in apps:
            await one.close()
        return worker.busy_threads

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        if runner.run(work()):
            # A thread cannot be ended; its task has been given back, so nothing is lost with it.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
