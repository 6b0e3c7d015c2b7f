"""`tq tail`: each change of tasks as a line of JSON, as it happens."""

import asyncio
import os
import select
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Any, Final

import msgspec
from cyclopts import Parameter

from taskqueue.cli.following import Follower, summary_of
from taskqueue.cli.options import AS_IT_IS, HERE, Target
from taskqueue.cli.output import as_row
from taskqueue.client.aio import AsyncClient
from taskqueue.core.errors import BrokerUnavailable, InvalidRequest
from taskqueue.core.task import TERMINAL, Status

LEAST_INTERVAL: Final = 0.05
CALL_SECONDS: Final = 2.0


def tail(
    *,
    task_type: Annotated[str | None, Parameter(name="--type", help="task type")] = None,
    status: Annotated[
        list[Status] | None,
        AS_IT_IS,
        Parameter(help="only changes to this status; may be given several times", negative=""),
    ] = None,
    task_ids: Annotated[
        list[str] | None,
        Parameter(
            name="--id",
            help="follow this task to its end, with its result; may be given several times",
            negative="",
        ),
    ] = None,
    interval: Annotated[float, Parameter(help="seconds between two looks")] = 0.5,
    count: Annotated[int, Parameter(help="end after so many lines; 0 for no end")] = 0,
    target: Target = HERE,
) -> None:
    """Print each change of tasks from now on as a line of JSON, until Ctrl-C.

    Tasks are looked at again and again: of changes between two looks the last one is shown.
    """
    if not interval >= LEAST_INTERVAL:
        raise InvalidRequest(
            f"interval must be {LEAST_INTERVAL} seconds or more, got {interval:g}",
            field="interval",
        )
    chosen = target.chosen()
    client = AsyncClient(chosen.url, api_key=chosen.api_key, timeout=CALL_SECONDS)
    watch = _Named(client, task_ids) if task_ids else _All(client, task_type)
    tailing = Tailing(client, watch, frozenset(status or Status), interval)
    try:
        asyncio.run(tailing.run(count))
    except BrokenPipeError:
        # Whoever read has had enough, as `head` does; nothing is left to be flushed at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _All:
    """All tasks of a queue, or those of a type."""

    is_over = False

    def __init__(self, client: AsyncClient, task_type: str | None) -> None:
        self._follower = Follower(client, task_type)
        self._told = 0

    async def look(self) -> list[dict[str, Any]]:
        """The rows to print."""
        rows = [as_row(task) for task in await self._follower.look()]
        missed = self._follower.missed
        if missed > self._told:
            _say(f"{missed - self._told} tasks ended unseen; --type or a smaller --interval helps")
            self._told = missed
        return rows


class _Named:
    """Tasks that were named, until they have ended."""

    def __init__(self, client: AsyncClient, task_ids: list[str]) -> None:
        self._client = client
        self._known: dict[str, tuple[Any, ...]] = dict.fromkeys(task_ids, ())
        self._left = list(self._known)

    @property
    def is_over(self) -> bool:
        """Whether all of them have ended."""
        return not self._left

    async def look(self) -> list[dict[str, Any]]:
        """The rows to print. Raises TaskNotFound."""
        rows: list[dict[str, Any]] = []
        for task in await asyncio.gather(*map(self._client.get_status, self._left)):
            state = (*as_row(summary_of(task)).values(), task.progress, task.progress_note)
            if self._known[task.task_id] != state:
                self._known[task.task_id] = state
                rows.append(as_row(task))
            if task.status in TERMINAL:
                self._left.remove(task.task_id)
        return rows


class Tailing:
    """Looks, prints, and goes on when the broker is back."""

    def __init__(
        self,
        client: AsyncClient,
        watch: _All | _Named,
        statuses: frozenset[Status],
        interval: float,
    ) -> None:
        self._client = client
        self._watch = watch
        self._statuses = statuses
        self._interval = interval
        self._has_looked = self._is_lost = False

    async def run(self, count: int) -> None:
        """Print `count` lines, or without end.

        Raises BrokenPipeError when nobody reads, BrokerUnavailable if there is no broker at first.
        """
        printed = 0
        async with self._client:
            async for row in self._rows():
                print(msgspec.json.encode(row).decode(), flush=True)
                printed += 1
                if printed == count:
                    return

    async def _rows(self) -> AsyncIterator[dict[str, Any]]:
        while True:
            for row in await self._look():
                if row["status"] in self._statuses:
                    yield row
            if self._watch.is_over:
                return
            await asyncio.sleep(self._interval)
            _require_reader()

    async def _look(self) -> list[dict[str, Any]]:
        try:
            rows = await self._watch.look()
        except BrokerUnavailable as error:
            if not self._has_looked:
                raise
            if not self._is_lost:
                _say(f"{error.code}: {error.message}; trying again")
            self._is_lost = True
            return []
        if self._is_lost:
            _say("the broker answers again")
        elif not self._has_looked:
            _say("following; Ctrl-C ends it")
        self._has_looked, self._is_lost = True, False
        return rows


def _require_reader() -> None:
    """Raise BrokenPipeError if stdout is a pipe that nobody reads: no line may come for long."""
    watch = select.poll()
    with suppress(ValueError):  # stdout is no file, as where it is captured
        watch.register(sys.stdout.fileno(), 0)
    if any(event & select.POLLERR for _, event in watch.poll(0)):
        raise BrokenPipeError


def _say(text: str) -> None:
    print(f"tq: {text}", file=sys.stderr, flush=True)
