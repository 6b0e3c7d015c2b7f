"""Holds what clients saw against what the broker kept, task by task.

What is checked, by the names of the invariants: no acknowledged task is lost (I1), none is there
that nobody submitted (I2), an id is one task (I3), ended is ended (I4), tokens grow and are given
out once (I5), old words change nothing (I6), one completion (I7), bytes stay as they were (I8),
what is acknowledged can be read (I10), nothing starts early (I12), attempts and retries add up
(I13), cancelled or run, never both (I18), a repeated word is answered as the first one was (I22),
what was refused has left nothing (I23).
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import permutations

import msgspec
from msgspec.structs import replace

from taskqueue.core.task import TERMINAL, Status, TaskDetail
from tests.chaos.history import Line, Op, digest_of

CLOCK_SLACK_NS = 10_000_000
"""The broker goes by the wall clock, histories by the monotonic one: they drift a little apart."""


class Violation(msgspec.Struct, frozen=True):
    """A broken promise, with the lines that show it."""

    invariant: str
    task_id: str
    what: str
    lines: list[Line]

    def __str__(self) -> str:
        lines = "".join(f"\n    {msgspec.json.encode(line).decode()}" for line in self.lines)
        return f"{self.invariant} {self.task_id}: {self.what}{lines}"


class Kept(msgspec.Struct, frozen=True):
    """What the broker has of a task at the end."""

    detail: TaskDetail
    payload: bytes


Books = dict[str, Kept]
Broken = Iterator[tuple[str, str]]


class Story:
    """All that clients did with one task, and what is kept of it."""

    def __init__(self, lines: list[Line], kept: Kept) -> None:
        self._lines = lines
        self.task = kept.detail.task
        self.failures = kept.detail.failures
        self.payload = digest_of(kept.payload)
        result = kept.detail.result
        self.result = None if result is None else digest_of(result)
        self.claims = self.of("claim", "run")
        self.words = self.of("complete", "fail", "release")

    def of(self, *ops: Op) -> list[Line]:
        """The lines about these things."""
        return [line for line in self._lines if line.op in ops]

    def accepted(self, *ops: Op) -> list[Line]:
        """Those among them that were answered with success."""
        return [line for line in self.of(*ops) if line.outcome == "ok"]

    @property
    def was_cancelled(self) -> bool:
        """Whether a cancellation was acknowledged."""
        return bool(self.accepted("cancel"))


def check(lines: Iterable[Line], books: Books) -> list[Violation]:
    """Every broken promise."""
    by_task: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        if line.op != "fault":
            by_task[line.args.task_id].append(line)
    found: list[Violation] = []
    for task_id in sorted(by_task.keys() | books.keys()):
        of_task = sorted(by_task[task_id], key=lambda line: line.sent_ns)
        for invariant, what in _broken(of_task, books.get(task_id)):
            found.append(Violation(invariant, task_id, what, of_task))
    return found


def _broken(lines: list[Line], kept: Kept | None) -> Broken:
    if kept is None:
        if any(line.op == "submit" and line.outcome == "ok" for line in lines):
            yield "I1", "acknowledged, and not there"
        elif any(line.op != "submit" and line.outcome == "ok" for line in lines):
            yield "I1", "somebody had to do with it, and it is not there"
        return
    story = Story(lines, kept)
    for rule in RULES:
        yield from rule(story)


def _submitted(story: Story) -> Broken:
    submits = story.of("submit")
    if not submits:
        yield "I2", "there, and nobody submitted it"
        return
    if all(line.outcome == "fail" for line in submits):
        yield "I23", "refused, and there all the same"
    elif not _may_be_left(submits, lambda line: line.args.payload, story.payload):
        yield "I8", "its payload is not what was sent"
    accepted = story.accepted("submit")
    if len({line.args.payload for line in accepted}) > 1:
        yield "I3", "two tasks were accepted under its id"
    if any(line.answer != story.task.id for line in accepted):
        yield "I3", "a submit was answered with another id"
    conflicts = [line for line in submits if line.answer.startswith("IDEMPOTENCY_CONFLICT")]
    if any(line.args.payload == story.payload for line in conflicts):
        yield "I3", "a repeated submit was taken for another task"


def _read_back(story: Story) -> Broken:
    for line in story.of("get", "cancel", "result"):
        if line.answer.startswith("TASK_NOT_FOUND") and _any_before(line, story.accepted("submit")):
            yield "I10", f"acknowledged, and not found by {line.op}"
    for line in story.accepted("get"):
        if line.answer in TERMINAL and line.answer != story.task.status:
            yield "I4", f"was seen {line.answer}, and is {story.task.status}"
    for line in story.accepted("result"):
        if line.answer != story.result:
            yield "I8", "its result is not the one that was read"


def _ended(story: Story) -> Broken:
    task = story.task
    if not task.is_terminal:
        yield "I1", f"is still {task.status} after the drain"
    if story.accepted("complete") and task.status is not Status.COMPLETED:
        yield "I4", f"was completed, and is {task.status}"
    for claim in story.of("claim"):
        if _any_before(claim, story.accepted("complete", "cancel")):
            yield "I4", f"had ended, and was given out under token {claim.args.token}"


def _tokens(story: Story) -> Broken:
    last = story.task.token
    for token, number in Counter(claim.args.token for claim in story.claims).items():
        if number > 1:
            yield "I5", f"token {token} was given out {number} times"
        if not 1 <= token <= last:
            yield "I5", f"token {token} was given out, the books end at {last}"
    for earlier, later in permutations(story.claims, 2):
        is_later = later.op == "claim" and _seen_ns(earlier) < later.sent_ns
        if is_later and later.args.token <= earlier.args.token:
            yield "I5", f"token {later.args.token} was given out after {earlier.args.token}"


def _words(story: Story) -> Broken:
    accepted = story.accepted("complete", "fail", "release")
    for word in accepted:
        token = word.args.token
        newer = [claim for claim in story.claims if claim.args.token > token]
        if any(_seen_ns(claim) < word.sent_ns for claim in newer) or token > story.task.token:
            yield "I6", f"{word.op} under token {token} was accepted, which was not the live one"
    ends = {(word.args.token, word.op) for word in accepted}
    for token, number in Counter(token for token, _ in ends).items():
        if number > 1:
            yield "I7", f"the attempt under token {token} ended in {number} ways"


def _repeats(story: Story) -> Broken:
    if story.task.status is Status.CANCELLED:
        return  # an operator's word came after the attempt's: the repeat finds the task moved on
    last = [word for word in story.words if word.args.token == story.task.token]
    for word in last:
        accepted = [other for other in story.accepted(word.op) if other in last]
        if word.outcome == "fail" and _any_before(word, accepted):
            yield "I22", f"{word.op} was accepted, and refused when it was repeated"


def _completion(story: Story) -> Broken:
    task = story.task
    accepted = {line.args.token for line in story.accepted("complete")}
    if len(accepted) > 1:
        yield "I7", f"completions under tokens {sorted(accepted)} were accepted"
    if accepted - {task.token}:
        yield "I6", f"completed under {sorted(accepted)}, the last token is {task.token}"
    if task.status is not Status.COMPLETED:
        return
    if task.token not in {claim.args.token for claim in story.claims}:
        yield "I7", "is completed under a token that nobody had"
    reports = [line for line in story.of("complete") if line.args.token == task.token]
    returned = [
        # What becomes of it after the handler's end, its worker alone knows.
        replace(line, sent_ns=line.done_ns, done_ns=0, outcome="unknown")
        for line in story.accepted("run")
        if line.args.token == task.token
    ]
    if not _may_be_left(reports + returned, lambda line: line.args.result, story.result):
        yield "I8", "its result is not the one of its completion"


def _attempts(story: Story) -> Broken:
    task = story.task
    failed = [failure.attempt for failure in story.failures]
    is_dead = task.status is Status.DEAD_LETTER
    if failed != sorted(set(failed)) or not set(failed) <= set(range(1, task.token + 1)):
        yield "I13", f"its failures are those of attempts {failed}, of {task.token}"
    if len(failed) != task.retry_count + is_dead or task.retry_count > task.max_retries:
        yield "I13", f"{len(failed)} failures, {task.retry_count} of {task.max_retries} retries"
    if is_dead and task.has_retries_left:
        yield "I13", f"is dead after {task.retry_count} of {task.max_retries} retries"
    if task.status is Status.COMPLETED and task.token in failed:
        yield "I13", "was completed by an attempt that failed"
    for word in story.accepted("fail", "release"):
        if (word.args.token in failed) != (word.op == "fail"):
            yield "I13", f"{word.op} of attempt {word.args.token} is not what the books say"
    yield from _unended(story, set(failed))


def _unended(story: Story, failed: set[int]) -> Broken:
    released = {line.args.token for line in story.of("release") if line.outcome != "fail"}
    ended = failed | released
    if story.task.status is Status.COMPLETED:
        ended.add(story.task.token)
    for token in sorted({claim.args.token for claim in story.claims} - ended):
        if token < story.task.token or story.task.is_terminal:
            yield "I5", f"the attempt under token {token} never ended"


def _cancelled(story: Story) -> Broken:
    task = story.task
    if story.was_cancelled and task.status is not Status.CANCELLED:
        yield "I18", f"was cancelled, and is {task.status}"
    asked = [line for line in story.of("cancel") if line.outcome != "fail"]
    if task.status is Status.CANCELLED and not asked:
        yield "I18", "is cancelled, and nobody asked for it"
    refused = [line for line in story.of("cancel") if line.answer.startswith("INVALID_STATUS")]
    if refused and not asked and not task.token:
        yield "I18", "could not be cancelled, and had not been given out"


def _not_early(story: Story) -> Broken:
    submits = story.of("submit")
    if submits:
        ready_ns = submits[0].sent_ns + round(submits[0].args.delay * 1e9) - CLOCK_SLACK_NS
        if any(_seen_ns(claim) < ready_ns for claim in story.claims):
            yield "I12", f"started before its delay of {submits[0].args.delay:.3f} s was over"


def _payload_given(story: Story) -> Broken:
    if any(claim.args.payload != story.payload for claim in story.claims):
        yield "I8", "a worker was given another payload"


RULES: tuple[Callable[[Story], Broken], ...] = (
    *(_submitted, _read_back, _ended, _tokens, _words, _repeats, _completion),
    *(_attempts, _cancelled, _not_early, _payload_given),
)


def _seen_ns(claim: Line) -> int:
    """When at the latest a claim had been made."""
    return claim.sent_ns if claim.op == "run" else claim.done_ns


def _any_before(line: Line, others: list[Line]) -> bool:
    """Whether one of the others had its answer before the line was sent."""
    return any(0 < other.done_ns < line.sent_ns for other in others)


def _may_be_left(words: list[Line], value: Callable[[Line], str], kept: str | None) -> bool:
    """Whether `kept` is the value of a word that was not refused and did not come too late."""
    accepted = [word for word in words if word.outcome == "ok" and value(word) != kept]
    return any(
        word.outcome != "fail" and value(word) == kept and not _any_before(word, accepted)
        for word in words
    )
