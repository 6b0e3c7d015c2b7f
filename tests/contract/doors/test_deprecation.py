"""An operation that will go says so with every answer, and in the OpenAPI document."""

from datetime import UTC, datetime
from pathlib import Path

from taskqueue.broker.operation import Deprecation
from taskqueue.broker.operations import BY_NAME
from taskqueue.doors import openapi
from taskqueue.doors.http import RestSettings
from taskqueue.doors.listener import HttpListener
from taskqueue.doors.rest import rest_app
from taskqueue.doors.visit import deprecation_notices
from tests.support.broker import a_broker
from tests.support.rest import ask_raw, parsed

GOING = Deprecation(
    since=int(datetime(2026, 1, 1, tzinfo=UTC).timestamp()),
    sunset=int(datetime(2027, 1, 1, tzinfo=UTC).timestamp()),
    advice='use "totals" instead',
)
SAMPLE = BY_NAME["stats"]._replace(deprecated=GOING)


async def test_an_answer_over_rest_names_since_until_and_what_instead(tmp_path: Path) -> None:
    settings = RestSettings()
    async with a_broker(tmp_path) as broker:
        app = rest_app(broker, settings, operations=[SAMPLE, BY_NAME["health"]])
        listener = HttpListener(app, settings, broker.clock)
        await listener.start("127.0.0.1", 0)
        try:
            reply = parsed(await ask_raw(listener.port, "GET /api/v1/stats"))
            other = parsed(await ask_raw(listener.port, "GET /api/v1/health"))
        finally:
            await listener.close()
    assert reply.status == 200
    assert reply.headers["deprecation"] == "@1767225600"
    assert reply.headers["sunset"] == "Fri, 01 Jan 2027 00:00:00 GMT"
    assert reply.headers["warning"] == "299 - \"use 'totals' instead\""
    assert not {"deprecation", "sunset", "warning"} & other.headers.keys()


def test_the_same_goes_as_metadata_over_grpc() -> None:
    assert [name for name, _ in deprecation_notices(GOING)] == ["deprecation", "sunset", "warning"]
    assert deprecation_notices(None) == []


def test_the_openapi_document_marks_it() -> None:
    paths = openapi.document([SAMPLE, BY_NAME["health"]])["paths"]
    assert paths["/api/v1/stats"]["get"]["deprecated"] is True
    assert "deprecated" not in paths["/api/v1/health"]["get"]
