"""A submitted task in the hands of whoever submitted it."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from taskqueue.client.task import TaskStatus
from taskqueue.worker.clients import Clients

Result = TypeVar("Result")


class Handle(Generic[Result]):
    """One task: its id, and the way to its result. Each verb has a `_sync` form."""

    def __init__(self, clients: Clients, task_id: str, decode: Callable[[bytes], Any]) -> None:
        self.task_id = task_id
        self._clients = clients
        self._decode = decode

    def __repr__(self) -> str:
        return f"Handle({self.task_id!r})"

    async def result(self, timeout: float = 60.0) -> Result:  # noqa: ASYNC109  as the clients have it
        """What the handler returned, waiting up to `timeout` seconds.

        Raises TaskFailed if the task ended without a result, WaitTimeout.
        """
        result: Result = self._decode(
            await self._clients.aio().wait_for_result(self.task_id, timeout)
        )
        return result

    async def status(self) -> TaskStatus:
        """How the task stands."""
        return await self._clients.aio().get_status(self.task_id)

    async def cancel(self) -> None:
        """Cancel the task if it is not running. Raises InvalidStatus."""
        await self._clients.aio().cancel(self.task_id)

    def result_sync(self, timeout: float = 60.0) -> Result:
        """As `result`, for code without asyncio."""
        result: Result = self._decode(self._clients.sync().wait_for_result(self.task_id, timeout))
        return result

    def status_sync(self) -> TaskStatus:
        """As `status`, for code without asyncio."""
        return self._clients.sync().get_status(self.task_id)

    def cancel_sync(self) -> None:
        """As `cancel`, for code without asyncio."""
        self._clients.sync().cancel(self.task_id)
