"""The reply about the brokers and the database under them; like `messages`, one for all doors."""

from datetime import datetime

from msgspec import Struct


class LeaderReply(Struct, kw_only=True):
    """The broker that does the housekeeping for all."""

    broker_id: str
    address: str


class ClusterBrokerReply(Struct, kw_only=True):
    """A broker as it described itself last; `load` is the commands it carries out per second.

    `address` is that of its native door, `http` that of its REST door.
    """

    broker_id: str
    address: str
    http: str
    version: str
    since: datetime | None
    last_seen: datetime
    load: float
    connected_workers: int
    is_leader: bool
    is_me: bool


class DatabaseNodeReply(Struct, kw_only=True):
    """A server of the database; the lag is how far a standby is behind, where that is known."""

    name: str
    role: str
    state: str
    lag_bytes: int | None
    lag_seconds: float | None


class ClusterReply(Struct, kw_only=True):
    """The brokers and the database under them, as one broker sees them.

    `is_leader` says it of the broker that answers. `term` grows with each change of leaders.
    `quorum` is how many synchronous standbys each commit waits for.
    """

    is_leader: bool
    leader: LeaderReply | None
    term: int
    healthy: bool
    complaint: str | None
    quorum: int
    brokers: list[ClusterBrokerReply]
    database: list[DatabaseNodeReply]
