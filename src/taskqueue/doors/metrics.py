"""The Prometheus page: the broker's own numbers and the storage's counters, put into text.

Nothing here runs between scrapes. Families are made anew for each one; what is counted by task
type is capped, so that a flood of types cannot make the page grow without end.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import accumulate
from typing import Any, Final, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from taskqueue.broker.broker import Broker
from taskqueue.broker.metrics import MOST_TYPES, OTHER, Histogram, Metrics
from taskqueue.core.clock import SECOND
from taskqueue.core.errors import BrokerUnavailable
from taskqueue.core.task import Status, Tier
from taskqueue.storage.cluster import ClusterView
from taskqueue.storage.port import Count, Totals
from taskqueue.wire import messages as m

Label = TypeVar("Label", Status, Tier)

PRIMARY: Final = "primary"
"""The role of the server that takes changes; all others follow it."""

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"


class OwnNumbers(Collector):
    """What the broker counted since it started."""

    def __init__(self, metrics: Metrics, worker_count: int, *, is_leader: bool) -> None:
        self._metrics = metrics
        self._worker_count = worker_count
        self._is_leader = is_leader

    def collect(self) -> Iterator[Metric]:
        """The families, with their present values."""
        metrics = self._metrics
        yield _attempts(metrics)
        yield _histogram(
            "tq_commit_batch_size", "Commands carried out by one transaction", metrics.batch_sizes
        )
        yield _histogram(
            "tq_commit_duration_seconds",
            "Time from the start of a transaction until it was durable",
            metrics.commit_seconds,
        )
        yield _answered("tq_http_requests", "HTTP requests answered", metrics.http_requests)
        yield _answered("tq_grpc_requests", "gRPC calls answered", metrics.grpc_requests)
        connections = GaugeMetricFamily("tq_connections", "Clients connected now", labels=["door"])
        for door, number_of in metrics.connections.items():
            connections.add_metric([door], number_of())
        yield connections
        yield GaugeMetricFamily("tq_workers", "Workers with a live lease", self._worker_count)
        yield GaugeMetricFamily(
            "tq_is_leader", "Whether this broker does the housekeeping", self._is_leader
        )


class ClusterNumbers(Collector):
    """What the broker knows of the others and of the database."""

    def __init__(self, view: ClusterView) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """The families, with their present values."""
        yield GaugeMetricFamily(
            "tq_brokers", "Brokers heard of in the last minute", len(self._view.brokers)
        )
        standbys = sum(node.role != PRIMARY for node in self._view.nodes)
        yield GaugeMetricFamily("tq_standbys", "Standbys that follow the database", standbys)


class StoredNumbers(Collector):
    """What the storage counts, in the same transactions that change the tasks."""

    def __init__(self, totals: Totals, counts: list[Count], wall: int) -> None:
        self._totals = totals
        self._counts = counts
        self._wall = wall

    def collect(self) -> Iterator[Metric]:
        """The families, with their present values."""
        present = Counter[Status]()
        depth = Counter[Tier]()
        entered = Counter[Status]()
        for count in self._totals.counts:
            present[count.key.status] += count.present
            entered[count.key.status] += count.entered
            if count.key.status is Status.PENDING:
                depth[count.key.tier] += count.present
        yield _tasks_total(self._counts)
        yield GaugeMetricFamily(
            "tq_tasks_pending", "Current pending tasks", present[Status.PENDING]
        )
        yield _by_label("tq_tasks_present", "Tasks kept now, by status", "status", present, Status)
        yield _by_label("tq_queue_depth", "Pending tasks by priority tier", "tier", depth, Tier)
        oldest = self._totals.oldest_ready
        yield GaugeMetricFamily(
            "tq_oldest_pending_age_seconds",
            "How long the task that waits longest has been ready to run",
            0 if oldest is None else max(0, self._wall - oldest) / SECOND,
        )
        yield CounterMetricFamily(
            "tq_claims", "Tasks handed to workers", entered[Status.IN_PROGRESS]
        )
        yield CounterMetricFamily(
            "tq_retries", "Failed attempts followed by another one", entered[Status.FAILED]
        )


async def exposition(broker: Broker) -> bytes:
    """The page. While the storage cannot be read, its families are missing from it."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    health = await broker.health(m.NoRequest())
    registry.register(OwnNumbers(broker.metrics, len(broker.workers), is_leader=health.is_leader))
    try:
        totals, counts = await broker.totals(), await broker.counts()
    except BrokerUnavailable:
        reachable = 0
    else:
        reachable = 1
        registry.register(StoredNumbers(totals, counts, broker.clock.wall()))
    registry.register(_StorageReachable(reachable))
    with suppress(BrokerUnavailable):
        registry.register(ClusterNumbers(await broker.cluster(m.NoRequest())))
    return generate_latest(registry)


class _StorageReachable(Collector):
    def __init__(self, reachable: int) -> None:
        self._reachable = reachable

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "tq_storage_reachable", "Whether the storage answered this scrape", self._reachable
        )


def _tasks_total(counts: list[Count]) -> CounterMetricFamily:
    family = CounterMetricFamily(
        "tq_tasks", "Total tasks submitted", labels=["status", "task_type"]
    )
    by_type = Counter[str]()
    for count in counts:
        by_type[count.key.task_type] += count.entered
    own_label = {task_type for task_type, _number in by_type.most_common(MOST_TYPES)}
    entered = Counter[tuple[Status, str]]()
    for count in counts:
        task_type = count.key.task_type if count.key.task_type in own_label else OTHER
        entered[count.key.status, task_type] += count.entered
    for (status, task_type), number in entered.items():
        family.add_metric([status.value, task_type], number)
    return family


def _answered(name: str, text: str, answers: Mapping[tuple[str, Any], int]) -> CounterMetricFamily:
    family = CounterMetricFamily(name, text, labels=["operation", "status"])
    for (operation, status), number in answers.items():
        family.add_metric([operation, str(status)], number)
    return family


def _attempts(metrics: Metrics) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        "tq_task_processing_duration_seconds", "Task execution duration", labels=["task_type"]
    )
    for task_type, histogram in metrics.attempts.items():
        family.add_metric([task_type], _buckets(histogram), histogram.total)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    return HistogramMetricFamily(name, text, buckets=_buckets(histogram), sum_value=histogram.total)


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    bounds = [*map(repr, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.buckets), strict=True))


def _by_label(
    name: str, text: str, label: str, numbers: Counter[Label], values: Iterable[Label]
) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value in values:
        family.add_metric([value.value], numbers[value])
    return family
