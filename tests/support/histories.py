"""Random histories: the same commands at the same times for an engine and for the model."""

import asyncio
import os
import time
import zlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from msgspec import structs

from taskqueue.core.batch import Applied
from taskqueue.core.clock import SECOND, ManualClock
from taskqueue.core.commands import (
    Cancel,
    Change,
    Checkpoint,
    Claim,
    Command,
    Complete,
    Delete,
    Expire,
    Extend,
    Fail,
    Log,
    Progress,
    Promote,
    Purge,
    Release,
    Retry,
    Submit,
    TakeBack,
)
from taskqueue.core.errors import TaskQueueError
from taskqueue.core.repeats import Unique, While
from taskqueue.core.retry import RetryPolicy
from taskqueue.core.task import Event, LogLevel, Options, Status
from taskqueue.storage.cluster import News
from taskqueue.storage.engines import open_storage
from taskqueue.storage.port import TaskQuery
from tests.support.door import PATIENCE
from tests.support.model import ModelStorage
from tests.support.numbers import Numbers
from tests.support.postgres import PostgresServer, a_database
from tests.support.storage import Queue
from tests.support.witness import Witness

DAY = 24 * 3600 * SECOND
TODAY = time.time_ns() // 1_000 // DAY * DAY
"""Histories begin with the day: by its own clock the engine forgets the minutes of last week, and
has partitions for this day and the next."""

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

NOTES = ("progress", "log", "checkpoint", "extend")
HOLDERS_WORDS = (*("complete", "fail", "take_back") * 2, "release", *NOTES)
OPERATORS = ("cancel", "retry", "change", "expire", "delete")
WORDS = (*HOLDERS_WORDS, *OPERATORS)
ANYTHING = (*("submit", "claim") * 3, *WORDS, "promote", "purge")
SUITS = {
    "cancel": (Status.PENDING, Status.FAILED),
    "retry": (Status.DEAD_LETTER, Status.CANCELLED),
    "change": (Status.PENDING, Status.FAILED),
    "expire": (Status.PENDING, Status.FAILED),
    "delete": (Status.COMPLETED, Status.DEAD_LETTER, Status.CANCELLED),
}
"""The tasks that a word is for; those not named here are for running ones."""

OPTIONS = (
    None,
    None,
    Options(tags=("t",), retry=RetryPolicy(first=SECOND, factor=3.0, longest=6 * SECOND)),
    Options(tags=("t", "u"), metadata={"k": "v", "é": "="}, retention=2 * SECOND),
    Options(metadata={"k": "w"}, retention=0),
)
UNIQUE = (
    *(None,) * 4,
    Unique("a 1"),
    Unique("a 1", replaces=True),
    Unique("b 1", While.PENDING),
    Unique("b 2", While.PERIOD, period=3 * SECOND),
)
LABELS: tuple[tuple[Any, ...], ...] = (
    (("t",), ()),
    (("t", "u"), (("k", "v"),)),
    ((), (("k", "w"),)),
    (("nobody",), ()),
)

Draw = Callable[[st.SearchStrategy[Any]], Any]


def run_histories(machine: Callable[[], RuleBasedStateMachine], number: int) -> None:
    """Run so many histories, the same ones each time.

    `HISTORIES=1000` in the environment asks for so many instead, and for other ones each time.
    """
    asked = int(os.environ.get("HISTORIES", "0"))
    rules = settings(
        max_examples=asked or number,
        stateful_step_count=50,
        deadline=None,
        derandomize=not asked,
        database=None,
        suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
    )
    run_state_machine_as_test(machine, settings=rules)  # type: ignore[arg-type]  # any callable


