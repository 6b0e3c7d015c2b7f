"""What the REST door says about itself: OpenAPI, its page, metrics, the reference."""

import asyncio
import html.parser
import json
import re
from base64 import b64encode
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from taskqueue.broker.access import Caller
from taskqueue.broker.metrics import MOST_TYPES, OTHER, Metrics
from taskqueue.broker.operations import OPERATIONS
from taskqueue.core.clock import ManualClock
from taskqueue.core.errors import BrokerUnavailable
from taskqueue.core.keys import Permission
from taskqueue.doors import metrics, openapi
from taskqueue.storage.port import Totals
from taskqueue.wire import figures
from taskqueue.wire import messages as m
from taskqueue.wire.administration import CreateKeyRequest
from tests.support.broker import claimed
from tests.support.rest import TASKS, RestClient, a_rest_client

REFERENCE = Path(__file__).parents[3] / "docs" / "reference" / "rest.md"
EXAMPLE_ID = "550e8400-e29b-41d4-a716-446655440000"
CURL_LINES = re.findall(r"```bash\n(curl .*?)\n```", REFERENCE.read_text(), re.DOTALL)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[RestClient]:
    async with a_rest_client(tmp_path / "data", clock=ManualClock()) as client:
        yield client


async def samples(client: RestClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Every sample of the metrics page, by name and labels."""
    reply = await client.ask("GET", "/metrics")
    assert (reply.status, reply.headers["content-type"]) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
    )
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(reply.body.decode())
        for sample in family.samples
    }


def labelled(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


async def test_metrics_tell_what_happened(client: RestClient) -> None:
    clock = client.broker.clock
    assert isinstance(clock, ManualClock)
    for _ in range(3):
        await client.submit(task_type="send_email", priority=200)
    clock.advance(7)
    first, second = await claimed(client.broker, "send_email", count=2)
    clock.advance(0.07)
    await client.broker.complete(m.CompleteRequest(task_id=first.task.id, token=first.task.token))
    await client.broker.fail(
        m.FailRequest(task_id=second.task.id, token=second.task.token, message="no")
    )
    found = await samples(client)
    histogram = "tq_task_processing_duration_seconds"
    assert (
        found.items()
        >= {
            labelled("tq_tasks_total", status="pending", task_type="send_email"): 3,
            labelled("tq_tasks_total", status="completed", task_type="send_email"): 1,
            labelled("tq_tasks_pending"): 1,
            labelled("tq_tasks_present", status="failed"): 1,
            labelled("tq_queue_depth", tier="high"): 1,
            labelled("tq_queue_depth", tier="low"): 0,
            labelled("tq_claims_total"): 2,
            labelled("tq_retries_total"): 1,
            labelled("tq_workers"): 1,
            labelled("tq_connections", door="rest"): 1,
            labelled("tq_http_requests_total", operation="submit", status="201"): 3,
            labelled("tq_storage_reachable"): 1,
            labelled(f"{histogram}_bucket", le="0.05", task_type="send_email"): 0,
            labelled(f"{histogram}_bucket", le="0.1", task_type="send_email"): 1,
            labelled(f"{histogram}_bucket", le="+Inf", task_type="send_email"): 1,
            labelled(f"{histogram}_count", task_type="send_email"): 1,
            labelled(f"{histogram}_sum", task_type="send_email"): 0.07,
        }.items()
    )
    assert found[labelled("tq_oldest_pending_age_seconds")] == pytest.approx(7.07)
    assert found[labelled("tq_commit_batch_size_count")] >= 5
    assert found[labelled("tq_commit_duration_seconds_bucket", le="+Inf")] >= 5
    assert found[labelled("process_resident_memory_bytes")] > 0


async def test_metrics_have_the_documented_form(client: RestClient) -> None:
    await client.submit(task_type="send_email")
    page = (await client.ask("GET", "/metrics")).body.decode()
    for line in (
        "# HELP tq_tasks_total Total tasks submitted",
        "# TYPE tq_tasks_total counter",
        'tq_tasks_total{status="pending",task_type="send_email"} 1.0',
        "# HELP tq_tasks_pending Current pending tasks",
        "# TYPE tq_tasks_pending gauge",
        "tq_tasks_pending 1.0",
        "# HELP tq_task_processing_duration_seconds Task execution duration",
        "# TYPE tq_task_processing_duration_seconds histogram",
    ):
        assert line in page.splitlines()


@pytest.mark.parametrize("name", ['"', "\\", '\\"}', "a{b=c}", "ü", "#", "other", '\\n"'])
async def test_metrics_stay_readable_with_any_type(client: RestClient, name: str) -> None:
    await client.submit(task_type=name)
    [one] = await claimed(client.broker, name)
    await client.broker.complete(m.CompleteRequest(task_id=one.task.id, token=one.task.token))
    found = await samples(client)
    assert found[labelled("tq_tasks_total", status="completed", task_type=name)] == 1
    histogram = labelled("tq_task_processing_duration_seconds_count", task_type=name)
    assert found[histogram] == 1


async def test_types_beyond_a_thousand_share_a_label(client: RestClient) -> None:
    for start in range(0, 1100, 100):
        tasks = [{"task_type": f"t{start + n}", "payload": ""} for n in range(100)]
        await client.ask("POST", f"{TASKS}/batch", {"tasks": tasks * 2 if start < 1000 else tasks})
    found = await samples(client)
    totals = [key for key in found if key[0] == "tq_tasks_total"]
    assert len(totals) == MOST_TYPES + 1
    assert found[labelled("tq_tasks_total", status="pending", task_type=OTHER)] == 100
    assert found[labelled("tq_tasks_total", status="pending", task_type="t0")] == 2


def test_histograms_beyond_a_thousand_types_share_one() -> None:
    counted = Metrics()
    for number in range(MOST_TYPES + 50):
        counted.attempt_ended(f"t{number}", 0.1)
        counted.attempt_ended("t0", 0.1)
    assert len(counted.attempts) == MOST_TYPES + 1
    assert sum(counted.attempts[OTHER].buckets) == 50
    assert sum(counted.attempts["t0"].buckets) == MOST_TYPES + 51


async def test_metrics_are_there_while_the_storage_is_not(
    client: RestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unreachable() -> Totals:
        raise BrokerUnavailable("the disk is gone")

    monkeypatch.setattr(client.broker, "totals", unreachable)
    found = await samples(client)
    assert found[labelled("tq_storage_reachable")] == 0
    assert labelled("tq_workers") in found
    assert labelled("tq_tasks_pending") not in found


async def test_every_route_is_in_the_openapi_document(client: RestClient) -> None:
    reply = await client.ask("GET", "/openapi.json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    document = reply.json
    assert document["openapi"] == "3.1.0"
    described = {
        (method.upper(), path, int(next(iter(operation["responses"]))))
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }
    routes = {operation.http[:3] for operation in OPERATIONS if operation.http is not None}
    pages = {("GET", path, 200) for path in ("/metrics", "/openapi.json", "/docs")}
    assert described == routes | pages
    for method, path, _status in described:
        assert (await client.ask(method, path.replace("{task_id}", "x"))).code != "NOT_FOUND"


def test_every_reference_in_the_openapi_document_leads_somewhere() -> None:
    document = openapi.document()
    schemas = document["components"]["schemas"]
    references = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document))
    assert references
    assert set(references) <= set(schemas)


def test_the_openapi_document_tells_types_and_limits() -> None:
    document = openapi.document()
    submit = document["components"]["schemas"]["SubmitRequest"]
    assert submit["additionalProperties"] is False
    assert submit["required"] == ["task_type", "payload"]
    assert submit["properties"]["payload"]["contentEncoding"] == "base64"
    priority = submit["properties"]["priority"]
    assert (priority["minimum"], priority["maximum"], priority["default"]) == (0, 255, 100)
    reply = document["components"]["schemas"]["TaskReply"]["properties"]
    assert reply["created_at"]["format"] == "date-time"
    parameters = document["paths"][TASKS]["get"]["parameters"]
    assert {one["name"] for one in parameters} == {
        "status", "task_type", "limit", "offset", "cursor", "tags", "metadata",
    }  # fmt: skip
    assert all(one["in"] == "query" and not one["required"] for one in parameters)
    get = document["paths"][f"{TASKS}/{{task_id}}"]["get"]
    assert {one["name"] for one in get["parameters"]} == {"task_id", "wait"}
    assert set(get["responses"]) == {*("200", "400", "401", "403", "404", "429", "500", "503")}


@pytest.mark.parametrize("name", openapi.EXAMPLES)
async def test_the_examples_of_the_openapi_document_work(client: RestClient, name: str) -> None:
    [(method, path, status)] = [
        one.http[:3] for one in OPERATIONS if one.name == name and one.http is not None
    ]
    key, secret = await client.broker.keys.create(
        CreateKeyRequest(name="first", permissions=[Permission.ADMIN]), Caller("192.0.2.1")
    )
    headers = {"Authorization": f"Bearer {secret}"}
    made = await client.ask("POST", TASKS, openapi.EXAMPLES["submit"], headers)
    task_id = made.json["task_id"]
    where = path.format(key_id=key.id, task_id=task_id)
    reply = await client.ask(method, where, openapi.EXAMPLES[name], headers)
    assert reply.status == status


class Page(html.parser.HTMLParser):
    """What a browser would see of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.attributes: set[str] = set()
        self.style = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _value in attrs}
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["style"]:
            self.style += data
            self.tags.append("")


