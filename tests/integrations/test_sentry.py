"""Sentry's real SDK around tasks of a real broker, with a transport that keeps what is sent."""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from taskqueue import App, Context, Fail, ProcessError, Retry, Snooze
from taskqueue.integrations.sentry import instrument
from taskqueue.testing import LocalBroker
from taskqueue.worker.outcomes import Failure


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    with LocalBroker(tmp_path_factory.mktemp("broker")) as broker:
        yield broker


class Kept(Transport):
    """Keeps the envelopes instead of sending them."""

    def __init__(self) -> None:
        super().__init__()
        self.envelopes: list[Envelope] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        """Keep one."""
        self.envelopes.append(envelope)

    @property
    def events(self) -> list[Any]:
        """The errors that were reported."""
        return [event for one in self.envelopes if (event := one.get_event()) is not None]

    @property
    def transactions(self) -> list[Any]:
        """The transactions that were reported."""
        found = [one.get_transaction_event() for one in self.envelopes]
        return [event for event in found if event is not None]


class Sentry:
    """Sets Sentry's SDK up for one test."""

    def __call__(self, **options: Any) -> Kept:
        kept = Kept()
        sentry_sdk.init(
            "https://key@sentry.invalid/1",
            transport=kept,
            default_integrations=False,
            traces_sample_rate=1.0,
            **options,
        )
        return kept


@pytest.fixture
def sentry() -> Iterator[Sentry]:
    with sentry_sdk.isolation_scope(), sentry_sdk.new_scope():
        yield Sentry()
        sentry_sdk.get_global_scope().set_client(None)


def an_app(**options: Any) -> App:
    app = App(api_key="")
    instrument(app, **options)
    instrument(app)  # once more changes nothing
    for function in (charge, silent, apart):
        app.task(retries=0, timeout=30)(function)
    app.task(retries=0, timeout=1)(endless)
    app.task(retries=1)(outcome)
    return app


async def charge(card: str) -> None:
    sentry_sdk.set_tag("shop", "books")
    raise ValueError(f"no money on {card[-2:]}")


def silent(card: str) -> None:
    del card
    raise LookupError("nothing there")


async def endless() -> None:
    await asyncio.Event().wait()


async def apart() -> None:
    raise ProcessError(Failure("LookupError", "lost", "in the process"))


async def outcome(ctx: Context, name: str) -> None:
    if name == "snooze" and not ctx.saved:
        await ctx.checkpoint(b"once")
        raise Snooze(0)
    if name == "retry" and ctx.attempt == 1:
        raise Retry("again", delay=0)
    if name == "fail":
        raise Fail("never")


async def ended(app: App, name: str, *args: Any) -> str:
    handler = app.handlers[name]
    handle = await handler.submit(*args)  # type: ignore[union-attr]
    await app.client.wait_for_end(handle.task_id)
    return str(handle.task_id)


async def test_what_a_handler_raises_is_reported(broker: LocalBroker, sentry: Sentry) -> None:
    kept = sentry()
    app = an_app()
    async with broker.working(app):
        task_id = await ended(app, "charge", "4242")
    [event] = kept.events
    [raised] = event["exception"]["values"]
    assert (raised["type"], raised["value"]) == ("ValueError", "no money on 42")
    assert raised["mechanism"] == {"type": "taskqueue", "handled": False}
    assert raised["stacktrace"]["frames"][-1]["function"] == "charge"
    assert event["transaction"] == "charge"
    assert event["tags"] == {
        "taskqueue.task_id": task_id,
        "taskqueue.task_type": "charge",
        "taskqueue.attempt": "1",
        "shop": "books",
    }
    assert event["contexts"]["taskqueue"] == {
        "task_id": task_id,
        "task_type": "charge",
        "attempt": 1,
        "timeout": 30,
        "payload_bytes": len(b'{"card":"4242"}'),
    }


