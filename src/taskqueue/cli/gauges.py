"""What `tq top` shows: a broker's figures at one moment, and the rates between two of them."""

import asyncio
import time
from collections import defaultdict
from typing import Any, Final

from msgspec import Struct

from taskqueue.cli.doctor_web import Web, told_place
from taskqueue.client.address import BrokerAddress
from taskqueue.client.aio import AsyncClient
from taskqueue.core.errors import PermissionDenied
from taskqueue.core.task import Status
from taskqueue.wire.cluster import ClusterReply
from taskqueue.wire.figures import HealthReply, StatsReply
from taskqueue.wire.workers import WorkerReply

FAILURES: Final = 6

ENTERED: Final = {
    "submitted": Status.PENDING,
    "completed": Status.COMPLETED,
    "failed": Status.FAILED,
    "dead": Status.DEAD_LETTER,
}
"""What is counted of tasks, and the status that they then enter."""

CLAIMS: Final = "tq_claims_total"
OLDEST: Final = "tq_oldest_pending_age_seconds"


class FailedTask(Struct, frozen=True):
    """A task that failed lately, and of what."""

    at: Any
    task_id: str
    task_type: str
    status: str
    error: str


class Gauges(Struct, frozen=True):
    """A broker at one moment. `counted` only grows; it is empty where /metrics cannot be read."""

    taken_at: float
    stats: StatsReply
    health: HealthReply
    cluster: ClusterReply | None
    counted: dict[str, float]
    oldest: float | None
    failures: list[FailedTask]
    workers: list[WorkerReply]

    def rates(self, before: "Gauges | None") -> dict[str, float | None]:
        """What happened in a second, on average since an earlier moment; None where unknown."""
        names = (*ENTERED, "claimed")
        if before is None or not before.counted or not self.counted:
            return dict.fromkeys(names)
        seconds = max(1e-9, self.taken_at - before.taken_at)
        # A broker that was moved to another storage begins to count anew.
        return {
            name: max(0.0, self.counted.get(name, 0) - before.counted.get(name, 0)) / seconds
            for name in names
        }


async def read_gauges(client: AsyncClient, address: BrokerAddress) -> Gauges:
    """Ask a broker for all of it. Raises BrokerUnavailable and what else a client raises."""
    stats, health, cluster, failures, workers = await asyncio.gather(
        client.stats(), client.health(), _cluster(client), _failures(client), _workers(client)
    )
    page = await _metrics(address, cluster)
    entered: defaultdict[str, float] = defaultdict(float)
    for labels, number in page.get("tq_tasks_total", []):
        entered[labels.get("status", "")] += number
    counted = {name: entered[status] for name, status in ENTERED.items()} if page else {}
    for _, number in page.get(CLAIMS, []):
        counted["claimed"] = number
    oldest = next((number for _, number in page.get(OLDEST, [])), None)
    now = time.monotonic()
    return Gauges(now, stats, health, cluster, counted, oldest, failures, workers)


async def _cluster(client: AsyncClient) -> ClusterReply | None:
    try:
        return await client.cluster()
    except PermissionDenied:
        return None


async def _workers(client: AsyncClient) -> list[WorkerReply]:
    try:
        return await client.workers()
    except PermissionDenied:
        return []


async def _failures(client: AsyncClient) -> list[FailedTask]:
    """The tasks that failed last, of the newest that have."""
    try:
        pages = await asyncio.gather(
            *(
                client.list_tasks(status=status, limit=FAILURES)
                for status in (Status.FAILED, Status.DEAD_LETTER)
            )
        )
        found = sorted(
            (task for page in pages for task in page.tasks),
            key=lambda task: task.updated_at,
            reverse=True,
        )[:FAILURES]
        details = await asyncio.gather(*(client.get_status(task.task_id) for task in found))
    except PermissionDenied:
        return []
    return [
        FailedTask(
            task.updated_at,
            task.task_id,
            task.task_type,
            task.status,
            (task.error or "").partition("\n")[0],
        )
        for task in details
    ]


async def _metrics(
    address: BrokerAddress, cluster: ClusterReply | None
) -> dict[str, list[tuple[dict[str, str], float]]]:
    """The samples of the metrics page by name; none where it cannot be read."""
    from prometheus_client.parser import text_string_to_metric_families

    place = told_place(cluster, address.host)
    text = "" if place is None else await Web(address).page(place)
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found
