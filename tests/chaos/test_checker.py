"""The checker itself: a sound history passes, and each way to forge it is found by its name."""

import zlib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from taskqueue.core.task import Event, Failure, Status, Task, TaskDetail
from tests.chaos.books import Told, differences
from tests.chaos.checker import Books, Kept, check
from tests.chaos.history import Args, History, Line, Op, Outcome, digest_of, read_histories
from tests.chaos.report import figures, restarts, table
from tests.chaos.run import schedule

PAYLOAD = b"payload"
DELAY = 5.0
SECOND = 10**9


@dataclass
class Run:
    """What clients saw, and the books: something to forge."""

    lines: list[Line] = field(default_factory=list)
    books: Books = field(default_factory=dict)

    def saw(
        self,
        op: Op,
        task_id: str,
        at: float,
        *,
        token: int = 0,
        outcome: Outcome = "ok",
        answer: str | None = None,
        lasting: float = 0.5,
        **args: Any,
    ) -> "Run":
        """Add a line; it took half a second, and was of the payload unless told otherwise."""
        known: dict[str, Any] = {"payload": digest_of(PAYLOAD)} if op != "complete" else {}
        if op in ("run", "complete"):
            known["result"] = digest_of(result_of(token))
        if answer is None:
            answer = task_id if op == "submit" and outcome == "ok" else ""
        times = round(at * SECOND), round((at + lasting) * SECOND)
        asked = Args(task_id=task_id, token=token, **known | args)
        number = len(self.lines)
        self.lines.append(Line(number, "client", op, asked, *times, outcome, answer))
        return self

    def keep(self, task_id: str, status: Status, token: int, *failed: int, **fields: Any) -> "Run":
        """Put a task into the books, as its `token` attempts of which some `failed` left it."""
        retries = len(failed) - (status is Status.DEAD_LETTER)
        values: dict[str, Any] = {"last_event": Event.CLAIM, "retry_count": retries, "token": token}
        crc = zlib.crc32(PAYLOAD)
        task = Task(1, task_id, "chaos", 100, status, 0, 1, 2, crc, 0, 0, **values | fields)
        result = result_of(token) if status is Status.COMPLETED else None
        failures = [Failure(attempt, 0, "w", "", "on purpose") for attempt in failed]
        self.books[task_id] = Kept(TaskDetail(task, result, failures), PAYLOAD)
        return self

    def edit(self, task_id: str, op: Op, token: int = 0, **changes: Any) -> "Run":
        """Change the lines of one kind about one attempt; those of a task alone have token 0."""
        before = list(self.lines)
        for place, line in enumerate(self.lines):
            if (line.args.task_id, line.op, line.args.token) == (task_id, op, token):
                args = {key: changes[key] for key in changes.keys() & set(Args.__struct_fields__)}
                rest = {key: changes[key] for key in changes.keys() - args.keys()}
                self.lines[place] = replace(line, args=replace(line.args, **args), **rest)
        assert self.lines != before, "nothing was changed"
        return self

    def drop(self, task_id: str, *ops: Op, token: int | None = None) -> "Run":
        """Forget the lines of some kinds about one task, or one attempt of it."""
        kept = [
            line
            for line in self.lines
            if line.args.task_id != task_id
            or line.op not in ops
            or token not in (None, line.args.token)
        ]
        assert kept != self.lines, "nothing was dropped"
        self.lines = kept
        return self

    def rewrite(self, task_id: str, **fields: Any) -> "Run":
        """Change a task in the books: a field of it, its result, its failures or its payload."""
        kept = self.books[task_id]
        task = {key: fields.pop(key) for key in fields.keys() & set(Task.__struct_fields__)}
        payload = fields.pop("payload", kept.payload)
        detail = replace(kept.detail, task=replace(kept.detail.task, **task), **fields)
        self.books[task_id] = Kept(detail, payload)
        return self

    @property
    def broken(self) -> set[str]:
        """The names of the invariants that the checker finds broken."""
        return {violation.invariant for violation in check(self.lines, self.books)}


def result_of(token: int) -> bytes:
    """What an attempt returns; no two return the same."""
    return b"result %d" % token


def a_sound_run() -> Run:
    """Every life that a task may have under faults."""
    run = Run()
    _completions(run)
    _other_ends(run)
    return run


