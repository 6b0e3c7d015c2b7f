"""One frame of `tq top`, drawn from what was read of the broker."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from taskqueue.cli.gauges import FailedTask, Gauges
from taskqueue.core.clock import EPOCH
from taskqueue.core.task import Tier
from taskqueue.wire.cluster import ClusterReply
from taskqueue.wire.workers import WorkerReply

BAR: Final = 40
MOST_WORKERS: Final = 8
FREE_TEXTS: Final = frozenset({"type", "error", "address"})
RANGES: Final = {Tier.HIGH: "200-255", Tier.NORMAL: "100-199", Tier.LOW: "0-99"}


def frame(
    name: str, latest: Gauges | None, before: Gauges | None, complaint: str
) -> RenderableType:
    """The whole picture. With a complaint the figures are old, and said to be."""
    parts: list[RenderableType] = [_head(name, latest, complaint)]
    if latest is not None:
        parts += [Text(), _figures(latest), Text(), _rates(latest, before), Text(), _depth(latest)]
        if latest.cluster is not None:
            parts += [Text(), _brokers(latest.cluster)]
        if latest.workers:
            parts += [Text(), _workers(latest.workers)]
        if latest.failures:
            parts += [Text(), _failures(latest.failures)]
    return Group(*parts)


def _head(name: str, latest: Gauges | None, complaint: str) -> Text:
    head = Text("tq top  ", style="bold")
    head.append(name, style="not bold")
    if complaint:
        head.append(f"  unreachable, trying again: {_clean(complaint)}", style="red")
        return head
    if latest is None:
        return head
    status = latest.health.status
    head.append(f"  {status}", style="green" if status == "healthy" else "red")
    view = latest.cluster
    if view is not None:
        leader = "nobody leads" if view.leader is None else f"leader {view.leader.broker_id}"
        head.append(f"  {leader}, term {view.term}", style="not bold")
        if view.complaint:
            head.append(f"  {_clean(view.complaint)}", style="red")
    return head


def _figures(latest: Gauges) -> Table:
    stats = latest.stats
    oldest = "-" if latest.oldest is None else _time(latest.oldest)
    return _grid(
        ("pending", "running", "workers", "oldest pending", "completed/h", "failed/h", "mean time"),
        [
            (
                f"{stats.pending_count:,}",
                f"{stats.in_progress_count:,}",
                f"{stats.worker_count:,}",
                oldest,
                f"{stats.completed_last_hour:,}",
                f"{stats.failed_last_hour:,}",
                f"{stats.avg_processing_time_ms:,.1f} ms",
            )
        ],
    )


def _rates(latest: Gauges, before: Gauges | None) -> Table:
    rates = latest.rates(before)
    names = ("submitted", "claimed", "completed", "failed", "dead")
    cells = tuple("-" if rates[name] is None else f"{rates[name]:,.1f}/s" for name in names)
    return _grid(names, [cells])


def _depth(latest: Gauges) -> Table:
    depths = latest.stats.queue_depth_by_priority
    largest = max(depths.values(), default=0)
    table = Table.grid(padding=(0, 2))
    for tier, numbers in RANGES.items():
        depth = depths.get(tier, 0)
        length = -(-depth * BAR // largest) if largest else 0
        table.add_row(f"{tier} ({numbers})", Text("█" * length, style="cyan"), f"{depth:,}")
    return table


def _brokers(view: ClusterReply) -> Table:
    # By their clock, not that of this machine.
    now = max((broker.last_seen for broker in view.brokers), default=EPOCH)
    return _grid(
        ("broker", "address", "version", "silent", "load", "workers", "role"),
        [
            (
                broker.broker_id,
                broker.address,
                broker.version,
                f"{(now - broker.last_seen).total_seconds():.0f} s",
                f"{broker.load:.1f}/s",
                str(broker.connected_workers),
                "leader" if broker.is_leader else "",
            )
            for broker in view.brokers
        ],
    )


def _workers(workers: Sequence[WorkerReply]) -> Table:
    busiest = sorted(workers, key=lambda worker: worker.busy, reverse=True)[:MOST_WORKERS]
    rest = len(workers) - len(busiest)
    rows: list[tuple[str, ...]] = [
        (
            worker.worker_id,
            _clean(worker.host),
            f"{worker.busy}/{worker.slots}",
            f"{worker.cpu_percent:.0f} %",
            f"{worker.memory_bytes / 2**20:.0f} MB",
            worker.order,
        )
        for worker in busiest
    ]
    if rest:
        rows.append((f"and {rest} more", "", "", "", "", ""))
    return _grid(("worker", "host", "slots", "cpu", "memory", "order"), rows)


def _failures(failures: Iterable[FailedTask]) -> Table:
    return _grid(
        ("failed at", "task", "type", "status", "error"),
        [
            (_clock(task.at), task.task_id, task.task_type, task.status, _clean(task.error))
            for task in failures
        ],
    )


def _grid(names: Sequence[str], rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for name, *cells in zip(names, *rows, strict=True):
        # What people wrote is cut where there is no room for it, the rest is not.
        least = None if name in FREE_TEXTS else max(len(text) for text in (name, *cells))
        table.add_column(name.upper(), no_wrap=True, overflow="ellipsis", min_width=least)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _clock(moment: datetime) -> str:
    return f"{moment:%H:%M:%S}Z"


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes} min"
        if hours
        else f"{minutes} min {rest} s"
        if minutes
        else f"{rest} s"
    )


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
