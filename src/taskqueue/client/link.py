"""Keeps a client connected: one pipelined connection for all, others for commands that block."""

import asyncio
import random
import ssl
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final
from weakref import WeakSet

from taskqueue.client.address import BrokerAddress
from taskqueue.client.connection import Connection, ConnectionLost, in_words
from taskqueue.core.errors import BrokerUnavailable, TaskQueueError

FIRST_PAUSE: Final = 0.05
LONGEST_PAUSE: Final = 5.0
DISTRUST_SECONDS: Final = 60.0
"""The pause after a broker's certificate was refused: that does not mend itself in a moment."""

MOST_BLOCKING: Final = 100
"""Connections for blocking commands that one client opens at most."""


class NobodyAnswers(BrokerUnavailable):
    """Each of the brokers was tried; none can be reached."""


class Brokers:
    """The brokers of one client or worker, and the one it uses. Any thread may ask and leave."""

    def __init__(self, addresses: Sequence[BrokerAddress]) -> None:
        # In an order of its own: those who have to leave one broker spread over all the others.
        self._order = random.sample(addresses, len(addresses))
        self.current = self._order[0]
        self.on_move: Callable[[], None] = lambda: None
        """Called after each change of the broker in use, in the thread that left."""

    def __len__(self) -> int:
        return len(self._order)

    def in_turn(self) -> list[BrokerAddress]:
        """Each address once, the one in use first."""
        at = self._order.index(self.current)
        return self._order[at:] + self._order[:at]

    def leave(self, address: BrokerAddress) -> None:
        """Use the next broker from now on, if it is `address` that is in use."""
        after = self._order[(self._order.index(address) + 1) % len(self._order)]
        if self.current == address != after:
            self.current = after
            self.on_move()


class Backoff:
    """How long to wait before the next try: twice as long each time, anywhere within that.

    `others` is how many more brokers there are: each of them is tried at once.
    """

    def __init__(self, others: int = 0) -> None:
        self._ceiling = FIRST_PAUSE
        self._others = others

    def next_pause(self, error: Exception) -> float:
        """Seconds until the next try. Full jitter, so that clients do not come back together."""
        if self._others > 0 and is_reason_to_leave(error):
            self._others -= 1
            return 0.0
        self._others = 0
        pause = random.uniform(0, self._ceiling)  # noqa: S311  not a secret
        self._ceiling = min(LONGEST_PAUSE, self._ceiling * 2)
        return pause


def is_reason_to_leave(error: BaseException | None) -> bool:
    """Whether another broker may do what this one could not."""
    # When nobody answers all have been tried, and left, by then.
    return isinstance(error, OSError | BrokerUnavailable) and not isinstance(error, NobodyAnswers)


class Link:
    """The connections of one client to the broker it uses.

    That is one of the `addresses`, taken at random, until it cannot be reached, loses a connection
    or cannot work; then it is the next one.
    """

    def __init__(self, addresses: Sequence[BrokerAddress]) -> None:
        self.brokers = Brokers(addresses)
        self._shared: Connection | None = None
        self._connecting: asyncio.Lock = asyncio.Lock()
        self._blocking_slots = asyncio.Semaphore(MOST_BLOCKING)
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()
        self._left: WeakSet[Connection] = WeakSet()
        self._is_closed = False

    async def shared(self) -> Connection:
        """The pipelined connection, opened anew if need be. Raises BrokerUnavailable."""
        shared = self._shared
        if shared is None or not self._is_usable(shared):
            async with self._connecting:
                if self._shared is None or not self._is_usable(self._shared):
                    if self._shared is not None:
                        self.leave(self._shared)
                    self._shared = await self.open()
                shared = self._shared
        await shared.wait_for_room()
        return shared

    @asynccontextmanager
    async def blocking(self) -> AsyncGenerator[Connection, None]:
        """A connection for one command that may block, kept for the next one if it ends well."""
        async with self._blocking_slots:
            connection = self._pop_idle() or await self.open()
            self._busy.add(connection)
            try:
                yield connection
            except (TaskQueueError, ConnectionLost) as error:
                self.blame(connection, error)
                self._keep(connection)
                raise
            except BaseException:
                connection.close()  # its answer may still come, and must not be the next one's
                raise
            else:
                self._keep(connection)
            finally:
                self._busy.discard(connection)

    async def open(self) -> Connection:
        """A new connection, to the first broker that answers. Raises BrokerUnavailable."""
        refusals: dict[BrokerAddress, Exception] = {}
        for address in self.brokers.in_turn():
            try:
                return await self._connected(address)
            except (OSError, BrokerUnavailable) as error:
                refusals[address] = error
        raise _nobody_answers(refusals) from [*refusals.values()][-1]

    def backoff(self) -> Backoff:
        """The pauses of something that is tried until it is done."""
        return Backoff(len(self.brokers) - 1)

    def blame(self, connection: Connection, error: BaseException | None) -> None:
        """Leave the broker at the other end, if `error` came from there and is a reason to."""
        if is_reason_to_leave(error):
            self.leave(connection)

    def leave(self, connection: Connection) -> None:
        """Use another broker than the one at the other end, where there is one."""
        self.brokers.leave(connection.address)
        self.follow()

    def follow(self) -> None:
        """Hang up where another broker is used now, once what is under way has been answered."""
        for connection in self._idle:
            if not self._is_usable(connection):
                connection.close()
        self._idle = [connection for connection in self._idle if connection.is_open]
        if self._shared is not None and not self._is_usable(self._shared):
            self._shared.retire()
            self._left.add(self._shared)
            self._shared = None

    def close(self) -> None:
        """Hang up everywhere."""
        self._is_closed = True
        for connection in (*self._idle, *self._busy, *self._left):
            connection.close()
        self._idle.clear()
        if self._shared is not None:
            self._shared.close()

    async def _connected(self, address: BrokerAddress) -> Connection:
        try:
            return await Connection.connect(address, has_others=len(self.brokers) > 1)
        except BaseException as error:
            # Also where the caller has waited long enough: the next call is to try the next one.
            if not isinstance(error, TaskQueueError) or is_reason_to_leave(error):
                self.brokers.leave(address)
                self.follow()
            raise

    def _is_usable(self, connection: Connection) -> bool:
        return connection.is_open and connection.address == self.brokers.current

    def _pop_idle(self) -> Connection | None:
        self.follow()
        return self._idle.pop() if self._idle else None

    def _keep(self, connection: Connection) -> None:
        if self._is_usable(connection) and not self._is_closed:
            self._idle.append(connection)
        else:
            connection.close()


def _nobody_answers(refusals: dict[BrokerAddress, Exception]) -> NobodyAnswers:
    told = "; nor at ".join(
        f"{address}: {in_words(error)}{_hint(address, error)}"
        for address, error in refusals.items()
    )
    is_distrusted = all(isinstance(e, ssl.SSLCertVerificationError) for e in refusals.values())
    return NobodyAnswers(
        f"no broker answers at {told}", retry_after=DISTRUST_SECONDS if is_distrusted else None
    )


def _hint(address: BrokerAddress, error: Exception) -> str:
    """What might be amiss where the other end just hangs up."""
    if address.tls is None and isinstance(error, ConnectionLost):
        return "; if that port is for TLS, write tqs://"
    if address.tls is not None and isinstance(error, ConnectionResetError):
        return "; if that port is not for TLS, write tq://"
    return ""