def _completions(run: Run) -> None:
    run.saw("submit", "plain", 1).saw("run", "plain", 2, token=1)
    run.saw("get", "plain", 4, answer="completed")
    run.saw("result", "plain", 5, answer=digest_of(result_of(1)))
    run.keep("plain", Status.COMPLETED, 1)

    # Claimed by a worker that froze; its word comes when another one has completed the task.
    run.saw("submit", "stale", 1).saw("claim", "stale", 2, token=1).saw(
        "claim", "stale", 4, token=2
    )
    run.saw("complete", "stale", 5, token=2)
    run.saw("complete", "stale", 6, token=1, outcome="fail", answer="LEASE_LOST …")
    run.saw("complete", "stale", 7, token=2, result=digest_of(b"another result"))
    run.keep("stale", Status.COMPLETED, 2, 1)

    # Failed, given back, and then the answer to the completion was lost.
    run.saw("submit", "retried", 1)
    run.saw("claim", "retried", 2, token=1).saw("fail", "retried", 3, token=1)
    run.saw("claim", "retried", 4, token=2).saw("release", "retried", 5, token=2)
    run.saw("claim", "retried", 6, token=3)
    run.saw("complete", "retried", 7, token=3, outcome="unknown")
    run.keep("retried", Status.COMPLETED, 3, 1)

    # The submit's answer was lost, it was repeated, and its id was tried for another task.
    run.saw("submit", "repeated", 1, outcome="unknown").saw("submit", "repeated", 2)
    conflict: dict[str, Any] = {"outcome": "fail", "answer": "IDEMPOTENCY_CONFLICT …"}
    run.saw("submit", "repeated", 3, payload=digest_of(b"other"), **conflict)
    run.saw("cancel", "repeated", 3, outcome="fail", answer="INVALID_STATUS …")
    run.saw("run", "repeated", 4, token=1, outcome="unknown", lasting=-4)
    run.saw("run", "repeated", 5, token=2).keep("repeated", Status.COMPLETED, 2, 1)


def _other_ends(run: Run) -> None:
    run.saw("submit", "cancelled", 1).saw("claim", "cancelled", 2, token=1)
    run.saw("fail", "cancelled", 3, token=1).saw("cancel", "cancelled", 4)
    run.keep("cancelled", Status.CANCELLED, 1, 1)

    run.saw("submit", "dead", 1, lasting=0.1)
    for token in (1, 2, 3):
        run.saw("claim", "dead", 2 * token, token=token).saw(
            "fail", "dead", 2 * token + 1, token=token
        )
    run.keep("dead", Status.DEAD_LETTER, 3, 1, 2, 3)

    run.saw("submit", "delayed", 1, delay=DELAY).saw("run", "delayed", 7, token=1)
    run.keep("delayed", Status.COMPLETED, 1)

    run.saw("submit", "in doubt", 1, outcome="unknown")
    run.saw("submit", "refused", 1, outcome="fail")


def test_a_sound_run_passes() -> None:
    run = a_sound_run()
    assert check(run.lines, run.books) == []


