"""The native door: any Redis client can submit tasks here, and work on them.

Commands of a connection are started in the order they came and answered in that order. One that
blocks holds up only its own connection. A client that does not read its answers is not read from
either, and after a while dropped.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, Final, cast

import structlog
from msgspec import Meta, Struct

from taskqueue.broker.broker import Broker
from taskqueue.broker.operations import Operation
from taskqueue.core.clock import moment
from taskqueue.core.errors import BrokerUnavailable, InternalError, TaskQueueError
from taskqueue.core.task import ClaimedTask, Task
from taskqueue.doors.grammar import GRAMMARS
from taskqueue.doors.handshake import HANDSHAKES, Session
from taskqueue.wire import messages as m
from taskqueue.wire import resp

MOST_UNANSWERED: Final = 1_024
"""Commands of one connection that may be under way before the door stops reading from it."""

MOST_UNREAD: Final = 1024 * 1024
"""Bytes of answers that a client may leave unread before the door stops reading from it."""

SLOW_READER_SECONDS: Final = 10.0
FLUSH_SECONDS: Final = 3.0

PROTOCOL_ERROR: Final = b"\r\n"
"""In the place of a command, which cannot have this name: answer the fault of the bytes."""

log = structlog.get_logger(component="resp")


class RespSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits of the native door."""

    max_connections: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    """Clients that may be connected at once."""


Reply = Callable[[Any, bool], bytes]
"""Writes an outcome as an answer; the flag says whether the client speaks RESP3."""


