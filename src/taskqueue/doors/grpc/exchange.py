"""One call as the gRPC door receives it, and the ways in which it is answered."""

import asyncio
from asyncio import FIRST_COMPLETED
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias, TypeVar
from urllib.parse import unquote

import grpc.aio
import structlog

from taskqueue.broker.access import Caller
from taskqueue.broker.broker import Broker
from taskqueue.broker.operation import Operation
from taskqueue.core.errors import (
    AuthenticationFailed,
    BrokerUnavailable,
    InternalError,
    TaskQueueError,
)
from taskqueue.doors.bounds import LARGEST_BACKLOG_OF_ALL
from taskqueue.doors.grpc.errors import metadata_of, status_of, told_outside
from taskqueue.doors.visit import REQUEST_ID, Proxies, Visit

T = TypeVar("T")

Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"

LARGE: Final = 64 * 1024
"""Bytes of an answer from which on it is counted while it is not sent."""

_HEARD: Final = frozenset({"authorization", REQUEST_ID, "x-forwarded-for"})
"""The metadata that a visit is made from."""

log = structlog.get_logger(component="grpc")


class Unread:
    """Large answers that are written and not sent yet, of all calls together."""

    def __init__(self) -> None:
        self.size = 0

    def take(self, size: int) -> None:
        """Hold so many bytes more. Raises BrokerUnavailable where there are too many."""
        if self.size + size > LARGEST_BACKLOG_OF_ALL:
            raise BrokerUnavailable(
                "clients leave more answers unread than the broker can hold; try again shortly",
                retry_after=1,
            )
        self.size += size

    def let_go(self, size: int) -> None:
        """They have been sent, or nobody waits for them any more."""
        self.size -= size


class House(NamedTuple):
    """What every call has to do with."""

    broker: Broker
    proxies: Proxies
    answer_seconds: float
    unread: Unread


class Exchange:
    """A call that is under way: who calls, and what has been said to them so far."""

    __slots__ = ("_context", "_count", "_is_greeted", "_name", "_notices", "_unread", "visit")

    def __init__(
        self, house: House, context: Context, name: str, notices: Sequence[tuple[str, str]] = ()
    ) -> None:
        heard = [
            (name.encode(), value if isinstance(value, bytes) else value.encode())
            for name, value in context.invocation_metadata() or ()
            if name in _HEARD
        ]
        address = address_of(context.peer())
        self.visit = Visit(house.broker.access, address, heard, house.proxies)
        self._count = house.broker.metrics.grpc_requests
        self._name = name
        self._unread = house.unread
        self._context = context
        self._notices = notices
        self._is_greeted = False

    @property
    def caller(self) -> Caller:
        """Who calls."""
        return self.visit.caller

    async def greet(self) -> None:
        """Send what every answer says about its call, before the answer itself."""
        self._is_greeted = True
        await self._context.send_initial_metadata((*self.visit.headers(), *self._notices))

    def hold(self, answer: bytes) -> bytes:
        """Count an answer until it is sent. Raises BrokerUnavailable."""
        size = 2 * len(answer)  # gRPC makes a copy, and keeps both
        if size > LARGE:
            self._unread.take(size)
            unread = self._unread

            def let_go(_context: Context) -> None:
                unread.let_go(size)

            # The stubs name another type than grpc.aio itself does.
            self._context.add_done_callback(let_go)  # type: ignore[arg-type]
        return answer

    def note_done(self) -> None:
        """It was answered, or went on to its end."""
        self._count[self._name, "OK"] += 1

    async def refuse(self, error: Exception) -> NoReturn:
        """End the call with an error. Raises CancelledError where nobody is there to hear of it."""
        if isinstance(error, grpc.aio.BaseError):
            raise asyncio.CancelledError from error  # the call is over: it could not be answered
        if isinstance(error, AuthenticationFailed):
            await asyncio.sleep(self.visit.penalty())
        outside = told(error, self.visit.request_id)
        error.__traceback__ = None  # gRPC keeps the error, and so all that its frames know
        self._count[self._name, outside.grpc] += 1
        trailing = (*self.visit.headers(), *metadata_of(outside))
        try:
            if not self._is_greeted:
                await self.greet()
            await self._context.abort(status_of(outside), outside.message, trailing)
        except (grpc.aio.InternalError, grpc.aio.UsageError) as gone:
            raise asyncio.CancelledError from gone


def told(error: Exception, request_id: str) -> TaskQueueError:
    """An error as a client may hear it; what it may not is in the log, under the request id."""
    if not isinstance(error, TaskQueueError):
        log.error("a call met a fault of the broker", request_id=request_id, exc_info=error)
        return told_outside(InternalError(""), request_id)
    if isinstance(error, InternalError):
        log.error("a call failed", request_id=request_id, error=error.message)
    return told_outside(error, request_id)


async def outcome_of(
    house: House,
    operation: Operation,
    caller: Caller,
    work: "asyncio.Future[T]",
    wait: float = 0.0,
) -> T:
    """What an operation comes to, which may wait so many seconds beyond the time that all have.

    Raises BrokerUnavailable, for a change OutcomeUnknown, where it takes longer; besides, what
    `while_let_in` raises.
    """
    seconds = house.answer_seconds
    if wait:
        await while_let_in(house, operation, caller, work, seconds + wait)
    else:
        await asyncio.wait([work], timeout=seconds)
    if work.done():
        return work.result()
    raise operation.too_late(seconds)


async def while_let_in(
    house: House,
    operation: Operation,
    caller: Caller,
    work: "asyncio.Future[Any]",
    seconds: float | None = None,
) -> None:
    """Wait until work is done that may take long, or for so many seconds.

    Raises AuthenticationFailed or PermissionDenied as soon as the caller is shut out.
    """
    with house.broker.access.shut_out(caller) as ended:
        operation.require(house.broker, caller)  # it may have happened before this was bound
        await asyncio.wait([work, ended], timeout=seconds, return_when=FIRST_COMPLETED)
        if ended.done():
            operation.require(house.broker, caller)


def drop(broker: Broker, operation: Operation, work: "asyncio.Future[Any]") -> None:
    """Nobody waits for an operation any more. A read ends, a change is never cut short."""
    if not work.done() and (operation.is_read or operation.name == "claim"):
        work.cancel()  # a claim under way gives back by itself what it gets

    def give_back(done: "asyncio.Future[Any]") -> None:
        if not done.cancelled() and done.exception() is None:
            broker.take_unheard(done.result())

    work.add_done_callback(give_back)


@lru_cache(maxsize=4_096)
def address_of(peer: str) -> str:
    """The address in what gRPC calls a peer, such as `ipv6:%5B::1%5D:50051`."""
    kind, _, rest = peer.partition(":")
    if kind not in ("ipv4", "ipv6"):
        return "local"
    return unquote(rest).rpartition(":")[0].strip("[]")