class QueueHistory(RuleBasedStateMachine):
    """Drives an engine and the model alike, and compares all they say.

    Most of what is drawn makes sense at that moment, so that tasks get far in their lives; the
    rest is late, repeated or about the wrong task. What is usual comes first in each choice,
    since first choices are drawn more often.
    """

    def __init__(self, server: PostgresServer | None = None) -> None:
        """Compare the engine on a server of PostgreSQL, or else the embedded one."""
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.stack = AsyncExitStack()
        self.folder = Path(self.stack.enter_context(TemporaryDirectory()))
        self.address = ""
        if server is not None:
            self.address = self.run(self.stack.enter_async_context(a_database(server)))
        self.clock = ManualClock(TODAY)
        self.engine = self.opened()
        self.oracle = ModelStorage()
        self.model = Queue(self.oracle, self.clock)
        self.numbers = Numbers(are_counted=not self.address)
        self.ids: list[str] = []
        self.submits: list[Submit] = []
        self.witness = Witness()

    def opened(self) -> Queue:
        """The engine, on what it left behind if it has run before."""
        queue = Queue(open_storage(self.folder, self.address), self.clock)
        self.run(queue.storage.open())
        return queue

    def run(self, work: Any) -> Any:
        """The outcome of a coroutine."""
        return self.loop.run_until_complete(work)

    def teardown(self) -> None:
        self.run(self.engine.storage.close())
        self.run(self.stack.aclose())
        self.loop.close()

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
        data=st.data(),
        beside=st.sampled_from([0, 0, 1, 2]),
    )
    def time_passes(
        self, seconds: float, forgiven: int, promoted: int, data: st.DataObject, beside: int
    ) -> None:
        self.clock.advance(seconds)
        self.clock.forgive(round(seconds * forgiven * SECOND))
        if promoted:
            self.transact(Promote(promoted), *(self.a_submit(data.draw) for _ in range(beside)))

    @precondition(lambda self: self.ids)
    @rule(set_back=st.sampled_from([0, 0, 0, 1, 60, 4000]))
    def the_broker_restarts(self, set_back: int) -> None:
        self.restart(set_back)
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
        query = TaskQuery(status, task_type, *page, before_seq)
        if before_seq is None:
            self.compare("find", query)
        else:
            place = self.numbers.place_of(before_seq, self.oracle.tasks.values())
            ours = self.run(self.engine.storage.find(structs.replace(query, before_seq=place)))
            assert self.numbers.in_terms_of_the_model(ours) == self.run(self.oracle.find(query))
        self.compare("count", status, task_type)
        labels = data.draw(st.sampled_from(LABELS))
        labelled = TaskQuery(status, task_type, *page, None, *labels)
        self.compare("find", labelled)
        self.compare("number", labelled)
        task_id = data.draw(st.sampled_from(self.ids))
        self.compare("get", task_id)
        self.compare("payload", task_id)
        self.compare("logs", task_id)

    def restart(self, set_back: float) -> None:
        """Only between two runs of a broker can its clock go back."""
        self.run(self.engine.storage.close())
        self.clock.advance(-set_back)
        self.engine = self.opened()

    def compare_depth(self, ours: Applied, theirs: Applied) -> None:
        """Each transaction says how deep the queue is."""
        assert ours.pending == theirs.pending

    def spread(self, applied: Applied) -> None:
        """There is nobody else to hear of it."""

    def transact(self, *commands: Command) -> None:
        """One transaction on both; what they say must agree, and their books afterwards."""
        ours = self.run(self.engine.apply(*commands))
        theirs = self.run(self.model.apply(*commands))
        self.numbers.learn(ours, theirs)
        ours = structs.replace(
            ours,
            outcomes=self.numbers.in_terms_of_the_model(ours.outcomes),
            moved=self.numbers.in_terms_of_the_model(ours.moved),
        )
        self.compare_depth(ours, theirs)
        self.spread(ours)
        assert said(ours) == said(theirs), commands
        self.witness.see(ours, self.clock.wall())
        self.numbers.check_order(self.oracle.tasks.values())
        self.compare_books()

    def compare_books(self) -> None:
        """What an engine says of all its tasks together."""
        self.compare("next_due")
        self.compare("holders")
        self.compare("held", WORKERS[:2], key=by_seq)
        self.compare("totals", self.clock.wall() - 3600 * SECOND, key=as_set)
        self.compare("counts", key=as_set)
        self.compare("overdue", self.clock.steady(), 100, key=by_seq)
        self.compare("expired", self.clock.wall(), 100, key=by_seq)
        assert self.run(self.engine.storage.audit()) == []

    def compare(
        self, method: str, *arguments: Any, key: Callable[[Any], Any] | None = None
    ) -> None:
        """Engine and model must give the same answer."""
        ours = self.run(getattr(self.engine.storage, method)(*arguments))
        ours = self.numbers.in_terms_of_the_model(ours)
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
            options=draw(st.sampled_from(OPTIONS)),
            expires_at=draw(st.sampled_from([None, None, self.clock.wall() + 40 * SECOND])),
        )
        submit = structs.replace(submit, unique=draw(st.sampled_from(UNIQUE)))
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
        """What the word is."""
        if word in NOTES:
            return self.noted(draw, word, task_id, token)
        if word in OPERATORS:
            return self.ordered(draw, word, task_id)
        spread = draw(st.sampled_from([0.0, -1.0, 1.0]))
        match word:
            case "complete":
                return Complete(task_id, token, draw(st.sampled_from(PAYLOADS)))
            case "fail":
                delay = draw(st.sampled_from([None, 0, 3 * SECOND]))
                retryable = draw(st.sampled_from([True, True, False]))
                died = draw(st.sampled_from([False, False, True]))
                return Fail(
                    *(task_id, token, "E", "m", "t", retryable, delay, spread),
                    process_died=died,
                    most_losses=2,
                )
            case "release":
                return Release(task_id, token, delay=draw(st.sampled_from([0, 0, 3 * SECOND])))
            case _:
                why = draw(st.sampled_from([Event.LOSE, Event.TIME_OUT]))
                return TakeBack(task_id, token, why, "m", spread, most_losses=2)

    def noted(self, draw: Draw, word: str, task_id: str, token: int) -> Command:
        """Something that an attempt says while it goes on."""
        match word:
            case "progress":
                return Progress(task_id, token, draw(st.sampled_from([0.0, 0.5])), "n")
            case "log":
                return Log(task_id, token, LogLevel.INFO, draw(st.sampled_from(["", "line"])))
            case "checkpoint":
                return Checkpoint(task_id, token, draw(st.sampled_from(PAYLOADS)))
            case _:
                return Extend(task_id, token, 20 * SECOND)

    def ordered(self, draw: Draw, word: str, task_id: str) -> Command:
        """Something that nobody needs a token for."""
        match word:
            case "change":
                later = self.clock.wall() + draw(st.sampled_from([0, 2])) * SECOND
                priority = draw(st.sampled_from([None, 0, 250]))
                return Change(task_id, priority, draw(st.sampled_from([None, later])))
            case "expire":
                return Expire(task_id)
            case "delete":
                return Delete(task_id)
            case "cancel":
                return Cancel(task_id, running=draw(st.booleans()))
            case _:
                return Retry(task_id)