async def test_the_page_needs_no_script_and_no_other_network(client: RestClient) -> None:
    reply = await client.ask("GET", "/docs")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    text = reply.body.decode()
    page = Page()
    page.feed(text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert all(link == "/openapi.json" or link.startswith("#") for link in page.links)
    assert "style" not in page.attributes
    policy = reply.headers["content-security-policy"]
    digest = b64encode(sha256(page.style.encode()).digest()).decode()
    assert policy.startswith(f"default-src 'none'; style-src 'sha256-{digest}';")
    assert reply.headers["x-content-type-options"] == "nosniff"
    for operation in OPERATIONS:
        if operation.http is not None:
            assert f'id="{operation.name}"' in text
            assert operation.http.path in text


async def told(reader: asyncio.StreamReader | None) -> str:
    return (await reader.read()).decode() if reader else ""


async def run_curl(client: RestClient, line: str, task_id: str) -> tuple[int, Any]:
    """Run a curl line as printed, on this broker and this task; its status and body."""
    line = line.replace("http://localhost:8080", f"http://127.0.0.1:{client.door.port}")
    process = await asyncio.create_subprocess_shell(
        line.replace(EXAMPLE_ID, task_id) + " -s -w '\\n%{http_code}'",
        stdout=asyncio.subprocess.PIPE,
    )
    body, _, status = (await told(process.stdout)).rpartition("\n")
    await process.wait()
    return int(status), json.loads(body) if body.startswith(("{", "[")) else body


@pytest.mark.parametrize("line", CURL_LINES, ids=lambda line: line.splitlines()[0])
async def test_the_curl_lines_of_the_reference_work_as_printed(
    client: RestClient, line: str
) -> None:
    task_id = await client.submit()
    if line.endswith(("/retry", "/purge")):
        await client.ask("DELETE", f"{TASKS}/{task_id}")
    if "/workers/" in line:
        client.broker.workers.renew(line.partition("/workers/")[2].partition("/")[0])
    status, body = await run_curl(client, line, task_id)
    if "-X DELETE" in line or "/purge" in line or "/order" in line:
        assert (status, body) == (204, "")
    elif "-X POST" in line and line.partition(" ")[2].split()[2].endswith("/tasks"):
        assert (status, body["status"]) == (201, "pending")
    elif "/keys" in line:
        assert (status, body["key"][:3]) == (201, "tq_")
    else:
        assert (status, bool(body)) == (200, True)


def test_the_reference_has_every_kind_of_curl_line() -> None:
    printed = "\n".join(CURL_LINES)
    for part in (
        'curl -X POST http://localhost:8080/api/v1/tasks \\\n  -H "Content-Type: application/json"',
        f"curl http://localhost:8080/api/v1/tasks/{EXAMPLE_ID}\n",
        "curl 'http://localhost:8080/api/v1/tasks?status=completed&limit=50'",
        f"curl -X DELETE http://localhost:8080/api/v1/tasks/{EXAMPLE_ID}",
        "curl http://localhost:8080/api/v1/stats",
    ):
        assert part in printed


@pytest.mark.parametrize(
    "reply",
    [
        *(m.SubmitReply, m.SubmitBatchReply, m.TaskReply, m.ListReply, figures.StatsReply),
        *(figures.HealthReply, m.ErrorReply),
    ],
)
def test_the_reference_shows_every_reply_with_all_its_fields(reply: type[msgspec.Struct]) -> None:
    blocks = re.findall(r"```json\n(.*?)\n```", REFERENCE.read_text(), re.DOTALL)
    shown = [list(json.loads(block)) for block in blocks]
    assert list(reply.__struct_fields__) in shown


def test_the_reference_names_every_field_of_a_submit_and_every_metric() -> None:
    text = REFERENCE.read_text()
    for field in m.SubmitRequest.__struct_fields__:
        assert f"| `{field}` |" in text
    for name in re.findall(r'"(tq_\w+)"', Path(metrics.__file__).read_text()):
        assert f"| `{name}` |" in text or f"| `{name}_total` |" in text, name


async def test_curl_without_a_content_type_is_told_what_to_send(client: RestClient) -> None:
    line = f"curl -d '{{}}' http://localhost:8080{TASKS}"
    status, body = await run_curl(client, line, "")
    assert (status, body["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert "application/json" in body["error"]
