"""What a handler can know of its task and tell the broker about it."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, cast

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # a default is what Python 3.13 brings

    State = TypeVar("State", default=object, covariant=True)
else:
    from typing import TypeVar

    State = TypeVar("State", covariant=True)

NO_STATE: Final = object()
"""The state of an app that has no lifespan."""


class Claim(NamedTuple):
    """A task that this worker holds; every word about it carries `token`."""

    task_id: str
    token: int
    task_type: str
    payload: bytes
    attempt: int
    timeout: int


class Context(Generic[State]):
    """Given to a handler that asks for it with a first parameter of this type.

    `Context[Database]` says what `state` is. `attempt` counts executions from 1. `token` is the
    fencing token: it grows with every claim of the task, so a store that remembers the largest one
    it saw can refuse a late writer. `timeout` is how many seconds this attempt may take, `payload`
    what was submitted, in bytes.
    """

    def __init__(
        self,
        claim: Claim,
        loop: asyncio.AbstractEventLoop,
        report_progress: Callable[[Claim, float, str], Coroutine[Any, Any, None]],
        state: object = NO_STATE,
    ) -> None:
        self.task_id = claim.task_id
        self.token = claim.token
        self.task_type = claim.task_type
        self.attempt = claim.attempt
        self.timeout = claim.timeout
        self.payload = claim.payload
        self._state = state
        self._claim = claim
        self._loop = loop
        self._report_progress = report_progress

    @property
    def state(self) -> State:
        """What the app's lifespan has yielded. Raises RuntimeError if it has none."""
        if self._state is NO_STATE:
            raise RuntimeError("there is no state: the app was made without a lifespan")
        return cast(State, self._state)

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
