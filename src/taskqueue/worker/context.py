"""What a handler can know of its task and tell the broker about it."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, cast

import msgspec

from taskqueue.core.clock import SECOND, SystemClock, moment
from taskqueue.core.errors import TaskQueueError
from taskqueue.worker import notes
from taskqueue.worker.notes import Note

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # a default is what Python 3.13 brings

    State = TypeVar("State", default=object, covariant=True)
    Saved = TypeVar("Saved")
else:
    from typing import TypeVar

    State = TypeVar("State", covariant=True)
    Saved = TypeVar("Saved")

NO_STATE: Final = object()
"""The state of an app that has no lifespan."""

MOST_UNSENT: Final = 100
"""Lines of a log that wait to be told; what comes beside them is dropped, and counted."""

LINE_SECONDS: Final = 5.0
"""How long the end of an attempt waits for its lines."""

LogLevel = Literal["debug", "info", "warning", "error"]


class Claim(NamedTuple):
    """A task that this worker holds; every word about it carries `token`.

    `saved` is what an earlier attempt has kept for this one.
    """

    task_id: str
    token: int
    task_type: str
    payload: bytes
    attempt: int
    timeout: int
    metadata: dict[str, str] = {}  # noqa: RUF012  never changed
    saved: bytes | None = None


Tell = Callable[[Claim, Note], Coroutine[Any, Any, None]]


class Cancellation:
    """Whether the attempt is to end: it was cancelled, is out of time, or its worker must go."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._flag = threading.Event()
        self._event = asyncio.Event()

    def is_set(self) -> bool:
        """Whether it is to end."""
        return self._flag.is_set()

    async def wait(self) -> None:
        """Return once it is to end; for coroutines."""
        await self._event.wait()

    def wait_sync(self, timeout: float | None = None) -> bool:
        """As `wait`, for threads, at most `timeout` seconds; whether it is to end."""
        return self._flag.wait(timeout)

    def set(self) -> None:
        """It is to end; called on the loop."""
        self._flag.set()
        self._event.set()