class ClusterHistory(QueueHistory):
    """Two brokers on one database: now one is asked, now the other, and their news are heard."""

    def __init__(self, server: PostgresServer) -> None:
        self.news: dict[Queue, asyncio.Event] = {}
        super().__init__(server)
        self.others = [self.opened()]

    @initialize(chance=st.randoms(use_true_random=False))
    def they_begin(self, chance: Random) -> None:
        self.chance = chance

    def transact(self, *commands: Command) -> None:
        # At a standstill of the clock the numbers that two brokers give have no order.
        self.clock.advance(0.001)
        self.take_turns(any(isinstance(one, Promote | Purge) for one in commands))
        super().transact(*commands)

    def take_turns(self, for_leader: bool) -> None:
        """Let another broker be the one that is asked; housekeeping is the leader's alone."""
        brokers = [self.engine, *self.others]
        able = [one for one in brokers if not for_leader or one.storage.cluster.is_leader]
        while not able:  # for a moment, after a restart
            self.run(asyncio.sleep(0.002))
            able = [one for one in brokers if one.storage.cluster.is_leader]
        self.engine = able[self.chance.randrange(len(able))]
        self.others = [one for one in brokers if one is not self.engine]

    def opened(self) -> Queue:
        queue = Queue(open_storage(self.folder, self.address), self.clock)
        heard = self.news[queue] = asyncio.Event()
        queue.storage.cluster.on_news = lambda _: heard.set()
        self.run(queue.storage.open())
        self.run(asyncio.wait_for(heard.wait(), PATIENCE))  # it listens now
        queue.storage.cluster.on_news = partial(hear_of_a_batch, heard)
        return queue

    def restart(self, set_back: float) -> None:
        """Nor does the clock go back, which is that of the database, for both."""
        self.take_turns(for_leader=False)
        del self.news[self.engine]
        super().restart(0)

    def compare_depth(self, ours: Applied, theirs: Applied) -> None:
        """Not here: a broker learns within a second how many tasks others have added."""

    def spread(self, applied: Applied) -> None:
        """Let the others hear of what a transaction did."""
        if applied.moved or applied.ready:
            for other in self.others:
                self.news[other].clear()
            self.run(self.tell(applied))

    async def tell(self, applied: Applied) -> None:
        """Return once all others have heard it."""
        async with asyncio.timeout(PATIENCE):
            # What one that knows of no others has to tell is lost.
            cluster: Any = self.engine.storage.cluster
            while cluster._is_alone:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
            cluster.tell(applied)
            for other in self.others:
                await self.news[other].wait()

    def compare_books(self) -> None:
        self.take_turns(for_leader=False)
        super().compare_books()

    def teardown(self) -> None:
        for other in self.others:
            self.run(other.storage.close())
        super().teardown()


def hear_of_a_batch(heard: asyncio.Event, news: News) -> None:
    """Set the event, unless this is only to say that anything may have happened."""
    if news.ready is not None:
        heard.set()


def said(applied: Applied) -> tuple[Any, ...]:
    """What a transaction said but for the depth, errors by their class and code.

    The changes of each task are in order; which task's come first is left to the engine.
    """
    outcomes = [
        (type(one), one.code) if isinstance(one, TaskQueueError) else one
        for one in applied.outcomes
    ]
    ready = {kind: number for kind, number in applied.ready.items() if number}
    moved = sorted(applied.moved, key=lambda task: task.id)
    return outcomes, moved, ready, applied.next_due


def as_set(answer: Any) -> Any:
    """Counters in no order, without those that count nothing."""
    counts = getattr(answer, "counts", answer)
    rest = (answer.recent, answer.oldest_ready) if counts is not answer else ()
    return {(one.key, one.present, one.entered) for one in counts if one.entered}, rest


def by_seq(tasks: Any) -> Any:
    """Tasks in the order in which they were submitted."""
    return sorted(tasks, key=lambda task: task.seq)
