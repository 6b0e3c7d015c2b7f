"""Keeps a worker's lease from a thread of its own, whatever the handlers do to the event loop."""

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final

import hiredis
import msgspec

from taskqueue.client.address import BrokerAddress
from taskqueue.client.link import Backoff
from taskqueue.client.task import as_fields
from taskqueue.wire import resp
from taskqueue.wire.messages import BeatReply

FIRST_INTERVAL: Final = 1.0
ANSWER_SECONDS: Final = 5.0

log = logging.getLogger("taskqueue.worker")

Held = Iterable[tuple[str, int]]
"""Claims: each the id of a task and the token of the claim."""


class Heartbeat:
    """Sends `TQ.BEAT` with all the worker holds, three times in each lease.

    `held` is called in the heartbeat's thread, and so is `on_lost` with the claims that the
    broker says are not this worker's any more.
    """

    def __init__(
        self,
        address: BrokerAddress,
        worker_id: str,
        held: Callable[[], Held],
        on_lost: Callable[[list[tuple[str, int]]], None],
    ) -> None:
        self._address = address
        self._worker_id = worker_id
        self._held = held
        self._on_lost = on_lost
        self._interval = FIRST_INTERVAL
        self._stop = threading.Event()
        self._socket: socket.socket | None = None
        self._reader = hiredis.Reader()
        self._thread = threading.Thread(target=self._run, name="tq-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._thread.start()

    def stop(self) -> None:
        """Beat no more."""
        self._stop.set()
        self._thread.join(ANSWER_SECONDS)

    def _run(self) -> None:
        backoff = Backoff()
        pause = 0.0
        while not self._stop.wait(pause):
            try:
                self._beat()
            except (OSError, hiredis.HiredisError, msgspec.ValidationError) as error:
                log.debug("no heartbeat: %s", error, extra={"worker_id": self._worker_id})
                self._hang_up()
                pause = min(self._interval, backoff.next_pause())
            else:
                backoff = Backoff()
                pause = self._interval
        self._hang_up()

    def _beat(self) -> None:
        held = list(self._held())
        words = [word for task_id, token in held for word in (task_id, str(token))]
        answer = self._ask("TQ.BEAT", self._worker_id, *words)
        if isinstance(answer, hiredis.ReplyError):
            raise OSError(f"the broker refused the heartbeat: {answer}")
        reply = msgspec.convert(as_fields(answer), BeatReply)
        self._interval = reply.lease_seconds / 3
        if reply.lost:
            lost = set(reply.lost)
            self._on_lost([claim for claim in held if claim[0] in lost])

    def _ask(self, *words: str) -> Any:
        connection = self._socket or self._connect()
        connection.sendall(resp.command(*(word.encode() for word in words)))
        return self._answer(connection)

    def _connect(self) -> socket.socket:
        address = (self._address.host, self._address.port)
        connection = socket.create_connection(address, ANSWER_SECONDS)
        self._socket, self._reader = connection, hiredis.Reader()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        hello = [b"HELLO", b"3"]
        if self._address.key is not None:
            hello += [b"AUTH", b"default", self._address.key.encode()]
        connection.sendall(resp.command(*hello))
        self._answer(connection)
        return connection

    def _answer(self, connection: socket.socket) -> Any:
        while (answer := self._reader.gets()) is False:
            data = connection.recv(65_536)
            if not data:
                raise ConnectionError("the broker hung up")
            self._reader.feed(data)
        return answer

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None
