"""Sentry for an app: what handlers raise is reported, with the task it was raised for."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final

import sentry_sdk
from msgspec import structs
from sentry_sdk.scope import should_send_default_pii
from sentry_sdk.tracing import Span, TransactionSource
from sentry_sdk.utils import event_from_exception

from taskqueue.client.task import Task
from taskqueue.wire.messages import LONGEST_METADATA, MOST_METADATA
from taskqueue.worker.app import App
from taskqueue.worker.context import Context
from taskqueue.worker.middleware import CallNext, SubmitNext
from taskqueue.worker.outcomes import Fail, Failure, ProcessError, Retry, Snooze, failure_of

ORIGIN: Final = "auto.queue.taskqueue"
LONGEST_PAYLOAD: Final = 4_096
"""Bytes of a payload that are reported, where personal data may be."""

SLACK: Final = 0.25
"""A handler that is stopped so many seconds before its deadline has met it: clocks differ."""

Outcome = type[Retry] | type[Snooze] | type[Fail]
OUTCOMES: Final[tuple[Outcome, ...]] = (Retry, Snooze, Fail)


def instrument(
    app: App, *, report_outcomes: tuple[Outcome, ...] = (), transactions: bool = True
) -> None:
    """Report what the app's handlers raise, time-outs included, to the Sentry of `sentry_sdk.init`.

    What is raised to say what is to follow, Retry, Snooze and Fail, is not reported, but for
    `report_outcomes`. Each execution has an isolation scope, and with `transactions` a transaction
    in the trace of its submit, as far as the SDK samples it. Payloads are sent only if
    its `data_collection` has `queues`, or with `send_default_pii`. Doing it again changes nothing.
    """
    if any(isinstance(one, Executions) for one in app.execute_middleware):
        return
    app.middleware(Executions(report_outcomes, transactions))
    if transactions:
        app.submit_middleware(Submits())


class Submits:
    """Around each submit: the trace that it is made in goes with the task."""

    async def __call__(self, task: Task, call_next: SubmitNext, /) -> str:
        """Submit the task, within a span if there is a transaction."""
        if not sentry_sdk.get_client().is_active():
            return await call_next(task)
        if sentry_sdk.get_current_span() is None:
            return await call_next(_with_trace(task))
        with sentry_sdk.start_span(op="queue.publish", name=task.task_type, origin=ORIGIN) as span:
            task_id = await call_next(_with_trace(task))
            _describe(span, task_id, task.task_type, task.payload)
            return task_id


class Executions:
    """Around each execution: a scope of its own, and the report of what was raised."""

    def __init__(self, report_outcomes: tuple[Outcome, ...], transactions: bool) -> None:
        self._unreported = {one.__name__ for one in OUTCOMES if one not in report_outcomes}
        self._transactions = transactions

    async def __call__(self, ctx: Context[Any], call_next: CallNext, /) -> bytes:
        """Execute, and report what the handler raises."""
        if not sentry_sdk.get_client().is_active():
            return await call_next()
        with sentry_sdk.isolation_scope() as scope, _transaction(ctx, self._transactions) as span:
            _tell_of_task(scope, ctx)
            try:
                return await call_next()
            except asyncio.CancelledError as error:
                if ctx.remaining <= SLACK:
                    message = f"the attempt took longer than its {ctx.timeout} s"
                    _report(error, Failure("TimedOut", message))
                    span.set_status("deadline_exceeded")
                raise
            except BaseException as error:
                failure = failure_of(error)
                span.set_status("ok" if failure.is_snooze else "internal_error")
                if failure.kind not in self._unreported:
                    _report(error, failure)
                raise


@contextmanager
def _transaction(ctx: Context[Any], is_wanted: bool) -> Generator[Span]:
    """A transaction in the trace of the submit; what is reported is in that trace either way."""
    transaction = sentry_sdk.continue_trace(
        dict(ctx.metadata),
        op="queue.process",
        name=ctx.task_type,
        source=TransactionSource.TASK,
        origin=ORIGIN,
    )
    if not is_wanted:
        yield transaction  # never started, so never sent
        return
    with sentry_sdk.start_transaction(transaction) as span:
        _describe(span, ctx.task_id, ctx.task_type, ctx.payload)
        span.set_data("messaging.message.retry.count", ctx.attempt - 1)
        span.set_status("ok")
        yield span


def _with_trace(task: Task) -> Task:
    headers = {
        "sentry-trace": sentry_sdk.get_traceparent(),
        "baggage": sentry_sdk.get_baggage(),
    }
    fitting = {
        name: text for name, text in headers.items() if text and len(text) <= LONGEST_METADATA
    }
    metadata = {**task.metadata, **fitting}
    # No task is refused for what only traces need.
    return task if len(metadata) > MOST_METADATA else structs.replace(task, metadata=metadata)


def _describe(span: Span, task_id: str, task_type: str, payload: bytes) -> None:
    span.set_data("messaging.system", "taskqueue")
    span.set_data("messaging.message.id", task_id)
    span.set_data("messaging.destination.name", task_type)
    span.set_data("messaging.message.body.size", len(payload))


def _tell_of_task(scope: sentry_sdk.Scope, ctx: Context[Any]) -> None:
    scope.clear_breadcrumbs()
    scope.set_transaction_name(ctx.task_type, source=TransactionSource.TASK)
    scope.set_tag("taskqueue.task_type", ctx.task_type)
    scope.set_tag("taskqueue.task_id", ctx.task_id)
    scope.set_tag("taskqueue.attempt", str(ctx.attempt))
    about: dict[str, object] = {
        "task_id": ctx.task_id,
        "task_type": ctx.task_type,
        "attempt": ctx.attempt,
        "timeout": ctx.timeout,
        "payload_bytes": len(ctx.payload),
    }
    if _sends_payloads():
        about["payload"] = ctx.payload[:LONGEST_PAYLOAD].decode(errors="replace")
        about["metadata"] = dict(ctx.metadata)
    scope.set_context("taskqueue", about)


def _sends_payloads() -> bool:
    """Whether what tasks carry may be sent: `data_collection`, or `send_default_pii` before it."""
    collected: dict[str, Any] = sentry_sdk.get_client().options.get("data_collection") or {}
    return bool(collected.get("queues", should_send_default_pii()))


def _report(error: BaseException, failure: Failure) -> None:
    event, hint = event_from_exception(
        (type(error), error, _handlers_part(error.__traceback__)),
        client_options=sentry_sdk.get_client().options,
        mechanism={"type": "taskqueue", "handled": False},
    )
    if isinstance(error, asyncio.CancelledError | ProcessError):
        # What it is called here says nothing of what has happened.
        raised = event.get("exception", {})["values"][-1]
        raised.update(type=failure.kind, value=failure.message, module=None)
        if failure.traceback:
            event["extra"] = {"traceback": failure.traceback}
    sentry_sdk.capture_event(event, hint=hint)


def _handlers_part(frames: TracebackType | None) -> TracebackType | None:
    """A traceback without our own frames at its top: their variables have the payload."""
    while frames is not None and _is_ours(frames):
        frames = frames.tb_next
    return frames


def _is_ours(frames: TracebackType) -> bool:
    return str(frames.tb_frame.f_globals.get("__name__")).startswith("taskqueue.")
