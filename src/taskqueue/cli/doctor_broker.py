"""What a broker says of itself, and what this machine tells about it."""

import asyncio
import resource
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from taskqueue.cli.doctor_web import Web
from taskqueue.cli.findings import Finding, fail, ok, skip, warn
from taskqueue.client.connection import Connection
from taskqueue.client.task import TaskPage, as_fields
from taskqueue.core.errors import PermissionDenied, TaskQueueError
from taskqueue.core.ids import new_worker_id
from taskqueue.wire.cluster import ClusterReply
from taskqueue.wire.figures import HealthReply, StatsReply
from taskqueue.wire.workers import BeatReply

ANSWER_SECONDS: Final = 10.0
SHORT_LEASE: Final = 5.0
FEW_FILES: Final = 4_096
LEAST_FREE: Final = 0.1
LEAST_FREE_BYTES: Final = 2**30
MOST_LAG: Final = 16 * 2**20

Reply = TypeVar("Reply")


class Patient:
    """A broker that answers, and what has been learned of it so far."""

    def __init__(self, connection: Connection, web: Web, folder: Path | None) -> None:
        self.connection = connection
        self.web = web
        self.folder = folder
        """The data folder, if it is an embedded broker's and on this machine."""
        self.cluster: ClusterReply | None = None

    @property
    def host(self) -> str:
        """Where it is."""
        return self.connection.address.host

    async def ask(self, *words: str, kind: type[Reply]) -> Reply:
        """The answer to a command. Raises what the broker answers, and TimeoutError."""
        return msgspec.convert(await ask(self.connection, *words), kind)


Check = Callable[[Patient], Awaitable[list[Finding]]]


async def ask(connection: Connection, *words: str | bytes, seconds: float = ANSWER_SECONDS) -> Any:
    """The answer to a command, its texts decoded. Raises TimeoutError, OSError, TaskQueueError."""
    sent = [word if isinstance(word, bytes) else word.encode() for word in words]
    async with asyncio.timeout(seconds):
        return as_fields(await connection.send(*sent))


async def broker_checks(patient: Patient) -> AsyncIterator[Finding]:
    """One check after the other; what goes wrong in one does not end the others."""
    for name, check in CHECKS.items():
        try:
            findings = await check(patient)
        except PermissionDenied as error:
            findings = [skip(name, f"the key may not ask: {error}")]
        except (TaskQueueError, OSError, TimeoutError, msgspec.ValidationError) as error:
            said = str(error) or "no answer in time"
            findings = [fail(name, said, "the broker's log says more; try again")]
        for finding in findings:
            yield finding


async def _permissions(patient: Patient) -> list[Finding]:
    tried = {
        "read_tasks": ("TQ.STATS",),
        "work": ("TQ.LEAVE", new_worker_id()),
        "admin": ("TQ.KEY.LIST",),
    }
    may: list[str] = []
    for permission, words in tried.items():
        try:
            await ask(patient.connection, *words)
            may.append(permission)
        except PermissionDenied:
            continue
    said = ", ".join(may) or "none of those that can be tried without a change"
    more = "" if "admin" in may else "; submit_tasks and cancel_tasks are tried by --audit"
    return [ok("permissions", said + more)]


async def _health(patient: Patient) -> list[Finding]:
    health = await patient.ask("TQ.HEALTH", kind=HealthReply)
    said = f"{health.status}, {health.pending_tasks} pending, {health.connected_workers} workers"
    if health.status == "healthy":
        return [ok("health", said)]
    return [fail("health", said, "see the lines about leader and storage; the log says why")]


async def _leader(patient: Patient) -> list[Finding]:
    view = patient.cluster = await patient.ask("TQ.CLUSTER", kind=ClusterReply)
    if view.leader is None:
        return [
            fail(
                "leader",
                "no broker does the housekeeping: nothing that is lost or due is put back",
                "one takes over within seconds; if not, see whether the database takes writes",
            )
        ]
    where = f" at {view.leader.address}" if view.leader.address else ""
    return [ok("leader", f"broker {view.leader.broker_id}{where}, term {view.term}")]


async def _versions(patient: Patient) -> list[Finding]:
    hello = await ask(patient.connection, "HELLO", "3")
    own, theirs = version("taskqueue"), str(hello.get("version"))
    view = patient.cluster
    others = {broker.version for broker in view.brokers if broker.version} if view else set()
    said = f"tq {own}, broker {theirs}"
    if others - {theirs}:
        return [
            warn(
                "versions",
                f"{said}, other brokers {', '.join(sorted(others - {theirs}))}",
                "bring all brokers to one release (tq cluster shows which is which)",
            )
        ]
    if own.split(".")[0] != theirs.split(".")[0]:
        return [warn("versions", said, f"install the release of the broker: taskqueue=={theirs}")]
    return [ok("versions", said)]


