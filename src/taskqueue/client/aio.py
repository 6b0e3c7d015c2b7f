"""The asyncio client."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from types import TracebackType
from typing import ClassVar, Final

import msgspec

from taskqueue.client.address import broker_addresses
from taskqueue.client.connection import Answer, Connection, ConnectionLost
from taskqueue.client.errors import WaitTimeout, result_of
from taskqueue.client.link import Link
from taskqueue.client.task import (
    PriorityName,
    Task,
    TaskPage,
    TaskStatus,
    as_fields,
    labels,
    priority_in,
)
from taskqueue.core.errors import (
    BrokerUnavailable,
    OutcomeUnknown,
    QueueDepthExceeded,
    TaskQueueError,
)
from taskqueue.core.ids import new_task_id
from taskqueue.core.keys import Permission
from taskqueue.core.task import TERMINAL, Status
from taskqueue.wire.administration import (
    AuditEntryReply,
    AuditReply,
    KeyReply,
    KeysReply,
    NewKeyReply,
)
from taskqueue.wire.cluster import ClusterReply
from taskqueue.wire.figures import HealthReply, StatsReply
from taskqueue.wire.workers import AnyOrder, LogLineReply, LogsReply, WorkerReply, WorkersReply

# Waiting with a time-out as an argument is the documented interface, alike for both clients.
LONGEST_WAIT_SLICE: Final = 10.0
"""Seconds one wait holds a connection; more waiters than connections take turns."""

ANSWER_SECONDS: Final = 5.0
"""How much longer than asked for a wait may take because the answer does not come."""

MOST_PIPELINED: Final = 500
LARGEST_PIPELINED: Final = 1024 * 1024
"""Tasks, and bytes of payload, that `submit_many` sends before it waits for the answers."""


class AsyncClient:
    """Talks to a broker's native door. Safe to share between tasks of one event loop.

    `url` is `host:port` or `tq://key@host:port`; without one TQ_URL is used, or else this machine.
    Of several brokers on one database, as in `a:6379,b:6379`, it uses one that works.
    `timeout` in seconds bounds each call: what the broker cannot do now (unreachable, restarting,
    its queue full) is tried again within it. Every submit carries an id made here, or the task's
    idempotency key, so trying again is harmless.
    """

    _waits_at_once: ClassVar[int] = 20

    def __init__(
        self, url: str | None = None, *, api_key: str | None = None, timeout: float = 30.0
    ) -> None:
        self._addresses = broker_addresses(url, api_key)
        self._timeout = timeout
        self._grace = min(timeout, ANSWER_SECONDS)
        self._link: Link | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Hang up; calls under way fail."""
        # In a forked process, or on another loop, the connections are somebody else's to close.
        if self._link is not None and self._loop is asyncio.get_running_loop():
            self._link.close()
        self._link = None

    async def submit_task(self, task: Task) -> str:
        """Submit a task and return its id once it is durable.

        Raises InvalidRequest, PayloadTooLarge, QueueDepthExceeded, IdempotencyConflict,
        BrokerUnavailable.
        """
        answer = await self._call(*task.command(_id_for(task)))
        return str(answer.decode())

    async def submit_many(self, tasks: Iterable[Task]) -> list[str]:
        """Submit tasks together, pipelined; their ids in the same order.

        The first one that is refused raises its error; the others are submitted all the same.
        To repeat a call that failed, give the tasks ids or idempotency keys of your own.
        """
        commands = [task.command(_id_for(task)) for task in tasks]
        ids: list[str] = []
        refusals: list[TaskQueueError] = []
        for some in _slices(commands):
            for answer in await self._call_all(some):
                if isinstance(answer, TaskQueueError):
                    refusals.append(answer)
                else:
                    ids.append(answer.decode())
        if refusals:
            raise refusals[0]
        return ids

    async def get_status(self, task_id: str) -> TaskStatus:
        """How a task stands. Raises TaskNotFound."""
        return _status(await self._call(b"TQ.GET", task_id.encode()))

    async def wait_for_result(self, task_id: str, timeout: float = 60.0) -> bytes:  # noqa: ASYNC109
        """The result of a task, waiting up to `timeout` seconds for it.

        Raises TaskFailed if it ended without one, WaitTimeout, TaskNotFound.
        """
        return result_of(await self.wait_for_end(task_id, timeout))

    async def wait_for_end(self, task_id: str, timeout: float = 60.0) -> TaskStatus:  # noqa: ASYNC109
        """How a task stands at its end. Raises WaitTimeout, TaskNotFound."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + timeout
        backoff = self._current_link().backoff()
        while True:
            is_over = loop.time() >= ends_at
            try:
                status = await self._wait(task_id, ends_at)
            except (BrokerUnavailable, ConnectionLost) as error:
                if is_over:
                    raise _unavailable(error, is_in_doubt=False) from error
                pause = backoff.next_pause(error)
                await asyncio.sleep(min(pause, max(0.0, ends_at - loop.time())))
                continue
            if status.status in TERMINAL:
                return status
            if is_over:
                raise WaitTimeout(f"task {task_id} is {status.status} after {timeout:g} s")

    async def cancel(self, task_id: str, *, running: bool = False) -> None:
        """Cancel a task; one that is running only with `running`.

        Its worker then stops the handler at its next heartbeat, and what it says of the task is
        refused at once. Raises TaskNotFound, InvalidStatus.
        """
        words = (b"RUNNING", b"yes") if running else ()
        await self._call_once(b"TQ.CANCEL", task_id.encode(), *words)

    async def retry(self, task_id: str) -> None:
        """Put a dead or cancelled task back. Raises TaskNotFound, InvalidStatus."""
        await self._call_once(b"TQ.RETRY", task_id.encode())

    async def list_tasks(  # noqa: PLR0913  filters, all named
        self,
        *,
        status: Status | str | None = None,
        task_type: str | None = None,
        limit: int = 100,
        offset: int = 0,
        cursor: str | None = None,
        tags: Iterable[str] = (),
        metadata: Mapping[str, str] | None = None,
    ) -> TaskPage:
        """One page of tasks, newest first; those with all of the tags and metadata.

        Raises InvalidRequest.
        """
        asked = {"STATUS": status, "TYPE": task_type, "LIMIT": limit, "OFFSET": offset or None}
        words = [*_options({**asked, "CURSOR": cursor}), *labels(tags, metadata or {})]
        return msgspec.convert(as_fields(await self._call(b"TQ.LIST", *words)), TaskPage)

    async def change(
        self,
        task_id: str,
        *,
        priority: int | PriorityName | None = None,
        schedule_at: datetime | None = None,
        delay: float | None = None,
    ) -> None:
        """Give a task that waits another priority, or another moment to start; `delay` in seconds.

        Raises TaskNotFound, InvalidStatus, InvalidRequest.
        """
        asked = {
            "PRIORITY": priority_in(priority),
            "AT": None if schedule_at is None else schedule_at.isoformat(),
            "DELAY": None if delay is None else f"{delay:.6f}",
        }
        await self._call(b"TQ.CHANGE", task_id.encode(), *_options(asked))

    async def purge(self, task_id: str) -> None:
        """Delete a task that has ended. Raises TaskNotFound, InvalidStatus."""
        await self._call_once(b"TQ.PURGE", task_id.encode())

    async def logs(self, task_id: str) -> list[LogLineReply]:
        """The lines that the attempts at a task have logged, oldest first. Raises TaskNotFound."""
        answer = await self._call(b"TQ.LOGS", task_id.encode())
        return msgspec.convert(as_fields(answer), LogsReply).lines

    async def workers(self) -> list[WorkerReply]:
        """The workers that are alive. Raises PermissionDenied."""
        return msgspec.convert(as_fields(await self._call(b"TQ.WORKERS")), WorkersReply).workers

    async def order(self, worker_id: str, order: AnyOrder) -> None:
        """Tell a worker to "work", to claim nothing new ("quiet"), or to finish and "stop".

        Raises WorkerNotFound, InvalidRequest, PermissionDenied.
        """
        await self._call(b"TQ.ORDER", worker_id.encode(), order.encode())

    async def stats(self) -> StatsReply:
        """The queue in figures."""
        return msgspec.convert(as_fields(await self._call(b"TQ.STATS")), StatsReply)

    async def health(self) -> HealthReply:
        """Whether the broker can do its work."""
        return msgspec.convert(as_fields(await self._call(b"TQ.HEALTH")), HealthReply)

    async def cluster(self) -> ClusterReply:
        """The brokers and the database under them. Raises PermissionDenied."""
        return msgspec.convert(as_fields(await self._call(b"TQ.CLUSTER")), ClusterReply)

    async def create_key(
        self,
        name: str,
        permissions: Iterable[Permission | str],
        *,
        task_type_prefix: str | None = None,
        rate_limit: int | None = None,
        expires_in: int | None = None,
    ) -> NewKeyReply:
        """Make an API key; `key` of the answer is its secret, which nobody can ask for again.

        `rate_limit` in requests a second over REST and gRPC, 0 for none; `expires_in` in seconds.
        Raises InvalidRequest, KeyExists, PermissionDenied.
        """
        options = {"PREFIX": task_type_prefix, "RATE": rate_limit, "EXPIRES": expires_in}
        wanted = [permission.encode() for permission in permissions]
        answer = await self._call_once(
            b"TQ.KEY.CREATE", name.encode(), *_options(options), b"PERMISSIONS", *wanted
        )
        return msgspec.convert(as_fields(answer), NewKeyReply)

    async def list_keys(self) -> list[KeyReply]:
        """Every API key, oldest first, without its secret. Raises PermissionDenied."""
        return msgspec.convert(as_fields(await self._call(b"TQ.KEY.LIST")), KeysReply).keys

    async def rotate_key(self, key_id: str, *, overlap: int = 86_400) -> NewKeyReply:
        """Give a key a new secret; the old one stays valid for `overlap` seconds.

        Raises KeyNotFound, InvalidStatus, PermissionDenied.
        """
        answer = await self._call_once(
            b"TQ.KEY.ROTATE", key_id.encode(), b"OVERLAP", b"%d" % overlap
        )
        return msgspec.convert(as_fields(answer), NewKeyReply)

    async def revoke_key(self, key_id: str) -> None:
        """End a key at once. Raises KeyNotFound, InvalidStatus, PermissionDenied."""
        await self._call(b"TQ.KEY.REVOKE", key_id.encode())

    async def audit_log(
        self, *, limit: int = 100, before: int | None = None
    ) -> list[AuditEntryReply]:
        """What operators did, newest first; `before` asks for numbers below it."""
        words = _options({"LIMIT": limit, "BEFORE": before})
        return msgspec.convert(as_fields(await self._call(b"TQ.AUDIT", *words)), AuditReply).entries

    async def _call(self, *words: bytes, ends_at: float | None = None) -> Answer:
        """The answer to a command that may be repeated, which it is within the time-out."""
        [answer] = await self._call_all([words], ends_at)
        if isinstance(answer, TaskQueueError):
            raise answer
        return answer

    async def _call_all(
        self, commands: Sequence[Sequence[bytes]], ends_at: float | None = None
    ) -> list[Answer]:
        """The answers to commands that may be repeated; a refusal is one, as the error it is."""
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + self._timeout if ends_at is None else ends_at
        backoff = self._current_link().backoff()
        # Once sent and not answered it stays in doubt, whatever becomes of a later try.
        is_in_doubt = False
        latest: Exception | None = None
        while True:
            link = self._current_link()
            connection: Connection | None = None
            try:
                async with asyncio.timeout_at(ends_at):
                    connection = await link.shared()
                    return await _answers_to(connection, commands)
            except TimeoutError:
                raise self._not_answered(is_in_doubt or connection is not None, latest) from None
            except (BrokerUnavailable, ConnectionLost, QueueDepthExceeded) as error:
                latest = error
                is_in_doubt |= isinstance(error, ConnectionLost | OutcomeUnknown)
                if connection is not None:
                    link.blame(connection, error)
                pause = getattr(error, "retry_after", None) or backoff.next_pause(error)
                if loop.time() + pause >= ends_at:
                    raise _unavailable(error, is_in_doubt=is_in_doubt) from error
                await asyncio.sleep(pause)

    def _not_answered(
        self, is_in_doubt: bool, latest: Exception | None = None
    ) -> BrokerUnavailable:
        # What a broker said before tells more than that the time was over in the next try.
        if isinstance(latest, BrokerUnavailable) and not is_in_doubt:
            return latest
        where = f"the broker at {' or '.join(map(str, self._addresses))}"
        if not is_in_doubt:
            return BrokerUnavailable(f"{where} could not be reached in time")
        return OutcomeUnknown(f"{where} has not answered in time")

    async def _call_once(self, *words: bytes) -> Answer:
        """The answer to a command whose repeat would be answered differently."""
        ends_at = asyncio.get_running_loop().time() + self._timeout
        connection = await self._reached(ends_at)
        try:
            async with asyncio.timeout_at(ends_at):
                return await connection.send(*words)
        except (TimeoutError, ConnectionLost) as error:
            raise OutcomeUnknown(
                f"the connection to {connection.address} ended before the answer came; "
                "ask for the task's status"
            ) from error
        except BrokerUnavailable as error:
            self._current_link().blame(connection, error)
            raise

    async def _reached(self, ends_at: float) -> Connection:
        """The shared connection, as soon as the broker can be reached."""
        loop = asyncio.get_running_loop()
        backoff = self._current_link().backoff()
        while True:
            try:
                async with asyncio.timeout_at(ends_at):
                    return await self._current_link().shared()
            except TimeoutError:
                raise self._not_answered(is_in_doubt=False) from None
            except BrokerUnavailable as error:
                pause = error.retry_after or backoff.next_pause(error)
                if loop.time() + pause >= ends_at:
                    raise
                await asyncio.sleep(pause)

    async def _wait(self, task_id: str, ends_at: float) -> TaskStatus:
        """How a task stands at its end, or after one slice of waiting."""
        loop = asyncio.get_running_loop()
        link = self._current_link()
        asked: Connection | None = None
        try:
            async with asyncio.timeout_at(ends_at) as patience, link.blocking() as connection:
                asked = connection
                seconds = min(LONGEST_WAIT_SLICE, max(0.0, ends_at - loop.time()))
                patience.reschedule(loop.time() + seconds + self._grace)
                milliseconds = b"%d" % round(seconds * 1000)
                return _status(await connection.send(b"TQ.WAIT", task_id.encode(), milliseconds))
        except TimeoutError:
            # No connection was free to wait on, or it fell silent: at least ask how it stands.
            if asked is not None:
                link.leave(asked)
            asked_until = max(ends_at, loop.time() + self._grace)
            return _status(await self._call(b"TQ.GET", task_id.encode(), ends_at=asked_until))

    def _current_link(self) -> Link:
        loop = asyncio.get_running_loop()
        if self._link is None or self._loop is not loop:
            # Connections belong to a loop; one that has ended took them with it.
            self._link, self._loop = Link(self._addresses), loop
        return self._link


def waits_at_once(client: AsyncClient) -> int:
    """How many of many tasks to wait for at a time: each wait takes a connection of its own."""
    return client._waits_at_once  # pyright: ignore[reportPrivateUsage]


def _id_for(task: Task) -> str | None:
    """The id to submit a task under; with an idempotency key the broker may choose it."""
    if task.task_id is None and task.idempotency_key is None:
        return new_task_id()
    return task.task_id


def _options(asked: Mapping[str, object]) -> list[bytes]:
    """The words for options; those without a value are left out."""
    return [
        word
        for keyword, value in asked.items()
        if value is not None
        for word in (keyword.encode(), str(value).encode())
    ]


def _status(answer: Answer) -> TaskStatus:
    return msgspec.convert(as_fields(answer), TaskStatus)


def _slices(commands: list[list[bytes]]) -> Iterator[list[list[bytes]]]:
    """The commands in slices that are neither many nor large."""
    some: list[list[bytes]] = []
    size = 0
    for command in commands:
        size += len(command[2])
        some.append(command)
        if len(some) == MOST_PIPELINED or size >= LARGEST_PIPELINED:
            yield some
            some, size = [], 0
    if some:
        yield some


def _answers(futures: list[asyncio.Future[Answer]]) -> list[Answer]:
    """What came of commands sent together. Raises what asks for a repeat."""
    answers = [future.exception() or future.result() for future in futures]
    for answer in answers:
        if isinstance(answer, BrokerUnavailable | ConnectionLost | QueueDepthExceeded):
            raise answer
    return answers


async def _answers_to(connection: Connection, commands: Sequence[Sequence[bytes]]) -> list[Answer]:
    futures = [connection.send(*words) for words in commands]
    await asyncio.wait(futures)
    return _answers(futures)


def _unavailable(error: Exception, *, is_in_doubt: bool) -> TaskQueueError:
    if isinstance(error, TaskQueueError) and not is_in_doubt:
        return error
    return OutcomeUnknown(f"{error}; the outcome is unknown, repeat with the same id")
