"""Replies about the queue as a whole."""

from typing import Literal

from msgspec import Struct

from taskqueue.core.task import Tier


class StatsReply(Struct, kw_only=True):
    """The queue in figures."""

    pending_count: int
    in_progress_count: int
    completed_last_hour: int
    failed_last_hour: int
    worker_count: int
    avg_processing_time_ms: float
    queue_depth_by_priority: dict[Tier, int]


class HealthReply(Struct, kw_only=True):
    """Whether the broker can do its work."""

    status: Literal["healthy", "degraded"]
    is_leader: bool
    connected_workers: int
    pending_tasks: int
    cluster_healthy: bool
