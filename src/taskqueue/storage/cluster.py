"""What a broker can know of the others on the same engine, and how it hears from them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from taskqueue.core.batch import Applied


class Peer(Struct, frozen=True, kw_only=True):
    """A broker as it described itself last. Times are microseconds on the wall clock.

    `number` is new with each start; `load` is the commands it carried out per second.
    """

    number: int
    address: str
    http: str
    version: str
    since: int
    seen: int
    load: float
    workers: int


class Node(Struct, frozen=True, kw_only=True):
    """A server of the database. `lag_bytes` and `lag_seconds` are how far a standby is behind."""

    name: str
    role: str
    state: str
    lag_bytes: int | None = None
    lag_seconds: float | None = None


class ClusterView(Struct, frozen=True, kw_only=True):
    """The brokers and the database under them, as one broker sees them.

    `leader` is the number of the broker that does the housekeeping, in its `term`. `quorum` is how
    many synchronous standbys a commit waits for. `complaint` is why the cluster is degraded.
    """

    brokers: list[Peer]
    me: int
    leader: int | None
    term: int
    nodes: list[Node]
    quorum: int
    complaint: str | None


class News(Struct, frozen=True):
    """What another broker has committed: tasks now claimable by type, when the next one is due.

    With `ready` None anything may have changed. `stopped` are claims that are over though their
    worker did not end them: worker, task, token.
    """

    ready: Mapping[str, int] | None = None
    next_due: int | None = None
    stopped: Sequence[tuple[str, str, int]] = ()


class Sighting(Struct, frozen=True, kw_only=True):
    """What brokers know of a worker: it was heard of `age` microseconds ago.

    If it `is_gone`, it has closed its connections, and `age` is set back accordingly. `about` is
    what it told of itself, as JSON, if that is new. It was last given an `order` at `ordered_at`,
    on the wall clock.
    """

    age: int
    is_gone: bool = False
    about: str = ""
    order: str | None = None
    ordered_at: int = 0


class Presence(Struct, frozen=True, kw_only=True):
    """How a broker describes itself to the others."""

    address: str = ""
    http: str = ""
    version: str = ""


class Cluster(Protocol):
    """The brokers on one engine."""

    on_news: Callable[[News], None]
    """Called when others have changed something, or may have."""

    is_shared: bool
    """Whether other brokers may work on the same tasks."""

    @property
    def is_leader(self) -> bool:
        """Whether this broker does the housekeeping now."""
        ...

    @property
    def complaint(self) -> str | None:
        """Why nothing can be written just now, as far as is known without trying."""
        ...

    def introduce(self, presence: Presence) -> None:
        """Tell the others who this is, from now on."""
        ...

    def tell(self, applied: Applied) -> None:
        """Let the others know, soon, what a transaction has left to be done."""
        ...

    async def exchange(self, heard: Mapping[str, Sighting]) -> dict[str, Sighting]:
        """Tell what this broker has learnt of workers since the last time; learn what all
        brokers know together. Raises BrokerUnavailable."""
        ...

    async def clock_offset(self, wall: Callable[[], int]) -> int:
        """By how many microseconds the clock that the brokers share is ahead of this one.

        Raises BrokerUnavailable.
        """
        ...

    async def view(self) -> ClusterView:
        """The cluster as it is now. Raises BrokerUnavailable."""
        ...


class Alone(Cluster):
    """A broker with an engine of its own."""

    is_shared = False

    def __init__(self) -> None:
        self.on_news = _ignore
        self._presence = Presence()

    @property
    def is_leader(self) -> bool:
        return True

    @property
    def complaint(self) -> str | None:
        return None

    def introduce(self, presence: Presence) -> None:
        self._presence = presence

    def tell(self, applied: Applied) -> None:
        pass

    async def exchange(self, heard: Mapping[str, Sighting]) -> dict[str, Sighting]:  # noqa: ARG002
        return {}

    async def clock_offset(self, wall: Callable[[], int]) -> int:  # noqa: ARG002
        return 0

    async def view(self) -> ClusterView:
        me = Peer(
            number=1,
            address=self._presence.address,
            http=self._presence.http,
            version=self._presence.version,
            since=0,
            seen=0,
            load=0.0,
            workers=0,
        )
        return ClusterView(brokers=[me], me=1, leader=1, term=1, nodes=[], quorum=0, complaint=None)


def _ignore(_news: News) -> None:
    pass
