"""The FastAPI integration in a real application behind a real server."""

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request

from taskqueue import App, TaskStatus, WorkerSettings
from taskqueue.integrations.fastapi import TaskApp, TaskClient, answer_errors, lifespan
from taskqueue.testing import LocalBroker

NOBODY = "00000000-0000-0000-0000-000000000000"


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


class Server:
    """An application that answers on a port of this machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def get(self, path: str) -> tuple[int, Any, Mapping[str, str]]:
        """Status, body and headers of an answer."""
        return await asyncio.to_thread(self._get, path)

    def _get(self, path: str) -> tuple[int, Any, Mapping[str, str]]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}{path}") as answer:
                return answer.status, json.load(answer), dict(answer.headers)
        except urllib.error.HTTPError as error:
            return error.code, _body(error.read()), dict(error.headers)


def _body(data: bytes) -> Any:
    return json.loads(data) if data.startswith(b"{") else data.decode()


@asynccontextmanager
async def serving(api: FastAPI) -> AsyncIterator[Server]:
    server = uvicorn.Server(uvicorn.Config(api, port=0, log_level="critical", lifespan="on"))
    running = asyncio.create_task(server.serve())
    async with asyncio.timeout(30):
        while not server.started:
            assert not running.done()
            await asyncio.sleep(0.01)
    try:
        yield Server(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        await running


def an_api(app: App, **options: Any) -> FastAPI:
    @app.task
    async def double(number: int) -> int:
        return 2 * number

    api = FastAPI(lifespan=lifespan(app, **options))
    answer_errors(api)

    @api.get("/double/{number}")
    async def run(number: int) -> int:
        return await (await double.submit(number)).result(timeout=30)

    @api.get("/urgent/{priority}")
    async def urgent(priority: int) -> str:
        return (await double.options(priority=priority).submit(1)).task_id

    @api.get("/tasks/{task_id}")
    async def status(task_id: str, client: TaskClient) -> str:
        found: TaskStatus = await client.get_status(task_id)
        return found.status

    @api.get("/names")
    async def names(app: TaskApp, request: Request) -> list[str]:
        return [*app.handlers, *getattr(request.state, "names", [])]

    return api


async def test_requests_submit_and_ask(broker: LocalBroker) -> None:
    app = App(broker.url, api_key="")
    async with serving(an_api(app, worker=WorkerSettings(concurrency=2))) as server:
        assert (await server.get("/double/21"))[:2] == (200, 42)
        [task] = broker.client.list_tasks(task_type="double").tasks
        assert (await server.get(f"/tasks/{task.task_id}"))[:2] == (200, "completed")
        assert (await server.get("/names"))[:2] == (200, ["double"])
    assert app.clients._aio is None  # hung up


async def test_errors_are_answered_with_their_status(broker: LocalBroker) -> None:
    async with serving(an_api(App(broker.url, api_key=""))) as server:
        status, body, _ = await server.get(f"/tasks/{NOBODY}")
        assert (status, body) == (404, {"error": "Task not found", "code": "TASK_NOT_FOUND"})
        status, body, _ = await server.get("/urgent/256")
        assert (status, body["code"]) == (400, "INVALID_REQUEST")


async def test_a_lifespan_of_ones_own_goes_around(broker: LocalBroker) -> None:
    seen: list[str] = []

    @asynccontextmanager
    async def around(api: FastAPI) -> AsyncIterator[dict[str, list[str]]]:
        seen.append("opened")
        yield {"names": ["own"]}
        seen.append("closed")

    async with serving(an_api(App(broker.url, api_key=""), around=around)) as server:
        assert (await server.get("/names"))[:2] == (200, ["double", "own"])
    assert seen == ["opened", "closed"]


async def test_without_the_lifespan_it_is_said_what_is_missing(broker: LocalBroker) -> None:
    api = FastAPI()
    said: list[str] = []

    @api.get("/")
    async def nothing(app: TaskApp) -> None: ...

    async def tell(_request: Request, error: Exception) -> Any:
        said.append(str(error))
        raise error

    api.add_exception_handler(RuntimeError, tell)
    async with serving(api) as server:
        assert (await server.get("/"))[0] == 500
    assert "lifespan(app)" in said[0]