@pytest.mark.filterwarnings("ignore:The send_default_pii option is deprecated")
@pytest.mark.parametrize(
    ("options", "is_wanted"),
    [
        ({}, False),
        ({"send_default_pii": True}, True),
        ({"data_collection": {"queues": True}}, True),
        ({"data_collection": {"queues": False}}, False),
    ],
)
async def test_payloads_are_sent_only_if_that_is_asked_for(
    broker: LocalBroker, sentry: Sentry, options: dict[str, Any], is_wanted: bool
) -> None:
    kept = sentry(**options)
    app = an_app()
    async with broker.working(app):
        await ended(app, "silent", "4242")
    [event] = kept.events
    assert event["contexts"]["taskqueue"].get("payload") == (
        '{"card":"4242"}' if is_wanted else None
    )
    assert any(b"4242" in one.serialize() for one in kept.envelopes) is is_wanted


async def test_each_execution_has_a_scope_of_its_own(broker: LocalBroker, sentry: Sentry) -> None:
    kept = sentry()
    app = an_app()
    async with broker.working(app):
        await asyncio.gather(*(ended(app, "charge", str(n)) for n in range(10, 15)))
        await ended(app, "silent", "10")
    assert [event["transaction"] for event in kept.events] == ["charge"] * 5 + ["silent"]
    assert len({event["tags"]["taskqueue.task_id"] for event in kept.events}) == 6
    assert "shop" not in kept.events[-1]["tags"]


async def test_outcomes_are_no_errors(broker: LocalBroker, sentry: Sentry) -> None:
    kept = sentry()
    app = an_app()
    async with broker.working(app):
        for name in ("snooze", "retry", "fail"):
            await ended(app, "outcome", name)
    assert not kept.events


async def test_outcomes_are_errors_if_that_is_asked_for(
    broker: LocalBroker, sentry: Sentry
) -> None:
    kept = sentry()
    app = an_app(report_outcomes=(Retry, Fail))
    async with broker.working(app):
        for name in ("snooze", "retry", "fail"):
            await ended(app, "outcome", name)
    assert [one["exception"]["values"][0]["type"] for one in kept.events] == ["Retry", "Fail"]


async def test_time_outs_and_other_processes_are_reported_by_name(
    broker: LocalBroker, sentry: Sentry
) -> None:
    kept = sentry()
    app = an_app()
    async with broker.working(app):
        await ended(app, "endless")
        await ended(app, "apart")
    out_of_time, apart = kept.events
    [raised] = out_of_time["exception"]["values"]
    assert (raised["type"], raised["value"]) == (
        "TimedOut",
        "the attempt took longer than its 1 s",
    )
    assert "endless" in [frame["function"] for frame in raised["stacktrace"]["frames"]]
    [raised] = apart["exception"]["values"]
    assert (raised["type"], raised["value"]) == ("LookupError", "lost")
    assert apart["extra"]["traceback"] == "in the process"


async def test_submit_and_execution_are_in_one_trace(broker: LocalBroker, sentry: Sentry) -> None:
    kept = sentry()
    app = an_app()
    async with broker.working(app):
        with sentry_sdk.start_transaction(name="request"):
            task_id = await ended(app, "charge", "4242")
    process, request = sorted(kept.transactions, key=lambda one: str(one["transaction"]))
    [publish] = [one for one in request["spans"] if one["op"] == "queue.publish"]
    assert publish["data"]["messaging.message.id"] == task_id
    trace = process["contexts"]["trace"]
    assert trace["trace_id"] == request["contexts"]["trace"]["trace_id"]
    assert trace["parent_span_id"] == publish["span_id"]
    assert (trace["op"], trace["status"]) == ("queue.process", "internal_error")
    assert trace["data"]["messaging.destination.name"] == "charge"
    assert kept.events[0]["contexts"]["trace"]["trace_id"] == trace["trace_id"]


async def test_without_transactions_none_is_sent(broker: LocalBroker, sentry: Sentry) -> None:
    kept = sentry()
    app = an_app(transactions=False)
    async with broker.working(app):
        task_id = await ended(app, "charge", "4242")
        assert (await app.client.get_status(task_id)).metadata == {}
    assert len(kept.events) == 1
    assert not kept.transactions


async def test_without_sentry_tasks_run_as_ever(
    broker: LocalBroker, caplog: pytest.LogCaptureFixture
) -> None:
    app = an_app()
    caplog.set_level(logging.WARNING)
    async with broker.working(app):
        task_id = await ended(app, "charge", "4242")
        status = await app.client.get_status(task_id)
    assert status.error == "ValueError: no money on 42"
    assert status.metadata == {}
