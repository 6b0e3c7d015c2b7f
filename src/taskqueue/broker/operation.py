"""What an operation is: one thing a client can ask for, at whichever door."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from msgspec import Struct

from taskqueue.broker.access import Caller
from taskqueue.broker.broker import Broker
from taskqueue.core.errors import BrokerUnavailable, OutcomeUnknown
from taskqueue.core.keys import Permission


class Route(NamedTuple):
    """Where REST offers an operation."""

    method: str
    path: str
    status: int
    has_body: bool = True
    """Whether a POST brings its fields in a body; else they are in the query."""


class Deprecation(NamedTuple):
    """An operation that will go: since when and until when, in seconds of Unix time, and why."""

    since: int
    sunset: int
    advice: str


class Operation(NamedTuple):
    """One thing a client can ask for.

    `run` starts it; what it comes to, `reply` turns into the reply struct `replies` names (None
    where there is nothing to say). `native` is its command on the native door.
    """

    name: str
    summary: str
    permission: Permission | None
    request: type[Struct]
    replies: type[Struct] | None
    run: Callable[[Broker, Any, Caller], Awaitable[Any]]
    reply: Callable[[Any], Any]
    http: Route | None
    native: str | None
    deprecated: Deprecation | None = None

    @property
    def is_counted(self) -> bool:
        """Whether its requests count against the rate limit.

        Those of workers do not: what holds them is back-pressure, and a worker that is refused
        would lose its leases.
        """
        return self.permission not in (None, Permission.WORK)

    @property
    def is_read(self) -> bool:
        """Whether it changes nothing."""
        is_get = self.http is not None and self.http.method == "GET"
        return is_get or self.permission is Permission.READ_TASKS

    def too_late(self, seconds: float) -> BrokerUnavailable:
        """The error for an answer that has not come in so many seconds."""
        if self.is_read:
            return BrokerUnavailable(
                f"there was no answer within {seconds:g} seconds; try again", retry_after=1
            )
        return OutcomeUnknown(
            f"the change was not confirmed within {seconds:g} seconds: outcome unknown, "
            "repeat the request with the same task_id",
            retry_after=1,
        )

    def require(self, broker: Broker, caller: Caller) -> None:
        """Raise AuthenticationFailed or PermissionDenied unless the caller may."""
        broker.access.require(caller, self.permission)

    def start(self, broker: Broker, request: Any, caller: Caller) -> Awaitable[Any]:
        """Begin it for a caller, if they may: the one way in, for every door.

        Raises AuthenticationFailed, PermissionDenied, and what `run` raises at once.
        """
        self.require(broker, caller)
        return self.run(broker, request, caller)
