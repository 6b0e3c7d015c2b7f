"""What a handler can know of its task and tell the broker about it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple


class Claim(NamedTuple):
    """A task that this worker holds; every word about it carries `token`."""

    task_id: str
    token: int
    task_type: str
    payload: bytes
    attempt: int
    timeout: int


class Context:
    """Given to a handler that asks for it with a first parameter of this type.

    `attempt` counts executions from 1. `token` is the fencing token: it grows with every claim of
    the task, so a store that remembers the largest one it saw can refuse a late writer.
    `timeout` is how many seconds this attempt may take.
    """

    def __init__(
        self,
        claim: Claim,
        loop: asyncio.AbstractEventLoop,
        report_progress: Callable[[Claim, float, str], Coroutine[Any, Any, None]],
    ) -> None:
        self.task_id = claim.task_id
        self.token = claim.token
        self.task_type = claim.task_type
        self.attempt = claim.attempt
        self.timeout = claim.timeout
        self._claim = claim
        self._loop = loop
        self._report_progress = report_progress

    async def progress(self, fraction: float, note: str = "") -> None:
        """Tell how far the task is: 0 to 1, with a short note; shown with its status.

        Raises LeaseLost if the task has been taken from this worker.
        """
        await self._report_progress(self._claim, fraction, note)

    def progress_sync(self, fraction: float, note: str = "") -> None:
        """As `progress`, for handlers that are not coroutines."""
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # as it should be: this is a handler's thread
            telling = self._report_progress(self._claim, fraction, note)
            asyncio.run_coroutine_threadsafe(telling, self._loop).result()
            return
        raise RuntimeError("this would block the event loop; use `await ctx.progress(…)` here")
