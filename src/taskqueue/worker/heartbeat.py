"""Keeps a worker's lease from a thread of its own, whatever the handlers do to the event loop."""

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import hiredis
import msgspec

from taskqueue.client.connection import greeting, notice_cuts
from taskqueue.client.errors import remote_error
from taskqueue.client.link import Backoff, Brokers, is_reason_to_leave
from taskqueue.client.task import as_fields
from taskqueue.core.clock import SECOND, SystemClock
from taskqueue.wire import resp
from taskqueue.wire.workers import About, BeatReply

FIRST_INTERVAL: Final = 1.0
ANSWER_SECONDS: Final = 5.0
SHORTEST_WAIT: Final = 0.001
SHORTEST_LEASE: Final = 1.0
"""Of one that is shorter, any hiccup of the machine may outlast what is left."""

log = logging.getLogger("taskqueue.worker")

Held = Iterable[tuple[str, int]]
"""Claims: each the id of a task and the token of the claim."""


class Ears(NamedTuple):
    """How the heartbeat asks and tells its worker, in its own thread.

    `on_lost` is called with the claims that the broker says are not this worker's any more,
    `on_order` with what somebody wants it to do; `portray` says what it is to tell of itself.
    `on_silence` is called when the broker did not answer, so that other connections be looked at.
    """

    held: Callable[[], Held]
    on_lost: Callable[[list[tuple[str, int]]], None]
    on_order: Callable[[str], None] = lambda _order: None
    portray: Callable[[], About] | None = None
    on_silence: Callable[[], None] = lambda: None


class Heartbeat:
    """Sends `TQ.BEAT` with all the worker holds, three times in each lease.

    A broker that fails it is left, for the whole worker.
    """

    def __init__(self, brokers: Brokers, worker_id: str, ears: Ears) -> None:
        self._brokers = brokers
        self._address = brokers.current
        self._worker_id = worker_id
        self._ears = ears
        self._interval = FIRST_INTERVAL
        self._clock = SystemClock()
        self._renewed_at = self._clock.steady()
        self._refusals = 0
        self._is_shared = False
        self._is_stopped = False
        self._wake = threading.Event()
        self._socket: socket.socket | None = None
        self._reader = hiredis.Reader()
        self._thread = threading.Thread(target=self._run, name="tq-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._is_stopped = True
        self._wake.set()
        self._thread.join(ANSWER_SECONDS)

    def beat_now(self) -> None:
        """Beat at once: another broker is used from now on, and is told what the worker holds."""
        self._wake.set()

    def _run(self) -> None:
        backoff = self._backoff()
        pause = 0.0
        while not self._is_stopped:
            self._wait(pause)
            if self._is_stopped:
                break
            began_at = self._clock.steady()
            try:
                self._beat()
            except Exception as error:  # noqa: BLE001  no failure may be the last heartbeat
                log.debug("no heartbeat: %s", error, extra={"worker_id": self._worker_id})
                self._hang_up()
                pause = min(self._interval, backoff.next_pause(error))
                self._note_failure(error)
                self._mind_lease()
                if is_reason_to_leave(error):
                    self._brokers.leave(self._address)
                    self._wake.clear()  # that is no news here; the pause still counts
            else:
                self._refusals = 0
                self._renewed_at = began_at
                backoff = self._backoff()
                pause = self._interval
        self._hang_up()

    def _wait(self, seconds: float) -> None:
        wait = self._in_time(seconds)
        self._wake.wait(wait)
        self._wake.clear()
        if wait < seconds and not self._is_stopped:
            self._mind_lease()

    def _backoff(self) -> Backoff:
        return Backoff(len(self._brokers) - 1)

    def _note_failure(self, error: Exception) -> None:
        if isinstance(error, OSError) and not isinstance(error, ConnectionRefusedError):
            self._ears.on_silence()
        self._refusals = self._refusals + 1 if isinstance(error, ConnectionError) else 0
        if self._refusals >= len(self._brokers) and not self._is_shared:
            # Nobody listens there: no broker that could give the tasks to others. The next one
            # to start grants whole leases.
            self._renewed_at = self._clock.steady()

    def _mind_lease(self) -> None:
        """Have what runs stopped once others may have been given it."""
        if self._lease_left() <= 0 and (held := list(self._ears.held())):
            log.warning(
                "the broker does not answer and the lease is over; what runs is stopped",
                extra={"worker_id": self._worker_id},
            )
            self._ears.on_lost(held)

    def _lease_left(self) -> float:
        """Seconds until the lease is over; the broker counts from a little later."""
        ends_at = self._renewed_at + round(3 * self._interval * SECOND)
        return (ends_at - self._clock.steady()) / SECOND

    def _in_time(self, seconds: float) -> float:
        """So long, but not past the end of the lease: then what runs is to be stopped."""
        left = self._lease_left()
        is_short = 3 * self._interval < SHORTEST_LEASE
        return seconds if left <= 0 or is_short else min(seconds, max(left, SHORTEST_WAIT))

    def _beat(self) -> None:
        held = list(self._ears.held())
        words = [word for task_id, token in held for word in (task_id, str(token))]
        answer = self._ask("TQ.BEAT", self._worker_id, *words)
        reply = msgspec.convert(as_fields(answer), BeatReply)
        self._interval = reply.lease_seconds / 3
        self._is_shared = reply.shared
        if reply.lost:
            lost = set(reply.lost)
            self._ears.on_lost([claim for claim in held if claim[0] in lost])
        if reply.order is not None:
            self._ears.on_order(reply.order)
        self._tell_of_itself()

    def _tell_of_itself(self) -> None:
        if self._ears.portray is None:
            return
        try:
            about = msgspec.json.encode(self._ears.portray()).decode()
            self._ask("TQ.ABOUT", self._worker_id, about)
        except OSError:
            raise
        except Exception as error:  # noqa: BLE001  the beat was heard: that is what counts
            log.debug("not told of itself: %s", error, extra={"worker_id": self._worker_id})

    def _ask(self, *words: str) -> Any:
        if self._address != self._brokers.current:
            self._hang_up()
        connection = self._socket or self._connect()
        connection.settimeout(self._patience())
        connection.sendall(resp.command(*(word.encode() for word in words)))
        return self._answer(connection)

    def _connect(self) -> socket.socket:
        self._address = self._brokers.current
        where = (self._address.host, self._address.port)
        connection = socket.create_connection(where, self._patience())
        self._socket, self._reader = connection, hiredis.Reader()
        notice_cuts(connection)
        if self._address.tls is not None:
            context = self._address.tls.context()
            connection = context.wrap_socket(connection, server_hostname=self._address.host)
            self._socket = connection
        connection.sendall(resp.command(*greeting(self._address)))
        self._answer(connection)
        return connection

    def _patience(self) -> float:
        return self._in_time(min(ANSWER_SECONDS, max(1.0, self._interval)))

    def _answer(self, connection: socket.socket) -> Any:
        while (answer := self._reader.gets()) is False:
            data = connection.recv(65_536)
            if not data:
                raise ConnectionError("the broker hung up")
            self._reader.feed(data)
        if isinstance(answer, hiredis.ReplyError):
            raise remote_error(str(answer))
        return answer

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
