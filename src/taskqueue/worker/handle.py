"""A submitted task in the hands of whoever submitted it."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from taskqueue.client.aio import AsyncClient
from taskqueue.client.errors import result_of
from taskqueue.client.sync import SyncClient
from taskqueue.client.task import TaskStatus
from taskqueue.core.task import Status
from taskqueue.worker.clients import Clients

Result = TypeVar("Result", covariant=True)


class Handle(Generic[Result]):
    """One task: its id, and the way to its result. Each verb has a `_sync` form."""

    def __init__(self, clients: Clients, task_id: str, decode: Callable[[bytes], Any]) -> None:
        self.task_id = task_id
        self._clients = clients
        self._decode = decode
        self._completed: TaskStatus | None = None

    def __repr__(self) -> str:
        return f"Handle({self.task_id!r})"

    @property
    def client(self) -> AsyncClient:
        """The client it asks with, in coroutines."""
        return self._clients.aio()

    @property
    def sync_client(self) -> SyncClient:
        """The client it asks with elsewhere."""
        return self._clients.sync()

    @property
    def completed(self) -> TaskStatus | None:
        """How it ended, if it is known here that it has a result: that does not change any more."""
        return self._completed

    def note_end(self, status: TaskStatus) -> None:
        """Remember how the task ended, so that nobody need be asked again."""
        if status.status is Status.COMPLETED:
            self._completed = status

    async def result(self, timeout: float = 60.0) -> Result:  # noqa: ASYNC109  as the clients have it
        """What the handler returned, waiting up to `timeout` seconds.

        Raises TaskFailed if the task ended without a result, WaitTimeout.
        """
        if self._completed is not None:
            return self.result_in(self._completed)
        return self._decoded(await self.client.wait_for_result(self.task_id, timeout))

    def result_in(self, status: TaskStatus) -> Result:
        """The result that the task's status has, once it has ended. Raises TaskFailed."""
        return self._decoded(result_of(status))

    async def status(self) -> TaskStatus:
        """How the task stands."""
        return await self.client.get_status(self.task_id)

    async def cancel(self) -> None:
        """Cancel the task if it is not running. Raises InvalidStatus."""
        await self.client.cancel(self.task_id)

    def result_sync(self, timeout: float = 60.0) -> Result:
        """As `result`, for code without asyncio."""
        if self._completed is not None:
            return self.result_in(self._completed)
        return self._decoded(self.sync_client.wait_for_result(self.task_id, timeout))

    def status_sync(self) -> TaskStatus:
        """As `status`, for code without asyncio."""
        return self.sync_client.get_status(self.task_id)

    def cancel_sync(self) -> None:
        """As `cancel`, for code without asyncio."""
        self.sync_client.cancel(self.task_id)

    def _decoded(self, result: bytes) -> Result:
        value: Result = self._decode(result)
        return value
