"""What operations came to, as the native door says it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from taskqueue.broker.operation import Operation
from taskqueue.core.task import ClaimedTask, Task, TaskDetail
from taskqueue.wire import messages as m
from taskqueue.wire import resp
from taskqueue.wire import workers as w

Reply = Callable[[Any, bool], bytes]
"""Writes an outcome as an answer; the flag says whether the client speaks RESP3."""


class Pending:
    """An answer that is still to come: `reply` writes it once `future` is done."""

    __slots__ = ("blocks", "future", "is_read", "reply", "resp3")

    def __init__(self, outcome: Awaitable[Any], reply: Reply, *, blocks: bool, resp3: bool) -> None:
        self.is_read = not isinstance(outcome, asyncio.Future)
        """Whether it reads from the storage, as all do that are not one command to the ledger."""
        self.future = asyncio.ensure_future(outcome)
        self.reply = reply
        self.blocks = blocks
        self.resp3 = resp3

    @property
    def weight(self) -> int:
        """Bytes of the result that it holds until it is written."""
        if not self.future.done() or self.future.cancelled() or self.future.exception():
            return 0
        outcome = self.future.result()
        return len(outcome.result or b"") if isinstance(outcome, TaskDetail) else 0

    def take(self) -> bytes:
        """The answer. Raises what the operation raised."""
        return self.reply(self.future.result(), self.resp3)

    def drop(self) -> Any:
        """Nobody hears it any more: end what is under way, return an outcome that was ready."""
        if not self.future.done():
            self.future.cancel()
        elif not self.future.cancelled() and self.future.exception() is None:
            return self.future.result()
        return None


def held_up(answer: bytes, seconds: float, *, resp3: bool) -> Pending:
    """An answer that is ready, but is to be given only after so many seconds."""
    return Pending(asyncio.sleep(seconds, answer), _as_it_is, blocks=True, resp3=resp3)


def reply_of(operation: Operation) -> Reply:
    """How the outcome of an operation is written: in short where the table below says so."""
    return _REPLIES.get(operation.name) or _whole_reply(operation)


def _whole_reply(operation: Operation) -> Reply:
    def reply(outcome: Any, resp3: bool) -> bytes:
        return resp.encode(operation.reply(outcome), resp3=resp3)

    return reply


def _as_it_is(answer: bytes, _resp3: bool) -> bytes:
    return answer


def _submitted(task: Task, _resp3: bool) -> bytes:
    return b"$36\r\n%s\r\n" % task.id.encode()


def _status(task: Task, _resp3: bool) -> bytes:
    return resp.simple(task.status)


def _ok(_outcome: object, _resp3: bool) -> bytes:
    return resp.OK


def _claimed(claimed: list[ClaimedTask], resp3: bool) -> bytes:
    return b"*%d\r\n" % len(claimed) + b"".join(_one_claimed(one, resp3) for one in claimed)


def _one_claimed(one: ClaimedTask, resp3: bool) -> bytes:
    reply = m.claimed_reply(one)
    size, more = 8, b""
    if reply.metadata or reply.checkpoint is not None:
        size = 10
        more = resp.encode(reply.metadata, resp3=resp3) + resp.encode(reply.checkpoint, resp3=resp3)
    return b"*%d\r\n$36\r\n%s\r\n:%d\r\n%s%s:%d\r\n:%d\r\n:%d\r\n%s%s" % (
        size,
        reply.task_id.encode(),
        reply.token,
        resp.bulk(reply.task_type.encode()),
        resp.bulk(reply.payload),
        reply.attempt,
        reply.timeout_seconds,
        reply.priority,
        resp.bulk(resp.timestamp(reply.created_at).encode()),
        more,
    )


def _left(reply: w.LeaveReply, _resp3: bool) -> bytes:
    return b":%d\r\n" % reply.released


_REPLIES: Final[dict[str, Reply]] = {
    "submit": _submitted,
    "claim": _claimed,
    "complete": _status,
    "fail": _status,
    "progress": _status,
    "log": _status,
    "checkpoint": _status,
    "extend": _status,
    "release": _status,
    "change": _status,
    "purge": _ok,
    "order": _ok,
    "about": _ok,
    "retry": _status,
    "cancel": _ok,
    "revoke_key": _ok,
    "leave": _left,
}
"""Answers shorter than the whole reply struct, or hot enough to be written out."""
