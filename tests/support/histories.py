"""Random histories: the same commands at the same times for an engine and for the model."""

import asyncio
import zlib
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from msgspec import structs

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
    Submit,
    TakeBack,
)
from taskqueue.core.errors import TaskQueueError
from taskqueue.core.task import Event, Status
from taskqueue.storage.engines import open_storage
from taskqueue.storage.port import TaskQuery
from tests.support.model import ModelStorage
from tests.support.storage import Queue
from tests.support.witness import Witness

TYPES = ("a", "b", "c")
PAYLOADS = (b"", b"x", b"\0\xff\0", b"y" * 3000)
WORKERS = ("w1", "w2", "w3")
OTHERWISE: tuple[dict[str, Any], ...] = (
    {"task_type": "d"},
    {"priority": 7},
    {"payload_crc": zlib.crc32(b"z")},
    {"timeout": 1},
    {"max_retries": 9},
)
"""What makes a submit under a known id a conflict."""

HOLDERS_WORDS = (*("complete", "fail", "take_back") * 2, "release", "progress")
WORDS = (*HOLDERS_WORDS, "cancel", "retry")
ANYTHING = (*("submit", "claim") * 3, *WORDS, "promote", "purge")
SUITS = {
    "cancel": (Status.PENDING, Status.FAILED),
    "retry": (Status.DEAD_LETTER, Status.CANCELLED),
}
"""The tasks that a word is for; those not named here are for running ones."""

Draw = Callable[[st.SearchStrategy[Any]], Any]


