"""Requests and replies about workers themselves, and what their attempts say beside their end."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal

from msgspec import Meta, Struct

from taskqueue.core.clock import moment
from taskqueue.core.task import LogLevel, LogLine
from taskqueue.wire.messages import LONGEST_TIMEOUT, LONGEST_WAIT_MS, Name, TaskId, Token

LARGEST_CHECKPOINT: Final = 64 * 1024
LONGEST_LINE: Final = 8 * 1024
MOST_HELD: Final = 500

Told = Annotated[str, Meta(max_length=255)]
LineText = Annotated[str, Meta(max_length=LONGEST_LINE)]


class Order(StrEnum):
    """What a worker is to do: work, claim nothing new, or finish and leave."""

    WORK = "work"
    QUIET = "quiet"
    STOP = "stop"


OrderName = Literal["work", "quiet", "stop"]
"""An order as people write it."""

AnyOrder = Order | OrderName


class HeldClaim(Struct, forbid_unknown_fields=True, array_like=True):
    """One claim that a worker believes it holds."""

    task_id: TaskId
    token: Token


class BeatRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A worker is alive and names what it holds."""

    worker_id: Name
    held: Annotated[list[HeldClaim], Meta(max_length=MOST_HELD)] = []


class LeaveRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A worker says goodbye; what it still holds goes back without costing a retry."""

    worker_id: Name


class BeatReply(Struct, kw_only=True):
    """What the worker names but no longer holds, and the lease it now has.

    `shared` says whether other brokers work on the same tasks: then they go to others after the
    lease even if this broker is gone. `order` is what somebody wants the worker to do.
    """

    lost: list[str]
    lease_seconds: float
    shared: bool = False
    order: Order | None = None


class LeaveReply(Struct, kw_only=True):
    """How many tasks went back to the queue."""

    released: int


class About(Struct, forbid_unknown_fields=True, kw_only=True, frozen=True):
    """What a worker tells of itself with its heartbeats.

    `slots` it has in all, `busy` of them taken; `cpu_percent` of one core since it last told;
    `order` is the one that it follows.
    """

    host: Told = ""
    pid: Annotated[int, Meta(ge=0)] = 0
    version: Told = ""
    slots: Annotated[int, Meta(ge=0)] = 0
    busy: Annotated[int, Meta(ge=0)] = 0
    cpu_percent: Annotated[float, Meta(ge=0)] = 0.0
    memory_bytes: Annotated[int, Meta(ge=0)] = 0
    task_types: Annotated[list[Told], Meta(max_length=MOST_HELD)] = []
    tasks: Annotated[list[Told], Meta(max_length=MOST_HELD)] = []
    order: Order = Order.WORK


class AboutRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A worker tells of itself."""

    worker_id: Name
    about: About


class OrderRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Tell a worker what to do; it learns it with its next heartbeat."""

    worker_id: Name
    order: Order


class NoticeRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """A worker waits to be told what it is to stop."""

    worker_id: Name
    wait_ms: Annotated[int, Meta(ge=0, le=LONGEST_WAIT_MS)]


class CheckpointRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """An attempt keeps how far it has come, for the next one."""

    task_id: TaskId
    token: Token
    data: Annotated[bytes, Meta(max_length=LARGEST_CHECKPOINT)]


class LogRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """An attempt puts a line in the task's log."""

    task_id: TaskId
    token: Token
    message: LineText
    level: LogLevel = LogLevel.INFO


class ExtendRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """An attempt asks for so many seconds more, from now."""

    task_id: TaskId
    token: Token
    seconds: Annotated[int, Meta(ge=1, le=LONGEST_TIMEOUT)]


class NoticeReply(Struct, kw_only=True):
    """Claims that are over though their worker did not end them, and what it is ordered to do."""

    lost: list[HeldClaim]
    order: Order | None


class WorkerReply(Struct, kw_only=True):
    """A worker that is alive, as it told of itself."""

    worker_id: str
    since: datetime
    last_seen: datetime
    order: Order
    host: str
    pid: int
    version: str
    slots: int
    busy: int
    cpu_percent: float
    memory_bytes: int
    task_types: list[str]
    tasks: list[str]


class WorkersReply(Struct, kw_only=True):
    """The workers that are alive, by their ids."""

    workers: list[WorkerReply]


class LogLineReply(Struct, kw_only=True):
    """One line of a task's log. `attempt` is the fencing token of the attempt that wrote it."""

    attempt: int
    at: datetime
    level: LogLevel
    message: str


class LogsReply(Struct, kw_only=True):
    """The log of a task, oldest line first."""

    lines: list[LogLineReply]


def logs_reply(lines: list[LogLine]) -> LogsReply:
    """The answer to the question for a task's log."""
    return LogsReply(
        lines=[
            LogLineReply(
                attempt=one.attempt, at=moment(one.at), level=one.level, message=one.message
            )
            for one in lines
        ]
    )
