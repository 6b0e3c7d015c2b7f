"""`tq doctor`: why a broker cannot be reached or does not work, and whether it keeps its word."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Final

from cyclopts import Parameter
from msgspec import Struct

from taskqueue.cli.doctor_audit import promises_kept
from taskqueue.cli.doctor_broker import Patient, broker_checks
from taskqueue.cli.doctor_reach import Reached, is_local, reach
from taskqueue.cli.doctor_store import Store, open_store, store_checks
from taskqueue.cli.doctor_web import Web
from taskqueue.cli.findings import Finding, fail, ok, print_line, skip
from taskqueue.cli.options import HERE, Target
from taskqueue.cli.output import PLAIN, Form, as_row, is_for_programs, print_rows
from taskqueue.cli.profiles import Chosen
from taskqueue.client.address import broker_addresses
from taskqueue.client.connection import Connection
from taskqueue.core.errors import BrokerUnavailable, TaskQueueError
from taskqueue.settings.sources import Loaded, load_settings
from taskqueue.storage.sqlite.folder import DATABASE_NAME

COLUMNS: Final = ("check", "verdict", "detail", "advice")
UNREACHABLE: Final = 7


def doctor(
    *,
    audit: Annotated[
        bool,
        Parameter(
            negative="",
            help="also prove the queue's promises, with throw-away tasks and from what is stored",
        ),
    ] = False,
    engine: Annotated[
        str | None,
        Parameter(help="postgresql://… under the broker, for --audit; else TQ_ENGINE or tq.toml"),
    ] = None,
    data: Annotated[
        Path | None, Parameter(help="data folder of an embedded broker on this machine")
    ] = None,
    http: Annotated[
        str | None, Parameter(help="HOST:PORT of the REST door, if not as the broker says")
    ] = None,
    grpc: Annotated[
        str | None, Parameter(help="HOST:PORT of the gRPC door, else TQ_GRPC or tq.toml")
    ] = None,
    target: Target = HERE,
    form: Form = PLAIN,
) -> None:
    """Check one thing after the other, and say what to do next where something is amiss.

    Exit code 0 if no check failed, 7 if no broker can be reached, 1 otherwise.
    """
    asked = Asked(engine=engine, data=data, http=http, grpc=grpc, audit=audit)
    code = asyncio.run(_report(target, asked, form))
    if code:
        raise SystemExit(code)


class Asked(Struct, frozen=True, kw_only=True):
    """What was asked for, besides the address."""

    engine: str | None
    data: Path | None
    http: str | None
    grpc: str | None
    audit: bool


async def _report(target: Target, asked: Asked, form: Form) -> int:
    """Print what is found, for people as soon as it is; the exit code."""
    found: list[Finding] = []
    chosen = target.chosen()
    reached = Reached(broker_addresses(chosen.url, chosen.api_key))
    is_live = not is_for_programs(form) and not form.names
    try:
        async for finding in _examined(reached, chosen, asked):
            found.append(finding)
            if is_live:
                print_line(finding, form)
    finally:
        reached.close()
    if not is_live:
        print_rows([as_row(finding) for finding in found], form, COLUMNS)
    if not reached.is_answered:
        return UNREACHABLE
    return int(any(finding.verdict == "fail" for finding in found))


async def _examined(reached: Reached, chosen: Chosen, asked: Asked) -> AsyncIterator[Finding]:
    origin = chosen.url_origin if chosen.url else "tq.toml, or this machine's port 6379"
    yield ok("address", f"{', '.join(map(str, reached.addresses))} (from {origin})")
    async for finding in reach(reached):
        yield finding
    if not reached.connections:
        return
    settings = load_settings({}, os.environ)
    connection = reached.connections[0]
    web = Web(connection.address, asked.http, asked.grpc or _stated(settings, "grpc.listen"))
    folder = _data_folder(asked, settings, connection.address.host)
    patient = Patient(connection, web, folder)
    async for finding in broker_checks(patient):
        yield finding
    if asked.audit:
        engine = asked.engine or settings.settings.storage.engine
        async for finding in _audited(reached, engine, folder):
            yield finding


async def _audited(reached: Reached, engine: str, folder: Path | None) -> AsyncIterator[Finding]:
    first = reached.connections[0]
    if len(reached.connections) == 1:
        reached.connections.append(await Connection.connect(first.address))
    store = _Stored()
    await store.open(engine, folder)
    try:
        async for finding in promises_kept(first, reached.connections[1], store.store):
            yield finding
        async for finding in store.checks():
            yield finding
    finally:
        await store.close()


class _Stored:
    """The store under a broker, or why it cannot be looked into."""

    def __init__(self) -> None:
        self.store: Store | None = None
        self._finding = skip(
            "stored state", "where the tasks are kept is not known", "name it: --data or --engine"
        )

    async def open(self, engine: str, folder: Path | None) -> None:
        """Look into what is named."""
        try:
            self.store = await open_store(engine, folder)
        except (BrokerUnavailable, OSError) as error:
            self._finding = fail("stored state", str(error), "name it with --data or --engine")

    async def checks(self) -> AsyncIterator[Finding]:
        """What is found there."""
        if self.store is None:
            yield self._finding
            return
        try:
            async for finding in store_checks(self.store):
                yield finding
        except (TaskQueueError, OSError) as error:
            yield fail("stored state", str(error), "see whether this user may read it")

    async def close(self) -> None:
        """Let go of it."""
        if self.store is not None:
            await self.store.close()


def _stated(loaded: Loaded, path: str) -> str | None:
    """An address that somebody set, and that leads somewhere."""
    value = loaded.values[path]
    is_usable = value.origin != "default" and not str(value.value).endswith(":0")
    return str(value.value) if is_usable else None


def _data_folder(asked: Asked, loaded: Loaded, host: str) -> Path | None:
    """The folder of the embedded broker at `host`, if it is on this machine and can be told."""
    if asked.data is not None:
        return asked.data
    folder = Path(loaded.settings.data.folder)
    is_there = is_local(host) and (folder / DATABASE_NAME).is_file()
    return folder if is_there and not (asked.engine or loaded.settings.storage.engine) else None