class Pending:
    """An answer that is still to come."""

    __slots__ = ("blocks", "future", "reply")

    def __init__(self, future: asyncio.Future[Any], reply: Reply, *, blocks: bool) -> None:
        self.future = future
        self.reply = reply
        self.blocks = blocks


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, door: "RespDoor") -> None:
        self._door = door
        self._session = Session()
        self._reader = resp.RequestReader()
        self._inbox: deque[list[bytes]] = deque()
        self._answers: deque[Pending | bytes] = deque()
        self._is_blocked = False
        self._is_choked = False
        self._is_ending = False
        self._is_paused = False
        self._slow_timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not inherit from asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=MOST_UNREAD)
        if not self._door.admit(self):
            self._transport.write(resp.error("ERR", "max number of clients reached"))
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  asyncio names it
        self._door.dismiss(self)
        if self._slow_timer is not None:
            self._slow_timer.cancel()
        self._inbox.clear()
        for answer in self._answers:
            if isinstance(answer, Pending):
                answer.future.cancel()
        self._answers.clear()

    def data_received(self, data: bytes) -> None:
        if self._is_ending:
            return
        self._inbox.extend(self._reader.feed(data))
        fault = self._reader.fault
        if fault is not None:
            self._door.note_foreign(self.peer, fault)
            self._is_ending = True
            self._inbox.append([PROTOCOL_ERROR, str(fault).encode()])
        self._work()

    def eof_received(self) -> bool:
        """A client that has sent its last command may still read its answers, but not wait."""
        self._is_ending = True
        for answer in self._answers:
            if isinstance(answer, Pending) and answer.blocks:
                answer.future.cancel()
        self._work()
        return True

    def pause_writing(self) -> None:
        self._is_choked = True
        loop = asyncio.get_running_loop()
        self._slow_timer = loop.call_later(SLOW_READER_SECONDS, self._drop_slow_reader)

    def resume_writing(self) -> None:
        self._is_choked = False
        if self._slow_timer is not None:
            self._slow_timer.cancel()
        self._work()

    @property
    def peer(self) -> str:
        """The client's address."""
        return str((self._transport.get_extra_info("peername") or ("?",))[0])

    async def flush(self) -> None:
        """Answer what is under way, then hang up."""
        futures = [one.future for one in self._answers if isinstance(one, Pending)]
        if futures:
            await asyncio.wait(futures, timeout=FLUSH_SECONDS)
            await asyncio.sleep(0)
        self._transport.close()

    def _work(self) -> None:
        """Send what is ready, start what may be started."""
        self._send()
        while self._can_start():
            while self._can_start():
                self._start(self._inbox.popleft())
            self._send()
        self._pause_or_resume()

    def _can_start(self) -> bool:
        return (
            bool(self._inbox)
            and not self._is_blocked
            and not self._is_choked
            and len(self._answers) < MOST_UNANSWERED
        )

    def _start(self, words: list[bytes]) -> None:
        name = words[0].upper()
        handshake = HANDSHAKES.get(name)
        if handshake is not None:
            self._answers.append(handshake(self._session, words))
            if self._session.is_over:
                self._is_ending = True
                self._inbox.clear()
            return
        if name == PROTOCOL_ERROR:
            self._answers.append(resp.error("ERR", f"Protocol error: {words[1].decode()}"))
            return
        try:
            self._start_operation(name, words)
        except TaskQueueError as error:
            self._answers.append(resp.error(error.code, error.message))

    def _start_operation(self, name: bytes, words: list[bytes]) -> None:
        grammar = GRAMMARS.get(name)
        if grammar is None:
            shown = words[0][:64].decode(errors="replace")
            self._answers.append(resp.error("ERR", f"unknown command '{shown}'"))
            return
        request = grammar.request(words[1:])
        operation = grammar.operation
        self._door.commands += 1
        future = _as_future(operation.run(self._door.broker, request))
        blocks = getattr(request, "wait_ms", 0) > 0
        self._is_blocked = blocks
        self._answers.append(Pending(future, _reply_of(operation), blocks=blocks))
        if len(self._answers) == 1:
            future.add_done_callback(self._head_is_done)

    def _head_is_done(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() or not self._transport.is_closing():
            self._work()

    def _send(self) -> None:
        """Send the answers that are ready, up to the first one that is not."""
        ready: list[bytes] = []
        answers = self._answers
        while answers:
            head = answers[0]
            if isinstance(head, Pending):
                if not head.future.done():
                    # Added once for each future: it becomes the head once.
                    if ready:
                        head.future.add_done_callback(self._head_is_done)
                    break
                ready.append(self._write(head))
            else:
                ready.append(head)
            answers.popleft()
        if ready:
            self._transport.write(b"".join(ready))
        if self._is_ending and not answers and not self._inbox:
            self._transport.close()

    def _write(self, answer: Pending) -> bytes:
        if answer.blocks:
            self._is_blocked = False
        try:
            return answer.reply(answer.future.result(), self._session.resp3)
        except TaskQueueError as error:
            return resp.error(error.code, error.message)
        except asyncio.CancelledError:
            return resp.error(BrokerUnavailable.code, "The broker is shutting down")
        except Exception:
            log.exception("an answer could not be made")
            return resp.error(InternalError.code, "The broker failed; its log says how")

    def _pause_or_resume(self) -> None:
        is_full = (
            self._is_choked
            or len(self._answers) >= MOST_UNANSWERED
            or len(self._inbox) >= MOST_UNANSWERED
        )
        if is_full != self._is_paused and not self._transport.is_closing():
            self._is_paused = is_full
            if is_full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _drop_slow_reader(self) -> None:
        log.warning("a client does not read its answers; it is dropped", client=self.peer)
        self._transport.abort()


class RespDoor:
    """Listens for Redis clients and lets them at the broker."""

    def __init__(self, broker: Broker, settings: RespSettings) -> None:
        self.broker = broker
        self.commands = 0
        self._settings = settings
        self._connections: set[Connection] = set()
        self._foreigners: set[str] = set()
        self._server: asyncio.Server | None = None
        broker.metrics.connections["native"] = lambda: len(self._connections)

    @property
    def port(self) -> int:
        """Where it listens."""
        assert self._server is not None  # noqa: S101  for the type checker
        return int(self._server.sockets[0].getsockname()[1])

    async def start(self, host: str, port: int) -> None:
        """Begin to listen. Raises OSError if the address cannot be had."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), host, port, backlog=1_024)

    async def close(self) -> None:
        """Stop listening, answer what is under way, hang up."""
        if self._server is not None:
            self._server.close()
        flushing = [asyncio.ensure_future(one.flush()) for one in list(self._connections)]
        if flushing:
            await asyncio.wait(flushing, timeout=FLUSH_SECONDS + 1)
        if self._server is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._server.wait_closed(), FLUSH_SECONDS)

    def admit(self, connection: Connection) -> bool:
        """Take a client in, if there is room."""
        if len(self._connections) >= self._settings.max_connections:
            return False
        self._connections.add(connection)
        return True

    def dismiss(self, connection: Connection) -> None:
        """Forget a client that has gone."""
        self._connections.discard(connection)

    def note_foreign(self, peer: str, error: resp.ProtocolError) -> None:
        """Log, once for each address, that something else than RESP came in."""
        if peer not in self._foreigners and len(self._foreigners) < MOST_UNANSWERED:
            self._foreigners.add(peer)
            log.warning("a client does not speak RESP; dropped", client=peer, error=str(error))


def _as_future(awaitable: Awaitable[Any]) -> asyncio.Future[Any]:
    return awaitable if isinstance(awaitable, asyncio.Future) else asyncio.ensure_future(awaitable)


def _reply_of(operation: Operation) -> Reply:
    return _REPLIES.get(operation.name) or _general_reply(operation)


def _general_reply(operation: Operation) -> Reply:
    def reply(outcome: Any, resp3: bool) -> bytes:
        return resp.encode(operation.reply(outcome), resp3=resp3)

    return reply


def _submitted(task: Task, _resp3: bool) -> bytes:
    return b"$36\r\n%s\r\n" % task.id.encode()


def _status(task: Task, _resp3: bool) -> bytes:
    return resp.simple(task.status)


def _ok(_outcome: object, _resp3: bool) -> bytes:
    return resp.OK


def _claimed(claimed: list[ClaimedTask], _resp3: bool) -> bytes:
    return b"*%d\r\n" % len(claimed) + b"".join(_one_claimed(one) for one in claimed)


def _one_claimed(one: ClaimedTask) -> bytes:
    reply = m.claimed_reply(one)
    return b"*8\r\n$36\r\n%s\r\n:%d\r\n%s%s:%d\r\n:%d\r\n:%d\r\n%s" % (
        reply.task_id.encode(),
        reply.token,
        resp.bulk(reply.task_type.encode()),
        resp.bulk(reply.payload),
        reply.attempt,
        reply.timeout_seconds,
        reply.priority,
        resp.bulk(resp.timestamp(moment(one.task.created_at)).encode()),
    )


def _left(reply: m.LeaveReply, _resp3: bool) -> bytes:
    return b":%d\r\n" % reply.released


_REPLIES: Final[dict[str, Reply]] = {
    "submit": _submitted,
    "claim": _claimed,
    "complete": _status,
    "fail": _status,
    "progress": _status,
    "release": _status,
    "retry": _status,
    "cancel": _ok,
    "leave": _left,
}
"""Answers shorter than the whole reply struct, or hot enough to be written out."""
