"""The native door: any Redis client can submit tasks here, and work on them.

Commands of a connection are started in the order they came and answered in that order. One that
blocks holds up only its own connection. A client that does not read its answers is not read from
either, and after a while dropped.
"""

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Any, Final, cast

import structlog

from taskqueue.broker.broker import Broker
from taskqueue.broker.workers import Carried
from taskqueue.core.errors import (
    AuthenticationFailed,
    BrokerUnavailable,
    InternalError,
    TaskQueueError,
)
from taskqueue.doors import bounds
from taskqueue.doors.answers import Pending, held_up, reply_of
from taskqueue.doors.backlog import Backlog
from taskqueue.doors.gate import Gate
from taskqueue.doors.grammar import GRAMMARS, SIGNS_OF_LIFE
from taskqueue.doors.handshake import HANDSHAKES, WITHOUT_KEY, Session, shows_key
from taskqueue.wire import resp

if TYPE_CHECKING:  # what it brings along takes time to import, and many brokers have no use for it
    from taskqueue.doors.tls import Tls

BROKER_FAULT: Final = "The broker failed; its log says how"

log = structlog.get_logger(component="resp")


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, door: "RespDoor", number: int) -> None:
        self._door = door
        self._number = number
        self._session: Session
        self._reader = resp.RequestReader()
        self._inbox: deque[list[bytes]] = deque()
        self._answers: deque[Pending | bytes] = deque()
        self._awaited: asyncio.Future[Any] | None = None
        self._backlog = Backlog()
        self._held = 0
        self._reads = 0
        self._unread = self._results = 0
        self._carried = Carried(door.broker.workers)
        self._refusals = 0
        self._unbind: Callable[[], object] = int
        self._last_words = b""
        self._is_blocked = False
        self._is_choked = False
        self._is_ending = False
        self._is_paused = False
        self._has_left = False
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=bounds.MOST_UNREAD)
        self._session = Session(self._number, self._door.broker.access, self.peer)
        self._stay_while_known()
        if not self._door.admit(self):
            self._last_words = resp.error("ERR", "max number of clients reached")
            self._hang_up()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio names it
        self._door.dismiss(self)
        self._unbind()
        self._carried.close()
        self._reader = resp.RequestReader()  # half a command would wait for the garbage collector
        self._stop_timer()
        self._inbox.clear()
        for answer in self._answers:
            if isinstance(answer, Pending):
                self._door.broker.take_unheard(answer.drop())
        self._answers.clear()
        self._let_go()

    def data_received(self, data: bytes) -> None:
        if self._is_ending:
            return
        commands = self._reader.feed(data)
        self._inbox.extend(commands)
        self._backlog.take(len(data), len(commands), self._reader.held)
        fault = self._reader.fault
        if fault is not None:
            self._door.note_fault(self.peer, fault)
            self._is_ending = True
            if not isinstance(fault, resp.ForeignProtocol):
                self._last_words = resp.error("ERR", f"Protocol error: {fault}")
        self._work()
        if not self._reader.is_modest and not self._session.is_known:
            self.drop("it has shown no key and sends more than a handshake")

    def eof_received(self) -> bool:
        """A client that has sent its last command may still read its answers, but not wait."""
        self._is_ending = self._has_left = True
        self._end_waits()
        self._work()
        return self._transport.can_write_eof()  # TLS ends both ways at once

    def pause_writing(self) -> None:
        self._is_choked = True
        self._unread = self._transport.get_write_buffer_size()
        self._start_timer(self._check_reader)

    def resume_writing(self) -> None:
        if self._transport.is_closing():
            return
        self._is_choked = False
        self._unread = 0
        self._stop_timer()
        self._work()

    @property
    def peer(self) -> str:
        """The client's address."""
        return str((self._transport.get_extra_info("peername") or ("?",))[0])

    @property
    def held(self) -> int:
        """Bytes that the broker keeps for this client."""
        return self._held

    def shut_out(self) -> None:
        """End it because its key is no longer valid, or one is needed now."""
        self._is_ending = True
        self._last_words = resp.error(
            AuthenticationFailed.code, "The key is no longer valid, or a key is needed now"
        )
        self._end_waits()
        # Not at once: it may be in the middle of the command that brought this about.
        asyncio.get_running_loop().call_soon(self._work)

    def finish(self) -> None:
        """Take no more commands, answer those that came, hang up."""
        self._is_ending = True
        self._work()

    def drop(self, reason: str) -> None:
        """End it at once."""
        log.warning("a client is dropped", client=self.peer, reason=reason)
        self._let_go()
        self._transport.abort()

    def _stay_while_known(self) -> None:
        self._unbind()
        self._unbind = self._door.broker.access.bind(self._session.caller, self.shut_out)

    def _end_waits(self) -> None:
        for answer in self._answers:
            if isinstance(answer, Pending) and answer.blocks:
                answer.future.cancel()

    def _work(self) -> None:
        """Send what is ready, start what may be started."""
        if self._transport.is_closing():
            return
        self._send()
        while self._can_start():
            while self._can_start():
                self._start(self._inbox.popleft())
            self._send()
        if self._is_ending and not self._answers and not self._inbox:
            self._hang_up()
        else:
            self._pause_or_resume()
        self._report_held()

    def _can_start(self) -> bool:
        return (
            bool(self._inbox)
            and not self._is_blocked
            and not self._is_choked
            and self._reads < bounds.MOST_READS
            and len(self._answers) < bounds.MOST_UNANSWERED
        )

    def _start(self, words: list[bytes]) -> None:
        name = words[0].upper()
        try:
            if name in GRAMMARS:
                self._start_operation(name, words)
            else:
                self._answers.append(self._shake_hands(name, words))
        except AuthenticationFailed as error:
            self._refuse(error, words)
        except TaskQueueError as error:
            self._answers.append(resp.error(error.code, error.message))
        except Exception:
            log.exception("a command met a fault of the broker")
            self._answers.append(resp.error(InternalError.code, BROKER_FAULT))

    def _refuse(self, error: AuthenticationFailed, words: list[bytes]) -> None:
        answer = resp.error(error.code, error.message)
        self._refusals += 1
        if self._refusals > bounds.MOST_REFUSALS:
            self._is_ending = True
            self._inbox.clear()
        if not shows_key(words):
            self._answers.append(answer)
            return
        seconds = self._door.broker.access.penalty(self._session.caller.address)
        self._answers.append(held_up(answer, seconds, resp3=self._session.resp3))
        self._is_blocked = True
        self._reads += 1

    def _shake_hands(self, name: bytes, words: list[bytes]) -> bytes:
        if name not in WITHOUT_KEY and not self._session.is_known:
            raise AuthenticationFailed("a valid API key is needed; send AUTH KEY first")
        handshake = HANDSHAKES.get(name)
        if handshake is None:
            shown = words[0][:64].decode(errors="replace")
            return resp.error("ERR", f"unknown command '{shown}'")
        caller = self._session.caller
        answer = handshake(self._session, words)
        if self._session.caller is not caller:
            self._stay_while_known()
        if self._session.is_over:
            self._is_ending = True
            self._inbox.clear()
        return answer

    def _start_operation(self, name: bytes, words: list[bytes]) -> None:
        grammar = GRAMMARS[name]
        request = grammar.request(words[1:])
        blocks = getattr(request, "wait_ms", 0) > 0
        if blocks and self._has_left:
            raise BrokerUnavailable("The client has hung up; nothing waits for it")
        self._door.commands += 1
        operation = grammar.operation
        outcome = operation.start(self._door.broker, request, self._session.caller)
        if name in SIGNS_OF_LIFE:
            self._carried.add(request.worker_id)
        reply = reply_of(operation)
        answer = Pending(outcome, reply, blocks=blocks, resp3=self._session.resp3)
        if answer.is_read:
            self._reads += 1
            answer.future.add_done_callback(lambda _: self._hold(answer.weight))
        self._is_blocked = blocks
        self._answers.append(answer)

    def _hold(self, weight: int) -> None:
        if weight and not self._transport.is_closing():
            self._results += weight
            self._report_held()

    def _head_is_done(self, future: asyncio.Future[Any]) -> None:
        if self._awaited is future:
            self._awaited = None
        self._work()

    def _send(self) -> None:
        """Write the answers that are ready, up to the first one that is not."""
        before = len(self._answers)
        while self._answers and not self._is_choked:
            ready = self._take_ready()
            if not ready:
                break
            self._transport.write(b"".join(ready))  # may choke us
        if before != len(self._answers):
            self._backlog.settle(before - len(self._answers))

    def _take_ready(self) -> list[bytes]:
        """The answers for one write; if the next one is not ready, see to it that it calls."""
        answers = self._answers
        ready: list[bytes] = []
        size = 0
        while answers and size < bounds.WRITE_SIZE:
            head = answers[0]
            if isinstance(head, bytes):
                ready.append(head)
            elif head.future.done():
                ready.append(self._write(head))
            else:
                if head.future is not self._awaited:
                    self._awaited = head.future
                    head.future.add_done_callback(self._head_is_done)
                break
            answers.popleft()
            size += len(ready[-1])
        return ready

    def _write(self, answer: Pending) -> bytes:
        if answer.blocks:
            self._is_blocked = False
        self._reads -= answer.is_read
        self._results = max(0, self._results - answer.weight)
        try:
            return answer.take()
        except TaskQueueError as error:
            return resp.error(error.code, error.message)
        except asyncio.CancelledError:
            return resp.error(BrokerUnavailable.code, "The wait was broken off")
        except Exception:
            log.exception("an answer met a fault of the broker")
            return resp.error(InternalError.code, BROKER_FAULT)

    def _pause_or_resume(self) -> None:
        is_busy = bool(self._answers or self._inbox)
        is_full = (
            self._is_choked
            or len(self._answers) >= bounds.MOST_UNANSWERED
            or len(self._inbox) >= bounds.MOST_UNANSWERED
            or (is_busy and self._backlog.size > bounds.LARGEST_BACKLOG)
        )
        if is_full != self._is_paused and not self._has_left:
            self._is_paused = is_full
            if is_full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _report_held(self) -> None:
        held = self._backlog.size + self._unread + self._results
        if held != self._held:
            self._door.held_bytes += held - self._held
            self._held = held
            if self._door.held_bytes > bounds.LARGEST_BACKLOG_OF_ALL:
                self._door.drop_largest()

    def _let_go(self) -> None:
        self._door.held_bytes -= self._held
        self._held = 0

    def _check_reader(self) -> None:
        unread = self._transport.get_write_buffer_size()
        if unread > self._unread - bounds.LEAST_READ:
            self.drop(f"it leaves {unread} bytes of answers unread")
        else:
            self._unread = unread
            self._report_held()
            self._start_timer(self._check_reader)

    def _hang_up(self) -> None:
        """Close once everything is written, or when the client has not read it in time."""
        if self._last_words:
            self._transport.write(self._last_words)
        self._transport.close()
        self._start_timer(self._transport.abort)

    def _start_timer(self, then: Any) -> None:
        self._stop_timer()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._door.settings.slow_reader_seconds, then)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


