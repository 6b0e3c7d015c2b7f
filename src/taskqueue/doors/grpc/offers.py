"""What the gRPC API offers: which operation stands behind which call, and with which messages."""

import asyncio
from typing import Any, Final

from google.protobuf.message import Message

from taskqueue.broker.access import Caller
from taskqueue.broker.broker import Broker
from taskqueue.broker.operation import Operation
from taskqueue.broker.operations import BY_NAME
from taskqueue.core.errors import TaskQueueError
from taskqueue.core.task import ClaimedTask, TaskDetail
from taskqueue.doors import faults
from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.doors.grpc.translation import MessageReader, MessageWriter
from taskqueue.wire import messages as m

LARGEST_MESSAGE: Final = 15 * 1024 * 1024
"""Bytes of a message, in both directions: the largest payload, and all that can go with it."""

MOST_CLAIMED: Final = LARGEST_MESSAGE - 1024 * 1024
"""Bytes of payloads in the answer to one claim."""


class Offer:
    """One call: an operation, the message it takes and the message it gives."""

    def __init__(
        self, name: str, operation: Operation, request: type[Message], response: type[Message]
    ) -> None:
        self.name = name
        self.operation = operation
        self.kind = request
        self.response = response
        self.has_wait = "wait_ms" in operation.request.__struct_fields__
        self._reader: MessageReader[Any] = MessageReader(request, operation.request)
        self._writer = MessageWriter(response)

    def read(self, message: Any) -> Any:
        """The request that a message stands for. Raises InvalidRequest, PayloadTooLarge."""
        return self._reader.read(message)

    def start(self, broker: Broker, request: Any, caller: Caller) -> "asyncio.Future[Any]":
        """Begin it. Raises what the operation raises at once."""
        return asyncio.ensure_future(self.operation.start(broker, request, caller))

    def reply(self, _broker: Broker, outcome: Any) -> Message:
        """The message for what it came to."""
        return self._writer.write(self.operation.reply(outcome))


Entry = m.SubmitRequest | TaskQueueError


class OfferOfBatch(Offer):
    """Several submits: one that cannot be read does not spoil the others."""

    def __init__(
        self, name: str, operation: Operation, request: type[Message], response: type[Message]
    ) -> None:
        super().__init__(name, operation, request, response)
        self._entry_reader = MessageReader(pb.SubmitTaskRequest, m.SubmitRequest)
        self._entry_writer = MessageWriter(pb.SubmitTaskResponse)

    def read(self, message: pb.SubmitTasksRequest) -> list[Entry]:
        """The submits, or what is wrong with each. Raises InvalidRequest for the whole."""
        number = len(message.tasks)
        if not 1 <= number <= m.LARGEST_BATCH:
            raise faults.bad_value(m.SubmitBatchRequest, "tasks", f"{number} of them")
        return [self._read_entry(task) for task in message.tasks]

    def start(self, broker: Broker, request: Any, caller: Caller) -> "asyncio.Future[Any]":
        """Begin to submit those that could be read."""
        return asyncio.ensure_future(self._submit(broker, request, caller))

    def reply(self, _broker: Broker, outcome: list[m.SubmitReply | m.ErrorReply]) -> Message:
        """The message with the outcome of each."""
        return pb.SubmitTasksResponse(results=[self._result(one) for one in outcome])

    def _read_entry(self, task: pb.SubmitTaskRequest) -> Entry:
        try:
            return self._entry_reader.read(task)
        except TaskQueueError as error:
            return error

    async def _submit(
        self, broker: Broker, entries: list[Entry], caller: Caller
    ) -> list[m.SubmitReply | m.ErrorReply]:
        good = [entry for entry in entries if isinstance(entry, m.SubmitRequest)]
        results: list[m.SubmitReply | m.ErrorReply] = []
        if good:
            batch = m.SubmitBatchRequest(tasks=good)
            results = (await self.operation.start(broker, batch, caller)).results
        submitted = iter(results)
        wall = broker.clock.wall()
        return [
            next(submitted) if isinstance(entry, m.SubmitRequest) else m.error_reply(entry, wall)
            for entry in entries
        ]

    def _result(self, outcome: m.SubmitReply | m.ErrorReply) -> pb.SubmitTasksResult:
        if isinstance(outcome, m.SubmitReply):
            return pb.SubmitTasksResult(response=self._entry_writer.write(outcome))
        return pb.SubmitTasksResult(error=pb.Error(code=outcome.code, message=outcome.error))