class Context(Generic[State]):
    """Given to a handler that asks for it with a first parameter of this type.

    `Context[Database]` says what `state` is. `attempt` counts executions from 1. `token` is the
    fencing token: it grows with every claim of the task, so a store that remembers the largest one
    it saw can refuse a late writer. `timeout` is how many seconds this attempt may take, `payload`
    what was submitted, in bytes, and `metadata` the texts that were submitted with it. `saved` is
    what an earlier attempt has kept with `checkpoint`.
    """

    def __init__(
        self,
        claim: Claim,
        loop: asyncio.AbstractEventLoop,
        tell: Tell,
        state: object = NO_STATE,
    ) -> None:
        self.task_id = claim.task_id
        self.token = claim.token
        self.task_type = claim.task_type
        self.attempt = claim.attempt
        self.timeout = claim.timeout
        self.payload = claim.payload
        self.saved = claim.saved
        self._state = state
        self._claim = claim
        self._loop = loop
        self._tell = tell
        self._ends_at = time.monotonic() + claim.timeout
        self._cancelled: Cancellation | None = None
        self._must_end = False
        self._lines: set[asyncio.Task[None]] = set()
        self._has_logged = False
        self._dropped = 0

    @property
    def state(self) -> State:
        """What the app's lifespan has yielded. Raises RuntimeError if it has none."""
        if self._state is NO_STATE:
            raise RuntimeError("there is no state: the app was made without a lifespan")
        return cast(State, self._state)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The texts that were submitted with the task."""
        return self._claim.metadata

    @property
    def remaining(self) -> float:
        """Seconds that this attempt may still take; negative once they are over."""
        return self._ends_at - time.monotonic()

    @property
    def deadline(self) -> datetime:
        """The moment at which this attempt is over, in UTC."""
        return moment(SystemClock().wall() + round(self.remaining * SECOND))

    @property
    def cancelled(self) -> Cancellation:
        """An event that is set when the attempt is to end; what runs in a thread can look at it."""
        if self._cancelled is None:
            self._cancelled = Cancellation(self._loop)
            if self._must_end:
                self._cancelled.set()
        return self._cancelled

    async def progress(self, fraction: float, note: str = "") -> None:
        """Tell how far the task is: 0 to 1, with a short note; shown with its status.

        Raises LeaseLost if the task has been taken from this worker.
        """
        await self._tell(self._claim, notes.progress(fraction, note))

    def progress_sync(self, fraction: float, note: str = "") -> None:
        """As `progress`, for handlers that are not coroutines."""
        self._run("progress", self.progress(fraction, note))

    async def extend(self, seconds: float) -> None:
        """Let this attempt take so many seconds more, from now.

        Raises LeaseLost if the task has been taken from this worker, BrokerUnavailable.
        """
        note = notes.extend(seconds)
        await self._tell(self._claim, note)
        self._ends_at = time.monotonic() + float(note.fields["seconds"])

    def extend_sync(self, seconds: float) -> None:
        """As `extend`, for handlers that are not coroutines."""
        self._run("extend", self.extend(seconds))

    async def checkpoint(self, value: object) -> None:
        """Keep how far the task has come: should this attempt fail, the next one is given it.

        Bytes are kept as they are, other values as JSON; at most 64 KiB, of which the latest stay.
        Raises LeaseLost if the task has been taken from this worker, ValueError, BrokerUnavailable.
        """
        data = value if isinstance(value, bytes) else msgspec.json.encode(value)
        await self._tell(self._claim, notes.checkpoint(data))

    def checkpoint_sync(self, value: object) -> None:
        """As `checkpoint`, for handlers that are not coroutines."""
        self._run("checkpoint", self.checkpoint(value))

    def saved_as(self, kind: type[Saved]) -> Saved | None:
        """The JSON that an earlier attempt has kept, as a value of this type; None if none has.

        Raises msgspec.ValidationError if it is something else.
        """
        return None if self.saved is None else msgspec.json.decode(self.saved, type=kind)

    def log(self, message: str, level: LogLevel = "info") -> None:
        """Put a line in the task's log, from any handler: it is told soon, and nobody waits for it.

        At most 8 Ki characters of it are kept, and 1,000 lines of a task.
        """
        self._has_logged = True
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._log_soon, notes.log_line(message, level))

    async def lines_told(self) -> None:
        """Return once the lines of the log have been told, or cannot be any more."""
        if self._has_logged:
            await asyncio.sleep(0)  # the last ones may just be on their way to `_log_soon`
        if self._lines:
            await asyncio.wait(self._lines, timeout=LINE_SECONDS)

    def end(self) -> None:
        """Let the handler know that it is to end; called on the loop."""
        self._must_end = True
        if self._cancelled is not None:
            self._cancelled.set()

    async def pass_on(self, note: Note) -> None:
        """Tell what the handler has said in a process of its own."""
        await self._tell(self._claim, note)

    def _log_soon(self, note: Note) -> None:
        if len(self._lines) >= MOST_UNSENT:
            self._dropped += 1
            return
        if self._dropped:
            text = f"[{self._dropped} lines were dropped] {note.fields['message']}"
            note = notes.log_line(text, note.fields["level"])
            self._dropped = 0
        telling = self._loop.create_task(self._tell_quietly(note))
        self._lines.add(telling)
        telling.add_done_callback(self._lines.discard)

    async def _tell_quietly(self, note: Note) -> None:
        with suppress(TaskQueueError):  # the claim is over: nobody asks for its lines
            await self._tell(self._claim, note)

    def _run(self, name: str, telling: Coroutine[Any, Any, None]) -> None:
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # as it should be: this is a handler's thread
            asyncio.run_coroutine_threadsafe(telling, self._loop).result()
            return
        telling.close()
        raise RuntimeError(f"this would block the event loop; use `await ctx.{name}(…)` here")