async def _storage(patient: Patient) -> list[Finding]:
    view = patient.cluster
    if view is None:
        return [skip("storage", "the broker has not told of it")]
    findings = [_told_storage(view)]
    late = [node for node in view.database if (node.lag_bytes or 0) > MOST_LAG]
    findings += [
        warn(
            "standby",
            f"{node.name} is {node.lag_bytes} bytes behind",
            "see to its disk and network: what it lacks is lost if the primary is",
        )
        for node in late
    ]
    return [*findings, _disk(patient)]


def _told_storage(view: ClusterReply) -> Finding:
    kind = (
        f"PostgreSQL, {len(view.database)} servers, {view.quorum} standbys waited for"
        if view.database
        else "embedded"
    )
    if view.complaint is not None:
        return fail("storage", f"{kind}: {view.complaint}", "tq cluster shows more")
    return ok("storage", kind)


def _disk(patient: Patient) -> Finding:
    if patient.folder is None:
        return skip("disk", "where the data is kept is not known", "name it with --data FOLDER")
    usage = shutil.disk_usage(patient.folder)
    said = f"{usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free at {patient.folder}"
    if usage.free < LEAST_FREE_BYTES or usage.free < LEAST_FREE * usage.total:
        return warn("disk", said, "make room: on a full disk nothing is accepted any more")
    return ok("disk", said)


async def _handlers(patient: Patient) -> list[Finding]:
    stats = await patient.ask("TQ.STATS", kind=StatsReply)
    if not stats.pending_count:
        return [ok("handlers", f"nothing waits; {stats.worker_count} workers")]
    page = await patient.ask("TQ.LIST", "STATUS", "pending", "LIMIT", "1000", kind=TaskPage)
    waiting = Counter(task.task_type for task in page.tasks)
    handled = await _handled_types(patient)
    if handled is None and stats.worker_count:
        types = ", ".join(sorted(waiting)[:5])
        return [ok("handlers", f"{stats.pending_count} wait, of types such as {types}")]
    idle = sorted(waiting.keys() - (handled or set()))
    if not idle:
        return [ok("handlers", f"{stats.pending_count} wait; each type has a worker")]
    shown = ", ".join(f"{name} ({waiting[name]})" for name in idle[:5])
    return [
        warn(
            "handlers",
            f"no worker handles {shown}{' …' * (len(idle) > 5)}",
            "start a worker whose app has them (tq worker module:app), or cancel them",
        )
    ]


async def _handled_types(patient: Patient) -> set[str] | None:
    """The types that live workers handle; None where the broker does not tell."""
    try:
        answer = await ask(patient.connection, "TQ.WORKERS")
    except PermissionDenied:
        return None
    except TaskQueueError:
        return None  # an older broker, which does not know of it
    workers = answer.get("workers", []) if isinstance(answer, dict) else []
    told = [worker.get("task_types") or [] for worker in workers]
    # One that does not tell of itself may handle anything.
    return None if any(not types for types in told) else {name for types in told for name in types}


async def _lease(patient: Patient) -> list[Finding]:
    worker_id = new_worker_id()
    try:
        beat = await patient.ask("TQ.BEAT", worker_id, kind=BeatReply)
    finally:
        await ask(patient.connection, "TQ.LEAVE", worker_id)
    said = f"a worker may be silent for {beat.lease_seconds:g} s"
    if beat.lease_seconds < SHORT_LEASE:
        return [
            warn(
                "lease",
                said,
                "raise broker.lease_seconds: with so short a one a pause costs retries",
            )
        ]
    return [ok("lease", said)]


async def _web(patient: Patient) -> list[Finding]:
    return await patient.web.checks(patient.host, patient.cluster)


async def _files(patient: Patient) -> list[Finding]:
    own, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    numbers = patient.web.numbers
    most, used = numbers.get("process_max_fds"), numbers.get("process_open_fds")
    if most is None or used is None:
        return [skip("open files", f"here {own}; the broker's limit is told by its /metrics only")]
    said = f"the broker has {used:.0f} of {most:.0f} open"
    if most < FEW_FILES or used > most / 2:
        return [warn("open files", said, "raise its limit: LimitNOFILE=65536, or ulimit -n 65536")]
    return [ok("open files", said)]


CHECKS: Final[dict[str, Check]] = {
    "permissions": _permissions,
    "health": _health,
    "leader": _leader,
    "versions": _versions,
    "storage": _storage,
    "rest": _web,
    "open files": _files,
    "handlers": _handlers,
    "lease": _lease,
}
"""What is asked, in this order: some learn what later ones use."""