class OfferOfTask(Offer):
    """How a task stands."""

    def reply(self, broker: Broker, outcome: TaskDetail) -> Message:
        """The message; without the oldest failures where not all fit in."""
        message: Any = super().reply(broker, outcome)
        excess = message.ByteSize() - LARGEST_MESSAGE
        left_out = 0
        while excess > 0 and left_out < len(message.failures):
            excess -= message.failures[left_out].ByteSize()
            left_out += 1
        del message.failures[:left_out]
        return message  # type: ignore[no-any-return]


class OfferOfClaim(Offer):
    """Tasks for a worker."""

    def reply(self, broker: Broker, outcome: list[ClaimedTask]) -> Message:
        """The message; tasks that do not fit in go back to the queue."""
        size, number = 0, 0
        for claimed in outcome:
            size += len(claimed.payload)
            if size > MOST_CLAIMED and number:
                break
            number += 1
        broker.take_unheard(outcome[number:])
        return super().reply(broker, outcome[:number])


TASK_QUEUE: Final = (
    Offer("SubmitTask", BY_NAME["submit"], pb.SubmitTaskRequest, pb.SubmitTaskResponse),
    OfferOfTask("GetTaskStatus", BY_NAME["get"], pb.GetTaskStatusRequest, pb.GetTaskStatusResponse),
    Offer("CancelTask", BY_NAME["cancel"], pb.CancelTaskRequest, pb.CancelTaskResponse),
    Offer("ListTasks", BY_NAME["list"], pb.ListTasksRequest, pb.ListTasksResponse),
    Offer("GetStats", BY_NAME["stats"], pb.GetStatsRequest, pb.GetStatsResponse),
    OfferOfBatch(
        "SubmitTasks", BY_NAME["submit_batch"], pb.SubmitTasksRequest, pb.SubmitTasksResponse
    ),
    Offer("RetryTask", BY_NAME["retry"], pb.RetryTaskRequest, pb.RetryTaskResponse),
    Offer("ChangeTask", BY_NAME["change"], pb.ChangeTaskRequest, pb.ChangeTaskResponse),
    Offer("PurgeTask", BY_NAME["purge"], pb.PurgeTaskRequest, pb.PurgeTaskResponse),
    Offer("GetTaskLogs", BY_NAME["logs"], pb.GetTaskLogsRequest, pb.GetTaskLogsResponse),
    Offer("ListWorkers", BY_NAME["workers"], pb.ListWorkersRequest, pb.ListWorkersResponse),
    Offer("OrderWorker", BY_NAME["order"], pb.OrderWorkerRequest, pb.OrderWorkerResponse),
    Offer("GetCluster", BY_NAME["cluster"], pb.GetClusterRequest, pb.GetClusterResponse),
)
"""The calls of the service TaskQueue, without its stream."""

WORK: Final = (
    OfferOfClaim("Claim", BY_NAME["claim"], pb.ClaimRequest, pb.ClaimResponse),
    Offer("Complete", BY_NAME["complete"], pb.CompleteRequest, pb.CompleteResponse),
    Offer("Fail", BY_NAME["fail"], pb.FailRequest, pb.FailResponse),
    Offer("Progress", BY_NAME["progress"], pb.ProgressRequest, pb.ProgressResponse),
    Offer("Log", BY_NAME["log"], pb.LogRequest, pb.LogResponse),
    Offer("Checkpoint", BY_NAME["checkpoint"], pb.CheckpointRequest, pb.CheckpointResponse),
    Offer("Extend", BY_NAME["extend"], pb.ExtendRequest, pb.ExtendResponse),
    Offer("Release", BY_NAME["release"], pb.ReleaseRequest, pb.ReleaseResponse),
    Offer("Beat", BY_NAME["beat"], pb.BeatRequest, pb.BeatResponse),
    Offer("Tell", BY_NAME["about"], pb.TellRequest, pb.TellResponse),
    Offer("Notice", BY_NAME["notice"], pb.NoticeRequest, pb.NoticeResponse),
    Offer("Leave", BY_NAME["leave"], pb.LeaveRequest, pb.LeaveResponse),
)
"""The calls of the service Work, without its session."""

SIGNS_OF_LIFE: Final = frozenset({"Claim", "Beat", "Tell", "Notice"})
"""Those by which a worker says that it is there."""