FORGERIES: list[tuple[str, str, Callable[[Run], object]]] = [
    ("I1", "an acknowledged task is not there", lambda run: run.books.pop("plain")),
    (
        "I1",
        "a task that ran is not there",
        lambda run: run.drop("stale", "submit").books.pop("stale"),
    ),
    ("I1", "a task is left open", lambda run: run.rewrite("plain", status=Status.PENDING)),
    ("I2", "a task comes from nowhere", lambda run: run.keep("phantom", Status.CANCELLED, 0)),
    ("I2", "a submit is forgotten", lambda run: run.drop("plain", "submit")),
    (
        "I3",
        "two payloads under one id",
        lambda run: run.saw("submit", "plain", 2, payload=digest_of(b"other")),
    ),
    ("I3", "another id in the answer", lambda run: run.edit("plain", "submit", answer="stale")),
    (
        "I3",
        "a repeat called a conflict",
        lambda run: run.saw("submit", "plain", 2, outcome="fail", answer="IDEMPOTENCY_CONFLICT …"),
    ),
    ("I4", "completed, then cancelled", lambda run: run.rewrite("stale", status=Status.CANCELLED)),
    ("I4", "seen completed, then not", lambda run: run.rewrite("plain", status=Status.CANCELLED)),
    ("I4", "given out after its end", lambda run: run.saw("claim", "stale", 8, token=3)),
    ("I4", "given out when cancelled", lambda run: run.saw("claim", "cancelled", 8, token=2)),
    ("I5", "a token given out twice", lambda run: run.saw("run", "plain", 3, token=1)),
    ("I5", "a token from nowhere", lambda run: run.saw("run", "plain", 3, token=9)),
    (
        "I5",
        "tokens that fall",
        lambda run: run.edit("retried", "claim", 2, sent_ns=7 * SECOND, done_ns=8 * SECOND),
    ),
    ("I5", "two live claims", lambda run: run.rewrite("stale", failures=[], retry_count=0)),
    ("I5", "an attempt without an end", lambda run: run.drop("retried", "release")),
    (
        "I6",
        "an old completion accepted",
        lambda run: run.edit("stale", "complete", 1, outcome="ok"),
    ),
    ("I6", "an old failure accepted", lambda run: run.saw("fail", "retried", 8, token=1)),
    ("I6", "a made-up token accepted", lambda run: run.saw("fail", "plain", 8, token=1_000)),
    (
        "I6",
        "completed under a token before the last",
        lambda run: run.rewrite("stale", token=3, result=result_of(3)),
    ),
    ("I7", "two completions", lambda run: run.saw("complete", "retried", 9, token=2)),
    ("I7", "completed by nobody", lambda run: run.drop("plain", "run")),
    ("I7", "one attempt, two ends", lambda run: run.saw("fail", "stale", 8, token=2)),
    ("I8", "payload changed", lambda run: run.rewrite("plain", payload=b"other")),
    ("I8", "payload of the refused", lambda run: run.rewrite("repeated", payload=b"other")),
    (
        "I8",
        "another payload given out",
        lambda run: run.edit("plain", "run", 1, payload=digest_of(b"other")),
    ),
    ("I8", "result of nobody", lambda run: run.rewrite("plain", result=b"other")),
    ("I8", "no result", lambda run: run.rewrite("plain", result=None)),
    ("I8", "result of the stale", lambda run: run.rewrite("stale", result=result_of(1))),
    ("I8", "result of the repeat", lambda run: run.rewrite("stale", result=b"another result")),
    (
        "I8",
        "result of a handler that never returned",
        lambda run: run.edit("plain", "run", 1, outcome="unknown", done_ns=0),
    ),
    ("I8", "another result read", lambda run: run.edit("plain", "result", answer="else")),
    (
        "I10",
        "acknowledged, and not found",
        lambda run: run.edit("plain", "get", outcome="fail", answer="TASK_NOT_FOUND …"),
    ),
    ("I12", "started early", lambda run: run.edit("delayed", "run", 1, sent_ns=2 * SECOND)),
    ("I13", "a retry not counted", lambda run: run.rewrite("retried", retry_count=0)),
    ("I13", "too many retries", lambda run: run.rewrite("dead", max_retries=1)),
    ("I13", "dead too early", lambda run: run.rewrite("dead", max_retries=5)),
    ("I13", "a release that costs", lambda run: run.keep("retried", Status.COMPLETED, 3, 1, 2)),
    ("I13", "a failure not on record", lambda run: run.keep("retried", Status.COMPLETED, 3, 2)),
    ("I13", "failures out of order", lambda run: run.keep("dead", Status.DEAD_LETTER, 3, 2, 1, 3)),
    ("I13", "failed and completed", lambda run: run.keep("plain", Status.COMPLETED, 1, 1)),
    ("I18", "cancelled, and not", lambda run: run.rewrite("cancelled", status=Status.DEAD_LETTER)),
    ("I18", "cancelled by nobody", lambda run: run.drop("cancelled", "cancel")),
    (
        "I18",
        "not cancelled, for no reason",
        lambda run: (
            run.saw("cancel", "plain", 2, outcome="fail", answer="INVALID_STATUS …")
            .drop("plain", "run")
            .rewrite("plain", token=0)
        ),
    ),
    (
        "I22",
        "a repeat refused",
        lambda run: run.saw("complete", "stale", 8, token=2, outcome="fail", answer="LEASE_LOST …"),
    ),
    ("I23", "refused, and there", lambda run: run.edit("plain", "submit", outcome="fail")),
]


