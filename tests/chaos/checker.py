"""Holds what clients saw against what the broker kept, task by task.

The names I1 … I18 are those of the invariants: no acknowledged task lost (I1), none that nobody
submitted (I2), ended is ended (I4), tokens grow and are given out once (I5), old words change
nothing (I6), one completion (I7), bytes as they were (I8), retries bounded (I13), counters equal
rows (I15), cancelled or run, never both (I18), what was refused has left nothing (I23).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

import msgspec

from taskqueue.core.task import Status, TaskDetail
from tests.chaos.history import Line, digest_of


class Violation(msgspec.Struct, frozen=True):
    """A broken promise, with the lines that show it."""

    invariant: str
    task_id: str
    what: str
    lines: list[Line]

    def __str__(self) -> str:
        lines = "\n    ".join(msgspec.json.encode(line).decode() for line in self.lines)
        return f"{self.invariant} {self.task_id}: {self.what}\n    {lines}"


class Kept(msgspec.Struct, frozen=True):
    """What the broker has of a task at the end."""

    detail: TaskDetail
    payload: bytes


Books = dict[str, Kept]


def check(lines: Iterable[Line], books: Books) -> list[Violation]:
    """Every broken promise."""
    by_task: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_task[line.task_id].append(line)
    found: list[Violation] = []
    for task_id in by_task.keys() | books.keys():
        of_task = sorted(by_task[task_id], key=lambda line: line.at_ns)
        for invariant, what in _broken(of_task, books.get(task_id)):
            found.append(Violation(invariant, task_id, what, of_task))
    return found


def summary(lines: Iterable[Line]) -> Counter[tuple[str, str]]:
    """How many of each kind of thing came to each outcome."""
    return Counter((line.op, line.outcome) for line in lines)


def double_executions(lines: Iterable[Line]) -> int:
    """Executions beyond the first of a task: allowed after a kill, and worth knowing."""
    runs = Counter(line.task_id for line in lines if line.op == "run")
    return sum(number - 1 for number in runs.values())


Broken = Iterator[tuple[str, str]]


def _broken(lines: list[Line], kept: Kept | None) -> Broken:
    submits = [line for line in lines if line.op == "submit"]
    if kept is None:
        if any(line.outcome == "ok" for line in submits):
            yield "I1", "acknowledged, and not there"
        return
    if not submits:
        yield "I2", "there, and nobody submitted it"
    elif all(line.outcome == "fail" for line in submits):
        yield "I23", "refused, and there all the same"
    yield from _end(lines, kept)
    yield from _tokens(lines, kept)
    yield from _completions(lines, kept)
    if submits and digest_of(kept.payload) != submits[0].digest:
        yield "I8", "its payload is not what was sent"


def _end(lines: list[Line], kept: Kept) -> Broken:
    task = kept.detail.task
    if not task.is_terminal:
        yield "I1", f"is still {task.status} after the drain"
    if task.status is Status.DEAD_LETTER:
        yield "I13", f"is dead after {task.retry_count} of {task.max_retries} retries"
    if task.retry_count > task.max_retries:
        yield "I13", "has more retries than it may"
    cancelled = any(line.op == "cancel" and line.outcome == "ok" for line in lines)
    if cancelled and task.status is not Status.CANCELLED:
        yield "I18", f"was cancelled, and is {task.status}"
    if cancelled and any(line.op == "run" for line in lines):
        yield "I18", "was cancelled, and ran"


def _tokens(lines: list[Line], kept: Kept) -> Broken:
    runs = [line for line in lines if line.op == "run"]
    for token, number in Counter(line.token for line in runs).items():
        if number > 1:
            yield "I5", f"token {token} was given out {number} times"
        if token > kept.detail.task.token:
            yield "I5", f"token {token} was given out, the books end at {kept.detail.task.token}"


def _completions(lines: list[Line], kept: Kept) -> Broken:
    task = kept.detail.task
    accepted = {line.token for line in lines if line.op == "complete" and line.outcome == "ok"}
    if len(accepted) > 1:
        yield "I7", f"completions under tokens {sorted(accepted)} were accepted"
    for token in accepted:
        if task.status is not Status.COMPLETED:
            yield "I4", f"was completed, and is {task.status}"
        if token != task.token:
            yield "I6", f"a completion under token {token} was accepted, the last is {task.token}"
    if task.status is Status.COMPLETED:
        if not any(line.op == "run" and line.token == task.token for line in lines):
            yield "I7", "is completed under a token that nobody ran"
        if kept.detail.result != digest_of(kept.payload).encode():
            yield "I8", "its result is not what its handler returned"
