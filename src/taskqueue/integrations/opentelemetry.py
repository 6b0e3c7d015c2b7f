"""OpenTelemetry for an app: a span for each submit and each execution, in one trace."""

import asyncio
import importlib.metadata
from typing import Any, Final, cast

from msgspec import structs
from opentelemetry import propagate, trace
from opentelemetry.propagators.textmap import Setter, TextMapPropagator
from opentelemetry.trace import Link, Span, SpanKind, StatusCode

from taskqueue.client.task import Task, priority_in
from taskqueue.wire.messages import LONGEST_METADATA, MOST_METADATA
from taskqueue.worker.app import App
from taskqueue.worker.context import Context
from taskqueue.worker.middleware import CallNext, SubmitNext
from taskqueue.worker.outcomes import ProcessError, failure_of

SCHEMA: Final = "https://opentelemetry.io/schemas/1.36.0"
"""The semantic conventions that the attributes follow."""

SLACK: Final = 0.25
"""A handler that is stopped so many seconds before its deadline has met it: clocks differ."""


class _FittingSetter(Setter[dict[str, str]]):
    """Writes what fits into a task's metadata: no task is refused for what only traces need."""

    def set(self, carrier: dict[str, str], key: str, value: str) -> None:
        if len(value) <= LONGEST_METADATA and (key in carrier or len(carrier) < MOST_METADATA):
            carrier[key] = value


_FITTING: Final = _FittingSetter()


def instrument(
    app: App,
    *,
    tracer_provider: trace.TracerProvider | None = None,
    propagator: TextMapPropagator | None = None,
    join_trace: bool = True,
) -> None:
    """Trace every submit of the app's tasks, and every execution of them in a worker.

    The context travels in the task's metadata as `propagator` writes it, else the global one, which
    is W3C's unless it was changed. An execution is linked to its submit; with `join_trace` it is
    its child too, otherwise it begins a trace. Doing it again changes nothing.
    """
    if any(isinstance(one, Executions) for one in app.execute_middleware):
        return
    version = importlib.metadata.version("taskqueue")
    tracer = trace.get_tracer("taskqueue", version, tracer_provider, SCHEMA)
    app.submit_middleware(Submits(tracer, propagator))
    app.middleware(Executions(tracer, propagator, join_trace))


class Submits:
    """Around each submit: a producer's span, whose context goes with the task."""

    def __init__(self, tracer: trace.Tracer, propagator: TextMapPropagator | None) -> None:
        self._tracer = tracer
        self._propagator = propagator

    async def __call__(self, task: Task, call_next: SubmitNext, /) -> str:
        """Submit the task within a span."""
        attributes = _attributes("send", task.task_type, task.payload)
        priority = cast(int, priority_in(task.priority))
        with self._tracer.start_as_current_span(
            f"send {task.task_type}",
            kind=SpanKind.PRODUCER,
            attributes={**attributes, "taskqueue.task.priority": priority},
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                task_id = await call_next(self._with_context(task))
            except Exception as error:
                _note_error(span, error)
                raise
            span.set_attribute("messaging.message.id", task_id)
            return task_id

    def _with_context(self, task: Task) -> Task:
        metadata = dict(task.metadata)
        (self._propagator or propagate.get_global_textmap()).inject(metadata, setter=_FITTING)
        return structs.replace(task, metadata=metadata)


class Executions:
    """Around each execution: a consumer's span."""

    def __init__(
        self, tracer: trace.Tracer, propagator: TextMapPropagator | None, join_trace: bool
    ) -> None:
        self._tracer = tracer
        self._propagator = propagator
        self._join_trace = join_trace

    async def __call__(self, ctx: Context[Any], call_next: CallNext, /) -> bytes:
        """Execute within a span."""
        submitted = (self._propagator or propagate.get_global_textmap()).extract(ctx.metadata)
        origin = trace.get_current_span(submitted).get_span_context()
        attributes = _attributes("process", ctx.task_type, ctx.payload)
        with self._tracer.start_as_current_span(
            f"process {ctx.task_type}",
            context=submitted if self._join_trace else None,
            kind=SpanKind.CONSUMER,
            attributes={
                **attributes,
                "messaging.message.id": ctx.task_id,
                "taskqueue.task.attempt": ctx.attempt,
            },
            links=[Link(origin)] if origin.is_valid else [],
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                result = await call_next()
            except asyncio.CancelledError:
                _note_stop(span, ctx)
                raise
            except BaseException as error:
                _note_end(span, error)
                raise
            span.set_attribute("taskqueue.task.outcome", "completed")
            return result


def _attributes(operation: str, task_type: str, payload: bytes) -> dict[str, str | int]:
    return {
        "messaging.system": "taskqueue",
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": task_type,
        "messaging.message.body.size": len(payload),
    }


def _note_stop(span: Span, ctx: Context[Any]) -> None:
    """The worker has stopped the handler: out of time, which is an error, or given up."""
    is_over = ctx.remaining <= SLACK
    span.set_attribute("taskqueue.task.outcome", "timed_out" if is_over else "stopped")
    if is_over:
        span.set_attribute("error.type", "TimedOut")
        span.set_status(StatusCode.ERROR, f"the attempt took longer than its {ctx.timeout} s")


def _note_end(span: Span, error: BaseException) -> None:
    if failure_of(error).is_snooze:
        span.set_attribute("taskqueue.task.outcome", "snoozed")
        return
    span.set_attribute("taskqueue.task.outcome", "failed")
    _note_error(span, error)


def _note_error(span: Span, error: BaseException) -> None:
    failure = failure_of(error)
    named: dict[str, str] = {}
    if isinstance(error, ProcessError):  # it happened in another process, which has told of it
        named = {
            "exception.type": failure.kind,
            "exception.message": failure.message,
            "exception.stacktrace": failure.traceback,
        }
    span.record_exception(error, named)
    span.set_attribute("error.type", failure.kind)
    span.set_status(StatusCode.ERROR, f"{failure.kind}: {failure.message}")