@pytest.mark.parametrize(
    ("invariant", "forge"),
    [(name, forge) for name, _, forge in FORGERIES],
    ids=[f"{name} {what}" for name, what, _ in FORGERIES],
)
def test_a_forgery_is_found(invariant: str, forge: Callable[[Run], object]) -> None:
    run = a_sound_run()
    forge(run)
    found = check(run.lines, run.books)
    assert invariant in {violation.invariant for violation in found}
    for violation in found:
        assert violation.task_id in str(violation)
        assert all(line.args.task_id == violation.task_id for line in violation.lines)


def test_what_is_unknown_may_have_happened_or_not() -> None:
    run = a_sound_run().keep("in doubt", Status.CANCELLED, 0)
    run.saw("cancel", "in doubt", 2, outcome="unknown")
    assert run.broken == set()


def test_a_kill_loses_no_more_than_an_answer(tmp_path: Path) -> None:
    with closing(History(tmp_path, "c")) as history:
        history.begin("submit", Args(task_id="answered")).ended("ok", "answered")
        history.begin("submit", Args(task_id="killed"))
        history.note("claim", Args(task_id="answered", token=1), sent_ns=1)
    [file] = tmp_path.iterdir()
    with file.open("ab") as cut:
        cut.write(b'{"n": 4, "client"')
    lines = read_histories(tmp_path)
    assert [(line.args.task_id, line.op, line.outcome) for line in lines] == [
        ("answered", "submit", "ok"),
        ("killed", "submit", "unknown"),
        ("answered", "claim", "ok"),
    ]
    assert lines[1].done_ns == 0 < lines[0].sent_ns <= lines[0].done_ns


def told_of(run: Run) -> Told:
    """What a broker with these books says of them."""
    tasks = [(one, kept.detail.task.status, kept.detail.result) for one, kept in run.books.items()]
    return Told({status: [task[1] for task in tasks].count(status) for status in Status}, tasks)


def test_doors_and_rows_that_agree_have_no_differences() -> None:
    run = a_sound_run()
    assert differences(told_of(run), run.books) == []


@pytest.mark.parametrize(
    ("what", "forge"),
    [
        ("lists count 1 completed tasks", lambda told: told.totals.update({Status.COMPLETED: 1})),
        ("listed 2 times", lambda told: told.tasks.append(told.tasks[0])),
        ("in one of list and rows only", lambda told: told.tasks.pop()),
        (
            "told otherwise",
            lambda told: told.tasks.append((*told.tasks.pop()[:2], b"another result")),
        ),
    ],
)
def test_doors_and_rows_that_differ_are_found(what: str, forge: Callable[[Told], object]) -> None:
    run = a_sound_run()
    told = told_of(run)
    forge(told)
    assert any(what in difference for difference in differences(told, run.books))


def test_the_report_counts_what_matters() -> None:
    run = a_sound_run().saw("submit", "lost", 1)
    counted = figures(run.lines, run.books, check(run.lines, run.books))
    assert counted["acknowledged and lost"] == 1
    assert counted["stale words refused"] == 1
    assert counted["given out again (allowed)"] == 6
    assert counted["tasks completed"] == 5


def test_a_restart_lasts_until_the_first_success_before_the_next_fault() -> None:
    run = Run().saw("submit", "before", 0).saw("fault", "", 1, fault="broker killed")
    run.saw("fault", "", 2, lasting=1, fault="broker killed")
    run.saw("submit", "refused", 3, outcome="fail").saw("run", "running", 3, token=1)
    run.saw("submit", "after", 3, lasting=0.75)
    assert restarts(run.lines) == [0.75]
    assert "0.75 s" in table(run.lines, run.books, [])


def test_a_schedule_comes_from_its_seed_and_has_both_kinds_of_kill() -> None:
    faults = schedule(20, 30.0, Random(1))
    assert faults == schedule(20, 30.0, Random(1)) != schedule(20, 30.0, Random(2))
    assert sum("killed" in fault.what for fault in faults) == 20
    assert {fault.what for fault in faults} >= {"broker killed", "worker killed", "worker frozen"}
    assert [fault.at for fault in faults] == sorted(fault.at for fault in faults)