class QueueHistory(RuleBasedStateMachine):
    """Drives an SQLite engine and the model alike, and compares all they say.

    Most of what is drawn makes sense at that moment, so that tasks get far in their lives; the
    rest is late, repeated or about the wrong task. What is usual comes first in each choice,
    since first choices are drawn more often.
    """

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = TemporaryDirectory()
        self.clock = ManualClock()
        self.engine = Queue(open_storage(Path(self.folder.name)), self.clock)
        self.oracle = ModelStorage()
        self.model = Queue(self.oracle, self.clock)
        self.run(self.engine.storage.open())
        self.ids: list[str] = []
        self.submits: list[Submit] = []
        self.witness = Witness()

    def run(self, work: Any) -> Any:
        """The outcome of a coroutine."""
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run(self.engine.storage.close())
        self.loop.close()
        self.folder.cleanup()

    @rule(data=st.data(), number=st.integers(1, 4))
    def submits_come(self, data: st.DataObject, number: int) -> None:
        self.transact(*(self.a_submit(data.draw) for _ in range(number)))

    @precondition(lambda self: self.oracle.claimable)
    @rule(data=st.data(), number=st.integers(1, 3))
    def workers_claim(self, data: st.DataObject, number: int) -> None:
        self.transact(*(self.a_claim(data.draw) for _ in range(number)))

    @precondition(lambda self: self.run(self.oracle.holders()))
    @rule(data=st.data(), number=st.integers(1, 4))
    def workers_report(self, data: st.DataObject, number: int) -> None:
        self.transact(*(self.a_word(data.draw, HOLDERS_WORDS) for _ in range(number)))

    @precondition(lambda self: self.ids)
    @rule(data=st.data())
    def somebody_speaks_of_a_task(self, data: st.DataObject) -> None:
        self.transact(self.a_word(data.draw, WORDS))

    @precondition(lambda self: self.ids)
    @rule(data=st.data(), number=st.integers(2, 8))
    def all_sorts_of_things_come_at_once(self, data: st.DataObject, number: int) -> None:
        self.transact(*(self.a_command(data.draw) for _ in range(number)))

    @rule(
        seconds=st.sampled_from([0.001, 0.5, 1.0, 5.0, 11.0, 70.0, 4000.0]),
        forgiven=st.sampled_from([0, 0, 1]),
        promoted=st.sampled_from([0, 2, 100]),
    )
    def time_passes(self, seconds: float, forgiven: int, promoted: int) -> None:
        self.clock.advance(seconds)
        self.clock.forgive(round(seconds * forgiven * SECOND))
        if promoted:
            self.transact(Promote(promoted))

    @precondition(lambda self: self.ids)
    @rule(set_back=st.sampled_from([0, 0, 0, 1, 60, 4000]))
    def the_broker_restarts(self, set_back: int) -> None:
        """Only between two runs of a broker can its clock go back."""
        self.run(self.engine.storage.close())
        self.clock.advance(-set_back)
        self.engine = Queue(open_storage(Path(self.folder.name)), self.clock)
        self.run(self.engine.storage.open())
        self.compare("find", TaskQuery(limit=10_000))
        for task_id in self.ids:
            self.compare("get", task_id)
            self.compare("payload", task_id)

    @precondition(lambda self: self.ids)
    @rule(
        status=st.sampled_from([None, *Status]),
        task_type=st.sampled_from([None, *TYPES]),
        page=st.tuples(st.integers(1, 5), st.integers(0, 3)),
        before_seq=st.one_of(st.none(), st.integers(0, 20)),
        data=st.data(),
    )
    def somebody_reads(
        self,
        status: Status | None,
        task_type: str | None,
        page: tuple[int, int],
        before_seq: int | None,
        data: st.DataObject,
    ) -> None:
        self.compare("find", TaskQuery(status, task_type, *page, before_seq))
        self.compare("count", status, task_type)
        task_id = data.draw(st.sampled_from(self.ids))
        self.compare("get", task_id)
        self.compare("payload", task_id)

    def transact(self, *commands: Command) -> None:
        """One transaction on both; what they say must agree, and their books afterwards."""
        ours = self.run(self.engine.apply(*commands))
        theirs = self.run(self.model.apply(*commands))
        assert said(ours) == said(theirs), commands
        self.witness.see(ours, self.clock.wall())
        self.compare("next_due")
        self.compare("holders")
        self.compare("held", WORKERS[:2], key=by_seq)
        self.compare("totals", self.clock.wall() - 3600 * SECOND, key=as_set)
        self.compare("counts", key=as_set)
        self.compare("overdue", self.clock.steady(), 100, key=by_seq)
        assert self.run(self.engine.storage.audit()) == []

    def compare(
        self, method: str, *arguments: Any, key: Callable[[Any], Any] | None = None
    ) -> None:
        """Engine and model must give the same answer."""
        ours = self.run(getattr(self.engine.storage, method)(*arguments))
        theirs = self.run(getattr(self.model.storage, method)(*arguments))
        if key is not None:
            ours, theirs = key(ours), key(theirs)
        assert ours == theirs, (method, arguments)

    def a_command(self, draw: Draw) -> Command:
        """Anything that can be asked for."""
        match draw(st.sampled_from(ANYTHING)):
            case "submit":
                return self.a_submit(draw)
            case "claim":
                return self.a_claim(draw)
            case "promote":
                return Promote(draw(st.integers(0, 3)))
            case "purge":
                age = draw(st.sampled_from([0, 1, 60, 3600])) * SECOND
                return Purge(self.clock.wall() - age + 1, draw(st.integers(1, 3)))
            case word:
                return self.a_word(draw, (word,))

    def a_claim(self, draw: Draw) -> Claim:
        types = draw(st.lists(st.sampled_from(TYPES), min_size=2, max_size=4))
        return Claim(draw(st.sampled_from(WORKERS)), tuple(types), draw(st.integers(1, 4)))

    def a_submit(self, draw: Draw) -> Submit:
        """A new task for the most part; else one that was there, or another under its id."""
        kind = draw(st.integers(0, 9))
        if self.submits and kind >= 8:
            repeat = draw(st.sampled_from(self.submits))
            if kind == 9:
                return repeat  # type: ignore[no-any-return]
            other = draw(st.sampled_from(OTHERWISE))
            payload = b"z" if "payload_crc" in other else repeat.payload
            return Submit(structs.replace(repeat.task, **other), payload)
        submit = self.engine.a_submit(
            draw(st.sampled_from(PAYLOADS)),
            id=f"{len(self.submits):08x}-0000-7000-8000-000000000000",
            task_type=draw(st.sampled_from(TYPES)),
            priority=draw(st.sampled_from([0, 99, 100, 101, 200, 255])),
            max_retries=draw(st.sampled_from([2, 1, 0])),
            timeout=draw(st.sampled_from([1, 10, 300])) * SECOND,
            delay=draw(st.sampled_from([0, 0, 0, 0.001, 1, 30])),
        )
        self.ids.append(submit.task.id)
        self.submits.append(submit)
        return submit

    def a_word(self, draw: Draw, words: tuple[str, ...]) -> Command:
        """Something about a task: mostly one that it is for, and under its live token."""
        word = draw(st.sampled_from(words))
        statuses = SUITS.get(word, (Status.IN_PROGRESS,))
        suiting = [one.id for one in self.oracle.tasks.values() if one.status in statuses]
        is_astray = draw(st.integers(0, 5)) == 5
        task_id = draw(st.sampled_from(self.ids if is_astray or not suiting else suiting))
        live = self.witness.token_of(task_id)
        token = draw(st.sampled_from([live] * 9 + [max(0, live - 1), live + 1, 0, 2**63 - 1]))
        return self.spoken(draw, word, task_id, token)

    def spoken(self, draw: Draw, word: str, task_id: str, token: int) -> Command:
        spread = draw(st.sampled_from([0.0, -1.0, 1.0]))
        match word:
            case "complete":
                return Complete(task_id, token, draw(st.sampled_from(PAYLOADS)))
            case "fail":
                delay = draw(st.sampled_from([None, 0, 3 * SECOND]))
                retryable = draw(st.sampled_from([True, True, False]))
                return Fail(task_id, token, "E", "m", "t", retryable, delay, spread)
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


def said(applied: Applied) -> tuple[Any, ...]:
    """What a transaction said, errors by their class and code."""
    outcomes = [
        (type(one), one.code) if isinstance(one, TaskQueueError) else one
        for one in applied.outcomes
    ]
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
