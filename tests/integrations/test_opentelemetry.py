"""OpenTelemetry's real SDK around tasks of a real broker."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from taskqueue import App, Context, Fail, InvalidRequest, ProcessError, Snooze, Task, TaskFailed
from taskqueue.integrations.opentelemetry import instrument
from taskqueue.testing import LocalBroker
from taskqueue.worker.outcomes import Failure


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


class Traces:
    """A tracer provider that keeps what it is told."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def named(self, name: str) -> Sequence[ReadableSpan]:
        """The spans of a name that have ended, in the order of their ends."""
        return [one for one in self._exporter.get_finished_spans() if one.name == name]

    def one(self, name: str) -> ReadableSpan:
        """The only span of a name."""
        [span] = self.named(name)
        return span


@pytest.fixture
def traces() -> Traces:
    return Traces()


def an_app(traces: Traces, **options: Any) -> App:
    app = App(api_key="")
    instrument(app, tracer_provider=traces.provider, **options)
    return app


def context_of(span: ReadableSpan) -> trace.SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


async def test_an_execution_is_a_child_of_its_submit(broker: LocalBroker, traces: Traces) -> None:
    app = an_app(traces)
    instrument(app)  # once more changes nothing
    tracer = traces.provider.get_tracer("test")

    @app.task(priority="high")
    async def greet(name: str) -> str:
        with tracer.start_as_current_span("inside"):
            return f"hello {name}"

    async with broker.working(app):
        with tracer.start_as_current_span("request"):
            handle = await greet.submit("ada")
        assert await handle.result() == "hello ada"
    request, send, process = (traces.one(n) for n in ("request", "send greet", "process greet"))
    assert send.kind is SpanKind.PRODUCER
    assert process.kind is SpanKind.CONSUMER
    assert send.parent == context_of(request)
    for child, parent in ((process, send), (traces.one("inside"), process)):
        assert child.parent is not None
        assert child.parent.span_id == context_of(parent).span_id
        assert context_of(child).trace_id == context_of(request).trace_id
    assert [link.context.span_id for link in process.links] == [context_of(send).span_id]
    common = {
        "messaging.system": "taskqueue",
        "messaging.destination.name": "greet",
        "messaging.message.id": handle.task_id,
        "messaging.message.body.size": len(b'{"name":"ada"}'),
    }
    assert dict(send.attributes or {}) == common | {
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "taskqueue.task.priority": 200,
    }
    assert dict(process.attributes or {}) == common | {
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "taskqueue.task.attempt": 1,
        "taskqueue.task.outcome": "completed",
    }
    assert {send.status.status_code, process.status.status_code} == {StatusCode.UNSET}


async def test_a_trace_of_its_own_is_linked(broker: LocalBroker, traces: Traces) -> None:
    app = an_app(traces, join_trace=False)

    @app.task
    def in_thread() -> int:
        return trace.get_current_span().get_span_context().span_id

    async with broker.working(app):
        inside = await (await asyncio.to_thread(in_thread.submit_sync)).result()
    send, process = traces.one("send in_thread"), traces.one("process in_thread")
    assert inside == context_of(process).span_id
    assert process.parent is None
    assert context_of(process).trace_id != context_of(send).trace_id
    assert [link.context.span_id for link in process.links] == [context_of(send).span_id]


async def test_what_handlers_raise_is_recorded(broker: LocalBroker, traces: Traces) -> None:
    app = an_app(traces)

    @app.task(retries=0)
    async def broken() -> None:
        raise ValueError("no such thing")

    async with broker.working(app):
        with pytest.raises(TaskFailed):
            await (await broken.submit()).result()
    failed = traces.one("process broken")
    assert failed.status.status_code is StatusCode.ERROR
    assert failed.status.description == "ValueError: no such thing"
    [event] = failed.events
    said = dict(event.attributes or {})
    assert said["exception.type"] == "ValueError"
    assert said["exception.message"] == "no such thing"
    assert "in broken" in str(said["exception.stacktrace"])
    assert (failed.attributes or {})["error.type"] == "ValueError"


async def test_what_another_process_raised_has_its_own_name(
    broker: LocalBroker, traces: Traces
) -> None:
    app = an_app(traces)

    @app.task(retries=0)
    async def broken() -> None:
        raise ProcessError(Failure("LookupError", "lost", "in the process"))

    async with broker.working(app):
        with pytest.raises(TaskFailed):
            await (await broken.submit()).result()
    [event] = traces.one("process broken").events
    assert {
        name: (event.attributes or {})[f"exception.{name}"] for name in ("type", "message")
    } == {
        "type": "LookupError",
        "message": "lost",
    }
    assert (event.attributes or {})["exception.stacktrace"] == "in the process"


async def test_a_task_that_is_put_off_has_not_failed(broker: LocalBroker, traces: Traces) -> None:
    app = an_app(traces)

    @app.task
    async def put_off(ctx: Context) -> None:
        if not ctx.saved:
            await ctx.checkpoint(b"once")
            raise Snooze(0)
        raise Fail("never")

    async with broker.working(app):
        with pytest.raises(TaskFailed):
            await (await put_off.submit()).result()
    snoozed, final = traces.named("process put_off")
    assert (snoozed.attributes or {})["taskqueue.task.outcome"] == "snoozed"
    assert snoozed.status.status_code is StatusCode.UNSET
    assert not snoozed.events
    assert final.status.description == "Fail: never"
    submitted = context_of(traces.one("send put_off")).span_id
    assert [one.parent and one.parent.span_id for one in (snoozed, final)] == [submitted] * 2


async def test_out_of_time_is_an_error(broker: LocalBroker, traces: Traces) -> None:
    app = an_app(traces)

    @app.task(retries=0, timeout=1)
    async def endless() -> None:
        await asyncio.Event().wait()

    async with broker.working(app):
        with pytest.raises(TaskFailed):
            await (await endless.submit()).result()
    span = traces.one("process endless")
    assert (span.attributes or {})["error.type"] == "TimedOut"
    assert span.status.description == "the attempt took longer than its 1 s"


async def test_a_refused_submit_is_an_error(broker: LocalBroker, traces: Traces) -> None:
    app = an_app(traces)

    @app.task
    async def idle() -> None: ...

    async with broker.working(app):
        with pytest.raises(InvalidRequest):
            await idle.options(priority=256).submit()
    span = traces.one("send idle")
    assert (span.attributes or {})["error.type"] == "InvalidRequest"
    assert span.status.status_code is StatusCode.ERROR


async def test_metadata_stays_as_it_was_beside_the_trace(
    broker: LocalBroker, traces: Traces
) -> None:
    app = an_app(traces)
    full = {f"key{number}": "x" for number in range(50)}

    @app.task
    async def tell(ctx: Context) -> list[str]:
        return sorted(ctx.metadata)

    async with broker.working(app):
        with_some = await tell.options(metadata={"user": "ada"}).submit()
        assert await with_some.result() == ["traceparent", "user"]
        # There is no room for the trace: the task is more important.
        assert await (await tell.options(metadata=full).submit()).result() == sorted(full)
        # What nobody traces is executed all the same.
        by_hand = await app.client.submit_task(Task("tell", b"{}", metadata={"traceparent": "?"}))
        assert await app.client.wait_for_result(by_hand) == b'["traceparent"]'
    assert [len(one.links) for one in traces.named("process tell")] == [1, 0, 0]
