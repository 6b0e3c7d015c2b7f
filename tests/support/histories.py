"""Random histories: the same commands at the same times for an engine and for the model."""

import asyncio
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from taskqueue.core.batch import Applied
from taskqueue.core.clock import SECOND, ManualClock
from taskqueue.core.commands import (
    Cancel,
    Claim,
    Command,
    Complete,
    Fail,
    Progress,
    Promote,
    Purge,
    Release,
    Retry,
    TakeBack,
)
from taskqueue.core.errors import TaskQueueError
from taskqueue.core.task import Event, Status
from taskqueue.storage.engines import open_storage
from taskqueue.storage.port import TaskQuery
from tests.support.model import ModelStorage
from tests.support.storage import Queue

TYPES = ("a", "b", "c")
PAYLOADS = (b"", b"x", b"\0\xff\0", b"y" * 3000)
WORKERS = ("w1", "w2", "w3")


class QueueHistory(RuleBasedStateMachine):
    """Drives an SQLite engine and the model alike, and compares all they say."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = TemporaryDirectory()
        self.clock = ManualClock()
        self.engine = Queue(open_storage(Path(self.folder.name)), self.clock)
        self.model = Queue(ModelStorage(), self.clock)
        self.run(self.engine.storage.open())
        self.ids: list[str] = []
        self.submits: list[Command] = []
        self.tokens: dict[str, int] = {}
        self.updated: dict[str, int] = {}
        self.ended: set[str] = set()

    def run(self, work: Any) -> Any:
        """The outcome of a coroutine."""
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run(self.engine.storage.close())
        self.loop.close()
        self.folder.cleanup()

    @rule(seconds=st.sampled_from([0.001, 0.5, 1.0, 5.0, 11.0, 70.0, 4000.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(data=st.data())
    def one_transaction(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(1, 6))
        commands = [self.a_command(data) for _ in range(number)]
        ours = self.run(self.engine.apply(*commands))
        theirs = self.run(self.model.apply(*commands))
        assert said(ours) == said(theirs)
        self.check_claims(ours)

    @precondition(lambda self: self.ids)
    @rule()
    def restart(self) -> None:
        self.run(self.engine.storage.close())
        self.engine = Queue(open_storage(Path(self.folder.name)), self.clock)
        self.run(self.engine.storage.open())

    @precondition(lambda self: self.ids)
    @rule(
        status=st.sampled_from([None, *Status]),
        task_type=st.sampled_from([None, *TYPES]),
        limit=st.integers(1, 5),
        offset=st.integers(0, 3),
    )
    def lists_agree(
        self, status: Status | None, task_type: str | None, limit: int, offset: int
    ) -> None:
        query = TaskQuery(status, task_type, limit, offset)
        assert self.both("find", query)
        assert self.both("count", status, task_type)

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def details_agree(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(self.ids))
        assert self.both("get", task_id)
        assert self.both("payload", task_id)

    @invariant()
    def books_agree(self) -> None:
        assert self.both("next_due")
        assert self.both("holders")
        assert self.both("totals", self.clock.wall() - 3600 * SECOND, key=as_set)
        assert self.both("counts", key=as_set)
        assert self.both("overdue", self.clock.steady(), 100, key=by_seq)

    @invariant()
    def counters_equal_rows(self) -> None:
        assert self.run(self.engine.storage.audit()) == []

    def both(self, method: str, *arguments: Any, key: Any = None) -> bool:
        """Whether engine and model give the same answer."""
        ours = self.run(getattr(self.engine.storage, method)(*arguments))
        theirs = self.run(getattr(self.model.storage, method)(*arguments))
        if key is not None:
            ours, theirs = key(ours), key(theirs)
        assert ours == theirs, (method, arguments, ours, theirs)
        return True

    def check_claims(self, applied: Applied) -> None:
        """Tokens grow by one; what has ended is not given out again; time never goes back."""
        for task in applied.moved:
            if task.last_event is Event.SUBMIT:  # new, or anew under an id that was purged
                self.ended.discard(task.id)
                self.tokens[task.id] = self.updated[task.id] = 0
            assert task.updated_at >= self.updated.get(task.id, 0)
            self.updated[task.id] = task.updated_at
            if task.last_event is Event.CLAIM:
                assert task.token == self.tokens.get(task.id, 0) + 1
                assert task.id not in self.ended
                self.tokens[task.id] = task.token
            if task.last_event is Event.RETRY:
                self.ended.discard(task.id)
            elif task.is_terminal:
                self.ended.add(task.id)

    def a_command(self, data: st.DataObject) -> Command:
        """Something to ask for; about a task that exists, for the most part."""
        draw = data.draw
        kind = draw(st.sampled_from(KINDS))
        if kind == "submit" or (not self.ids and kind not in ("claim", "promote", "purge")):
            return self.a_submit(draw)
        if kind == "claim":
            types = draw(st.lists(st.sampled_from(TYPES), min_size=1, unique=True))
            return Claim(draw(st.sampled_from(WORKERS)), tuple(types), draw(st.integers(1, 3)))
        if kind == "promote":
            return Promote(draw(st.integers(0, 3)))
        if kind == "purge":
            age = draw(st.sampled_from([0, 60, 3600])) * SECOND
            return Purge(self.clock.wall() - age, draw(st.integers(1, 3)))
        task_id = draw(st.sampled_from(self.ids))
        token = draw(st.sampled_from([self.tokens.get(task_id, 0)] * 4 + [0, 1, 99]))
        return self.a_word(draw, kind, task_id, token)

    def a_submit(self, draw: Any) -> Command:
        if self.submits and draw(st.integers(0, 9)) == 0:
            return draw(st.sampled_from(self.submits))  # type: ignore[no-any-return]
        submit = self.engine.a_submit(
            draw(st.sampled_from(PAYLOADS)),
            id=f"{len(self.submits):08x}-0000-7000-8000-000000000000",
            task_type=draw(st.sampled_from(TYPES)),
            priority=draw(st.sampled_from([0, 99, 100, 101, 200, 255])),
            max_retries=draw(st.integers(0, 2)),
            timeout=draw(st.sampled_from([1, 10, 300])) * SECOND,
            delay=draw(st.sampled_from([0, 0, 0, 0.001, 1, 30])),
        )
        if submit.task.id not in self.ids:
            self.ids.append(submit.task.id)
        self.submits.append(submit)
        return submit

    def a_word(self, draw: Any, kind: str, task_id: str, token: int) -> Command:
        spread = draw(st.sampled_from([-1.0, 0.0, 1.0]))
        match kind:
            case "complete":
                return Complete(task_id, token, draw(st.sampled_from(PAYLOADS)))
            case "fail":
                delay = draw(st.sampled_from([None, 0, 3 * SECOND]))
                retryable = draw(st.booleans())
                return Fail(task_id, token, "E", "m", "", retryable, delay, spread)
            case "release":
                return Release(task_id, token)
            case "progress":
                return Progress(task_id, token, draw(st.sampled_from([0.0, 0.5])), "n")
            case "cancel":
                return Cancel(task_id)
            case "retry":
                return Retry(task_id)
            case _:
                why = draw(st.sampled_from([Event.LOSE, Event.TIME_OUT]))
                return TakeBack(task_id, token, why, "m", spread)


KINDS = (
    *("submit",) * 3,
    *("claim",) * 3,
    *("complete",) * 2,
    *("fail",) * 2,
    *("release", "progress", "cancel", "retry", "take_back", "promote", "purge"),
)


def said(applied: Applied) -> tuple[Any, ...]:
    """What a transaction said, errors by their code."""
    outcomes = [one.code if isinstance(one, TaskQueueError) else one for one in applied.outcomes]
    ready = {kind: number for kind, number in applied.ready.items() if number}
    return outcomes, applied.moved, ready, applied.next_due, applied.pending


def as_set(answer: Any) -> Any:
    """Counters in no order, without those that count nothing."""
    counts = getattr(answer, "counts", answer)
    rest = (answer.recent, answer.oldest_ready) if counts is not answer else ()
    return {(one.key, one.present, one.entered) for one in counts if one.entered}, rest


def by_seq(tasks: Any) -> Any:
    """Tasks in the order in which they were submitted."""
    return sorted(tasks, key=lambda task: task.seq)
