"""The call TaskQueue.StreamTaskUpdates: how a task stands, then every change of it to its end."""

import asyncio
from typing import Any

from taskqueue.broker.operations import BY_NAME
from taskqueue.broker.updates import Update, update_of
from taskqueue.core.clock import moment
from taskqueue.core.task import TaskDetail
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.doors.grpc.exchange import Context, Exchange, House, outcome_of, while_let_in
from taskqueue.doors.grpc.translation import MessageReader, parse
from taskqueue.wire import messages as m


class UpdateCall:
    """Answers the calls that follow a task: each counts as one read of it."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._operation = BY_NAME["get"]
        self._reader = MessageReader(pb.StreamTaskUpdatesRequest, m.TaskRequest)

    async def answer(self, data: bytes, context: Context) -> None:
        """Follow a task until it has ended."""
        exchange = Exchange(self._house, context, "updates")
        following: asyncio.Task[None] | None = None
        try:
            task_id = self._admit(data, exchange)
            following = asyncio.create_task(self._follow(task_id, exchange, context))
            await while_let_in(self._house, self._operation, exchange.caller, following)
            await following
            exchange.note_done()
        except Exception as error:  # noqa: BLE001  whatever it is, the caller gets a status
            await exchange.refuse(error)
        finally:
            if following is not None:
                following.cancel()

    def _admit(self, data: bytes, exchange: Exchange) -> str:
        exchange.visit.count()
        self._operation.require(self._house.broker, exchange.caller)
        return self._reader.read(parse(pb.StreamTaskUpdatesRequest, data)).task_id

    async def _follow(self, task_id: str, exchange: Exchange, context: Context) -> None:
        with self._house.broker.updates.follow(task_id) as changes:
            detail = await self._present(task_id, exchange)
            changes.begin(detail.task)
            await exchange.greet()
            await context.write(exchange.hold(encode(update_of(detail.task, detail))))
            has_ended = detail.task.is_terminal
            while not has_ended:
                change = await changes.next()
                await context.write(exchange.hold(await change.encoded(encode)))
                has_ended = change.task.is_terminal

    async def _present(self, task_id: str, exchange: Exchange) -> TaskDetail:
        request = m.WaitRequest(task_id=task_id)
        work: asyncio.Future[TaskDetail] = asyncio.ensure_future(
            self._operation.start(self._house.broker, request, exchange.caller)
        )
        try:
            return await outcome_of(self._house, self._operation, exchange.caller, work)
        finally:
            work.cancel()


def encode(update: Update) -> bytes:
    """The message for an update."""
    task = update.task
    fields: dict[str, Any] = {
        "task_id": task.id,
        "status": task.status,
        "updated_at": moment(task.updated_at),
        "result": update.result,
        "error": update.error,
        "retry_count": task.retry_count,
        "worker_id": task.worker_id,
        "progress": task.progress,
        "progress_note": task.progress_note,
        "schedule_at": moment(task.run_at),
    }
    return pb.TaskUpdate(**fields).SerializeToString()