class RespDoor:
    """Listens for Redis clients and lets them at the broker.

    `commands` counts the operations started; `held_bytes` is what all clients together make the
    broker keep.
    """

    def __init__(self, broker: Broker, settings: bounds.RespSettings) -> None:
        self.broker = broker
        self.settings = settings
        self.commands = 0
        self.held_bytes = 0
        self._numbers = count(1)
        self._connections: set[Connection] = set()
        self._offenders: set[str] = set()
        self._deserted = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._gate: Gate | None = None
        broker.metrics.connections["native"] = lambda: len(self._connections)

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None  # noqa: S101  for the type checker
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self, host: str, port: int, tls: "Tls | None" = None) -> None:
        """Begin to listen. Raises OSError if the address cannot be had."""
        loop = asyncio.get_running_loop()
        if tls is not None:
            self._gate = Gate(self._connection, lambda: tls.native)
        self._server = await loop.create_server(
            self._gate or self._connection, host, port, backlog=1_024
        )
        for listener in self._server.sockets:  # accepted connections inherit this
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, bounds.SECONDS_TO_PROBE)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)

    async def close(self) -> None:
        """Stop listening, answer what is under way, hang up; at most bounds.FLUSH_SECONDS or so.

        Close the broker first: it ends the waits.
        """
        if self._server is None:
            return
        self._server.close()
        if self._gate is not None:
            self._gate.close()
        for connection in list(self._connections):
            connection.finish()
        if self._connections:
            self._deserted.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._deserted.wait(), bounds.FLUSH_SECONDS)
        for connection in list(self._connections):
            connection.drop("the broker closes")
        await self._server.wait_closed()

    def admit(self, connection: Connection) -> bool:
        """Take a client in, if there is room."""
        if len(self._connections) >= self.settings.max_connections:
            return False
        self._connections.add(connection)
        return True

    def dismiss(self, connection: Connection) -> None:
        """Forget a client that has gone."""
        self._connections.discard(connection)
        if not self._connections:
            self._deserted.set()

    def drop_largest(self) -> None:
        """Make room: drop the client that makes the broker keep the most."""
        largest = max(self._connections, key=lambda connection: connection.held)
        largest.drop(f"all clients together hold up {self.held_bytes} bytes, it the most")

    def note_fault(self, peer: str, fault: resp.ProtocolError) -> None:
        """Log, once for each address, that something else than RESP came in."""
        if peer not in self._offenders and len(self._offenders) < bounds.MOST_UNANSWERED:
            self._offenders.add(peer)
            log.warning("a client does not speak RESP; dropped", client=peer, error=str(fault))

    def _connection(self) -> Connection:
        return Connection(self, next(self._numbers))
