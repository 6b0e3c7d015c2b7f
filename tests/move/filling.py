"""A data folder with tasks in every state, made by the engine itself in the course of some days."""

import asyncio
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from taskqueue.core.audit import Actor
from taskqueue.core.clock import SECOND, ManualClock, SystemClock
from taskqueue.core.commands import (
    Audited,
    Cancel,
    Command,
    Complete,
    CreateKey,
    Fail,
    Progress,
    Purge,
    Release,
    Retry,
    RotateKey,
    Submit,
)
from taskqueue.core.keys import Key, Permission, new_secret
from taskqueue.core.repeats import Repeat
from taskqueue.core.task import Task
from taskqueue.storage.sqlite.engine import SqliteStorage
from tests.support.storage import Queue

TYPES: Final = ("mail", "thumbnail", "report")
PRIORITIES: Final = (0, 50, 100, 100, 100, 200, 255)
DAY: Final = 86_400.0
DAYS: Final = 4
NUL: Final = "one\0two"
ACTOR: Final = Actor("key-1", "someone", "127.0.0.1")


class Folder:
    """A data folder and the clock that its broker had."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = ManualClock(SystemClock().wall() - round(DAYS * DAY * SECOND))
        self.held: list[Task] = []
        """Running tasks, as their workers got them."""
        self.secrets: list[str] = []
        self._made = 0

    async def fill(self, number: int, batch: int = 140) -> None:
        """Put in about so many tasks, and let days go by."""
        storage = SqliteStorage(self.path)
        await storage.open()
        try:
            queue = Queue(storage, self.clock)
            secret = new_secret()
            self.secrets.append(secret.text)
            key = self._key()
            await queue.do(CreateKey(key))
            await queue.do(RotateKey(key.id, secret.digest, secret.hint, SECOND))
            rounds = max(1, number // batch)
            for _ in range(rounds):
                await self._round(queue, batch)
                self.clock.advance(DAYS * DAY / (rounds + 1))
        finally:
            await storage.close()

    def copy(self, path: Path) -> "Folder":
        """The same folder once more, somewhere else."""
        shutil.copytree(self.path, path)
        other = Folder(path)
        other.clock = ManualClock(self.clock.wall())
        other.held, other.secrets = list(self.held), list(self.secrets)
        return other

    def a_submit(self, queue: Queue, at: int) -> Submit:
        """One of a motley set: types, priorities, sizes, keys, and times to begin at."""
        fields: dict[str, Any] = {
            "task_type": TYPES[at % len(TYPES)],
            "priority": PRIORITIES[at % len(PRIORITIES)],
            "max_retries": at % 3,
            "timeout": 10**9 * SECOND,
        }
        if at % 10 == 9:
            fields["delay"] = 30 * DAY + at
        payload = bytes([at % 256]) * (at % 300)
        command = queue.a_submit(payload, **fields)
        if at % 4:
            return command
        until = queue.clock.wall() + round(DAY * DAYS * SECOND)
        return Submit(command.task, payload, Repeat(f"order-{at}", until))

    def an_audited_cancel(self, task_id: str) -> Audited:
        """A word that is entered in the audit log."""
        return Audited(Cancel(task_id), "cancel", ACTOR)

    async def _round(self, queue: Queue, number: int) -> None:
        first, self._made = self._made, self._made + number
        commands = [self.a_submit(queue, at) for at in range(first, first + number)]
        submitted = [one for one in (await queue.apply(*commands)).outcomes if type(one) is Task]
        cancelled = [task.id for at, task in enumerate(submitted) if at % 10 == 8]
        await queue.apply(*map(self.an_audited_cancel, cancelled))
        worker = f"worker-{first}"
        claimed = [
            one.task for one in await queue.claim(*TYPES, worker_id=worker, limit=number * 7 // 10)
        ]
        await queue.apply(*(self._end(at, task) for at, task in enumerate(claimed)))
        self.held += [task for at, task in enumerate(claimed) if at % 7 == 4]
        await queue.do(Purge(before=0, limit=1))
        if cancelled:
            await queue.apply(Audited(Retry(cancelled[0]), "retry", ACTOR))

    def _end(self, at: int, task: Task) -> Command:
        match at % 7:
            case 0 | 1 | 2:
                return Complete(task.id, task.token, b"result %d" % at)
            case 3:
                return Fail(task.id, task.token, "Error", f"{NUL} {at}", "Traceback …", delay=0)
            case 4:
                return Progress(task.id, task.token, 0.25 + at / 1e6, "a quarter")
            case 5:
                return Fail(task.id, task.token, "Fatal", "no more", "", retryable=False)
            case _:
                return Release(task.id, task.token)

    def _key(self) -> Key:
        first = new_secret()
        return Key(
            f"key-{self._made}",
            f"name {self._made}",
            first.digest,
            first.hint,
            (Permission.ADMIN, Permission.WORK),
            self.clock.wall(),
            rate_limit=0,
        )


def filled(path: Path, number: int, batch: int = 140) -> Folder:
    """A folder with about so many tasks; a loop of its own does it, so any fixture may ask."""
    folder = Folder(path)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(lambda: asyncio.run(folder.fill(number, batch))).result()
    return folder
