"""The queue's promises, tried on a running broker with throw-away tasks of a type of their own."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final

from taskqueue.cli.doctor_broker import ask
from taskqueue.cli.doctor_store import Store
from taskqueue.cli.findings import Finding, fail, ok
from taskqueue.client.connection import Connection
from taskqueue.core.errors import PermissionDenied, TaskQueueError
from taskqueue.core.ids import new_task_id
from taskqueue.core.task import Status

PREFIX: Final = "tq.doctor."
LONG: Final = "3600"
TIME_OUT_MS: Final = 15_000
"""How long the broker may take to end an attempt whose limit is a second."""


class Broken(Exception):
    """A promise is not kept; the text says how."""


class Crew:
    """Two rival workers and the tasks they are tried with."""

    def __init__(self, first: Connection, second: Connection, store: Store | None) -> None:
        suffix = secrets.token_hex(8)
        self.task_type = f"{PREFIX}{suffix}"
        self.store = store
        self.first, self.second = first, second
        self.workers = {first: f"doctor-{suffix}-1", second: f"doctor-{suffix}-2"}
        self.expected: dict[str, Status] = {}
        """How each task stands that the broker has acknowledged, as far as it was told."""

    async def submit(self, *options: str, to: Connection | None = None) -> str:
        """Submit a task; its id."""
        task_id = new_task_id()
        self.expected[task_id] = Status.PENDING
        words = ("TQ.SUBMIT", self.task_type, "probe", "ID", task_id, *options)
        answer = await ask(to or self.first, *words)
        require(answer == task_id, f"the submit of {task_id} was answered {answer!r}")
        return task_id

    async def claim(self, by: Connection, *options: str) -> list[tuple[str, str]]:
        """What a worker gets: ids and tokens."""
        claimed = await ask(by, "TQ.CLAIM", self.workers[by], *options, "TYPES", self.task_type)
        for one in claimed:
            self.expected[one[0]] = Status.IN_PROGRESS
        return [(one[0], str(one[1])) for one in claimed]

    async def claim_one(self, by: Connection, task_id: str) -> str:
        """Claim the one task there is; its token."""
        claimed = await self.claim(by)
        require(
            [one[0] for one in claimed] == [task_id],
            f"of {task_id} alone being ready, a claim got {[one[0] for one in claimed]}",
        )
        return claimed[0][1]

    async def end(self, by: Connection, task_id: str, token: str, result: str = "done") -> None:
        """Complete a task."""
        answer = await ask(by, "TQ.COMPLETE", task_id, token, "RESULT", result)
        require(answer == "completed", f"a completion was answered {answer!r}")
        self.expected[task_id] = Status.COMPLETED

    async def cancel(self, task_id: str, *options: str) -> None:
        """Cancel a task."""
        await ask(self.first, "TQ.CANCEL", task_id, *options)
        self.expected[task_id] = Status.CANCELLED

    async def stands(self, task_id: str, status: Status, at: Connection | None = None) -> Any:
        """How a task stands; it must be in this status."""
        seen = await ask(at or self.first, "TQ.GET", task_id)
        self.expected[task_id] = status
        require(
            seen["status"] == status, f"task {task_id} is {seen['status']}, it should be {status}"
        )
        return seen

    async def dismiss(self) -> int:
        """Cancel what is left and let the workers leave; how many tasks were cancelled."""
        cancelled = 0
        for task_id in self.expected:
            try:
                await ask(self.first, "TQ.CANCEL", task_id, "RUNNING", "yes")
            except TaskQueueError:
                continue  # it has ended, or was never there
            cancelled += 1
        for connection, worker_id in self.workers.items():
            await ask(connection, "TQ.LEAVE", worker_id)
        return cancelled


async def promises_kept(
    first: Connection, second: Connection, store: Store | None
) -> AsyncIterator[Finding]:
    """Try one promise after the other, then clean up."""
    crew = Crew(first, second, store)
    try:
        for name, probe in PROBES.items():
            yield await tried(name, probe, crew)
    finally:
        tidied = await _tidied(crew)
    yield tidied


def require(is_so: bool, complaint: str) -> None:
    """Raise Broken with the complaint unless something is so."""
    if not is_so:
        raise Broken(complaint)


async def tried(name: str, probe: "Probe", crew: Crew) -> Finding:
    """What came of one probe."""
    try:
        return ok(name, await probe(crew))
    except Broken as error:
        return fail(name, str(error), "report it with this output and the broker's log")
    except PermissionDenied as error:
        return fail(
            name, f"could not be tried: {error}", "use a key that may do everything but admin"
        )
    except (TaskQueueError, OSError, TimeoutError) as error:
        return fail(name, f"could not be tried: {error or 'no answer in time'}", "try again")
    except (LookupError, TypeError, ValueError) as error:
        return fail(name, f"an answer has an unknown form: {error!r}", "use the broker's release")


async def _tidied(crew: Crew) -> Finding:
    name = "cleaned up"
    try:
        number = await crew.dismiss()
    except (TaskQueueError, OSError, TimeoutError) as error:
        return fail(
            name,
            f"tasks of type {crew.task_type} may be left: {error or 'no answer in time'}",
            f"tq list --type {crew.task_type} shows them; tq cancel ends them",
        )
    kept = len(crew.expected)
    return ok(name, f"{number} cancelled, none left; {kept} records of type {crew.task_type} stay")


async def _refused(code: str, by: Connection, *words: str) -> None:
    try:
        answer = await ask(by, *words)
    except TaskQueueError as error:
        require(error.code == code, f"{words[0]} was refused with {error.code}, not {code}")
    else:
        raise Broken(f"{words[0]} was accepted ({answer!r}); it should be refused with {code}")


async def _durable(crew: Crew) -> str:
    task_id = await crew.submit("DELAY", LONG)
    await crew.stands(task_id, Status.PENDING, crew.second)
    said = "read back over another connection at once"
    if crew.store is not None:
        require(
            await crew.store.has(task_id),
            f"task {task_id} was acknowledged and is not in {crew.store.name}: "
            "is that where this broker keeps its tasks?",
        )
        said += f", and committed in {crew.store.name}"
    await crew.cancel(task_id)
    return said


async def _single(crew: Crew) -> str:
    task_id = await crew.submit()
    both = await asyncio.gather(crew.claim(crew.first), crew.claim(crew.second))
    require(
        sorted(len(claimed) for claimed in both) == [0, 1],
        f"two rivals that claimed one task got {[len(claimed) for claimed in both]}",
    )
    holder = crew.first if both[0] else crew.second
    ((_, token),) = both[0] or both[1]
    await ask(holder, "TQ.RELEASE", task_id, token)
    again = await crew.claim_one(crew.second if holder is crew.first else crew.first, task_id)
    require(int(again) > int(token), f"token {again} came after {token}: they must grow")
    for words in (("COMPLETE",), ("FAIL", "late"), ("PROGRESS", "0.5"), ("RELEASE",)):
        await _refused("LEASE_LOST", holder, f"TQ.{words[0]}", task_id, token, *words[1:])
    await crew.stands(task_id, Status.IN_PROGRESS)
    await crew.end(crew.first, task_id, again)
    require(not await crew.claim(crew.first), "a completed task was given out again")
    return (
        "one of two rivals got it; four late words refused with LEASE_LOST; it ran to its end once"
    )


async def _repeated(crew: Crew) -> str:
    task_id = await crew.submit()
    submit = ("TQ.SUBMIT", crew.task_type, "probe", "ID", task_id)
    require(await ask(crew.second, *submit) == task_id, "a repeated submit got another id")
    other = ("TQ.SUBMIT", crew.task_type, "other", "ID", task_id)
    await _refused("IDEMPOTENCY_CONFLICT", crew.first, *other)
    named = f"ID claim-{task_id}".split()
    first, again = await crew.claim(crew.first, *named), await crew.claim(crew.first, *named)
    require(first == again and len(first) == 1, f"one claim, repeated, got {first} and {again}")
    ((_, token),) = first
    await crew.end(crew.first, task_id, token, "first")
    await crew.end(crew.second, task_id, token, "first")
    seen = await crew.stands(task_id, Status.COMPLETED)
    require(seen["result"] == b"first", f"the result is {seen['result']!r}")
    require(await ask(crew.first, *submit) == task_id, "a late repeat of the submit got another id")
    keyed = ("TQ.SUBMIT", crew.task_type, "probe", "DELAY", LONG, "KEY", f"doctor-{task_id}")
    ids = {await ask(crew.first, *keyed), await ask(crew.second, *keyed)}
    crew.expected |= dict.fromkeys(ids, Status.PENDING)
    require(len(ids) == 1, f"one idempotency key made {len(ids)} tasks")
    await _refused("IDEMPOTENCY_CONFLICT", crew.first, *keyed[:2], "other", *keyed[3:])
    return "submit by id and by key, claim and completion, each repeated: one task, one answer"


async def _unleaked(crew: Crew) -> str:
    task_id = await crew.submit()
    token = int(await crew.claim_one(crew.first, task_id))
    beat = ("TQ.BEAT", crew.workers[crew.second], task_id, str(token + 1))
    lost = (await ask(crew.second, *beat))["lost"]
    require(lost == [task_id], "a worker that names what it does not hold is not told so")
    released = await ask(crew.first, "TQ.LEAVE", crew.workers[crew.first])
    require(released == 1, f"a worker that held one task left, and {released} went back")
    again = await crew.claim(crew.second)
    require(bool(again), "what a worker held that has left is not given to others")
    seen = await crew.stands(task_id, Status.IN_PROGRESS)
    require(seen["retry_count"] == 0, "a worker that left has cost its task a retry")
    await crew.end(crew.second, *again[0])
    return "what a worker held went to another when it left; what it did not hold it was told"


async def _ended(crew: Crew) -> str:
    failed = await crew.submit("RETRIES", "1")
    for status in (Status.FAILED, Status.DEAD_LETTER):
        token = await crew.claim_one(crew.first, failed)
        answer = await ask(crew.first, "TQ.FAIL", failed, token, "probe", "DELAY", "0")
        require(answer == status, f"a failure was answered {answer}, it should be {status}")
        crew.expected[failed] = status
    require(not await crew.claim(crew.first), "a dead task was given out again")
    task_id = await crew.submit("TIMEOUT", "1", "RETRIES", "0")
    token = await crew.claim_one(crew.first, task_id)
    seen = await ask(crew.second, "TQ.WAIT", task_id, str(TIME_OUT_MS), seconds=TIME_OUT_MS / 500)
    require(
        seen["status"] == Status.DEAD_LETTER,
        f"an attempt with a limit of 1 s and no retries is {seen['status']} after 15 s",
    )
    crew.expected[task_id] = Status.DEAD_LETTER
    await _refused("LEASE_LOST", crew.first, "TQ.COMPLETE", task_id, token)
    return "each attempt that failed cost a retry, and a silent one was ended at its limit"


async def _refuses(crew: Crew) -> str:
    task_id = new_task_id()
    wrong = ("TQ.SUBMIT", crew.task_type, "probe", "ID", task_id, "PRIORITY", "256")
    await _refused("INVALID_REQUEST", crew.first, *wrong)
    await _refused("TASK_NOT_FOUND", crew.first, "TQ.GET", task_id)
    return "a priority of 256 was refused by name, and no task was made"


async def _unknown(crew: Crew) -> str:
    task_id = new_task_id()
    crew.expected[task_id] = Status.PENDING
    words = ("TQ.SUBMIT", crew.task_type, "probe", "ID", task_id, "DELAY", LONG)
    cut = await Connection.connect(crew.first.address)
    answer = cut.send(*(word.encode() for word in words))
    await asyncio.sleep(0)  # it leaves with the end of this turn of the loop
    cut.close()
    require(answer.exception() is not None, "a connection that was cut has answered")
    repeated = await ask(crew.second, *words)
    require(repeated == task_id, f"the repeat was answered {repeated!r}")
    page = await ask(crew.second, "TQ.LIST", "TYPE", crew.task_type, "LIMIT", "1000")
    number = sum(task["task_id"] == task_id for task in page["tasks"])
    require(number == 1, f"a submit cut off and repeated made {number} tasks")
    return "a connection cut in a submit, the submit repeated with its id: one task"


async def _ordered(crew: Crew) -> str:
    priorities = ("10", "250", "100", "100")
    ids = [await crew.submit("PRIORITY", priority) for priority in priorities]
    claimed = await crew.claim(crew.first, "COUNT", "4")
    wanted = [ids[1], ids[2], ids[3], ids[0]]
    got = [ids.index(task_id) if task_id in ids else None for task_id, _ in claimed]
    require(
        [one[0] for one in claimed] == wanted,
        f"of priorities {', '.join(priorities)} the claim order was {got}, not [1, 2, 3, 0]",
    )
    for task_id, token in claimed:
        await crew.end(crew.first, task_id, token)
    return "highest priority first, then in the order of submits"


async def _held_back(crew: Crew) -> str:
    task_id = await crew.submit("DELAY", LONG)
    require(not await crew.claim(crew.first), "a task with a delay of an hour was given out")
    await crew.stands(task_id, Status.PENDING)
    await crew.cancel(task_id)
    return "a task with a delay of an hour was not given out"


async def _cancelled(crew: Crew) -> str:
    task_id = await crew.submit()
    await crew.cancel(task_id)
    await crew.stands(task_id, Status.CANCELLED)
    require(not await crew.claim(crew.first), "a cancelled task was given out")
    await _refused("INVALID_STATUS", crew.first, "TQ.CANCEL", task_id)
    running = await crew.submit()
    token = await crew.claim_one(crew.first, running)
    await crew.cancel(running, "RUNNING", "yes")
    await _refused("LEASE_LOST", crew.first, "TQ.COMPLETE", running, token)
    return "cancelled tasks are not given out, and a running one's worker is refused"


async def _counted(crew: Crew) -> str:
    number = 0
    for status in Status:
        words = ("STATUS", status.value, "TYPE", crew.task_type, "LIMIT", "1000")
        page = await ask(crew.first, "TQ.LIST", *words)
        there, counted = len(page["tasks"]), page["total"]
        require(there == counted, f"{counted} {status} tasks are counted, {there} are there")
        number += there
    require(
        number == len(crew.expected), f"{number} tasks are there, {len(crew.expected)} were made"
    )
    return f"{number} tasks counted and listed, by status"


async def _unlost(crew: Crew) -> str:
    for task_id, status in crew.expected.items():
        await crew.stands(task_id, status)
    return (
        f"all {len(crew.expected)} tasks are as they were acknowledged; with faults: "
        "docs/how-to/prove-it.md"
    )


Probe = Callable[[Crew], Awaitable[str]]

PROBES: Final[dict[str, Probe]] = {
    "1 acknowledged means durable": _durable,
    "3 at least once, one at a time": _single,
    "4 a repeated request is harmless": _repeated,
    "5 workers cannot leak tasks": _unleaked,
    "6 a poisoned task cannot loop for ever": _ended,
    "8 bad input changes nothing": _refuses,
    "9 unknown is said, never guessed": _unknown,
    "claim order": _ordered,
    "delays hold": _held_back,
    "cancel": _cancelled,
    "7 counters equal the truth, by type": _counted,
    "2 nothing acknowledged is lost": _unlost,
}
"""The promises, by the number they have in the documents; the last two look back at the others."""
