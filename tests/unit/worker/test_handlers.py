"""What handlers are given, what becomes of what they return, and of what they raise."""

import asyncio
import dataclasses
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import msgspec
import pytest

from taskqueue import App, Context, InvalidRequest, Task, TaskFailed
from taskqueue.core.clock import ManualClock
from tests.support.door import until
from tests.unit.worker.conftest import Bench


class User(msgspec.Struct):
    name: str
    born: datetime
    tags: list[str] = []


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


async def test_async_and_sync_handlers_return_their_results(bench: Bench) -> None:
    loop_thread = threading.get_ident()

    @bench.app.task
    async def on_the_loop(a: int, b: int) -> int:
        assert threading.get_ident() == loop_thread
        return a + b

    @bench.app.task
    def in_a_thread(a: int, b: int) -> int:
        assert threading.get_ident() != loop_thread
        return a * b

    await bench.work()
    assert await (await on_the_loop.submit(2, b=3)).result() == 5
    assert await (await in_a_thread.submit(a=2, b=3)).result() == 6


async def test_a_handle_has_a_sync_form_of_each_verb(bench: Bench) -> None:
    @bench.app.task
    def shout(text: str) -> str:
        return text.upper()

    def elsewhere() -> str:
        handle = shout.submit_sync("hello")
        assert handle.status_sync().task_id == handle.task_id
        waiting = shout.options(delay=1000).submit_sync("later")
        waiting.cancel_sync()
        assert waiting.status_sync().status == "cancelled"
        return handle.result_sync()

    await bench.work()
    assert await asyncio.to_thread(elsewhere) == "HELLO"


async def test_a_handle_tells_and_cancels(bench: Bench) -> None:
    @bench.app.task
    async def nothing() -> None: ...

    handle = await nothing.options(delay=1000).submit()
    assert (await handle.status()).status == "pending"
    await handle.cancel()
    assert (await handle.status()).status == "cancelled"
    with pytest.raises(TaskFailed):
        await handle.result()
    assert handle.task_id in repr(handle)


@pytest.mark.parametrize("is_async", [True, False])
async def test_raw_handlers_take_and_return_bytes(bench: Bench, is_async: bool) -> None:
    if is_async:

        @bench.app.raw("turn")
        async def turn(payload: bytes) -> bytes:
            return payload[::-1]

        @bench.app.raw("named")
        async def named(ctx: Context, payload: bytes) -> bytes:
            return ctx.task_id.encode() + payload
    else:

        @bench.app.raw("turn")
        def turn_in_thread(payload: bytes) -> bytes:
            return payload[::-1]

        @bench.app.raw("named")
        def named_in_thread(ctx: Context, payload: bytes) -> bytes:
            return ctx.task_id.encode() + payload

    await bench.work()
    client = bench.app.client
    task_id = await client.submit_task(Task("turn", b"\x00\xff\r\n"))
    assert await client.wait_for_result(task_id) == b"\n\r\xff\x00"
    task_id = await client.submit_task(Task("named", b"!"))
    assert await client.wait_for_result(task_id) == task_id.encode() + b"!"


async def test_arguments_arrive_as_their_types(bench: Bench) -> None:
    seen: list[Any] = []

    @bench.app.task
    async def everything(
        user: User,
        at: datetime,
        point: Point,
        numbers: dict[str, tuple[int, ...]],
        /,
        key: UUID | None,
        *,
        data: bytes,
        note: str = "none",
        wait: timedelta = timedelta(seconds=1),
    ) -> Point:
        seen.extend([user, at, point, numbers, key, data, note, wait])
        return Point(1.5, 2.5)

    await bench.work()
    at = datetime(2024, 1, 1, 12, 0, 0, 123456, UTC)
    sent: list[Any] = [User("Ann", at, ["a"]), at, Point(1, 2), {"n": (1, 2)}, uuid4()]
    handle = await everything.submit(*sent, data=b"\x00\xff")
    assert await handle.result() == Point(1.5, 2.5)
    assert seen == [*sent, b"\x00\xff", "none", timedelta(seconds=1)]


async def test_a_context_is_given_to_who_asks_for_it(bench: Bench) -> None:
    @bench.app.task(retries=0, timeout=77)
    def about(ctx: Context, text: str) -> list[Any]:
        return [ctx.task_id, ctx.task_type, ctx.attempt, ctx.token, ctx.timeout, text]

    await bench.work()
    handle = await about.submit("x")
    assert await handle.result() == [handle.task_id, "about", 1, 1, 77, "x"]


async def test_a_payload_of_another_language_fits_by_name(bench: Bench) -> None:
    @bench.app.task
    async def greet(name: str = "world", *, loud: bool = False) -> str:
        return f"hello {name}{'!' * loud}"

    await bench.work()
    client = bench.app.client
    for payload, result in [
        (b"", b'"hello world"'),
        (b"{}", b'"hello world"'),
        (b'{"loud": true, "name": "you"}', b'"hello you!"'),
    ]:
        task_id = await client.submit_task(Task("greet", payload))
        assert await client.wait_for_result(task_id) == result


@pytest.mark.parametrize(
    ("payload", "complaint"),
    [
        (b"{}", "missing required field `count`"),
        (b'{"count": 1, "extra": 2}', "unknown field `extra`"),
        (b'{"count": "one"}', "Expected `int`, got `str` - at `$.count`"),
        (b'{"count": -1}', "$.count"),
        (b"[1]", "Expected `object`, got `array`"),
        (b"not json", "JSON is malformed"),
        (b'{"count": "\xff"}', "the payload does not fit"),
    ],
)
async def test_a_payload_that_does_not_fit_is_a_failed_attempt_that_says_why(
    bench: Bench, payload: bytes, complaint: str
) -> None:
    @bench.app.task
    async def counted(count: Annotated[int, msgspec.Meta(ge=0)]) -> None: ...

    await bench.work()
    client = bench.app.client
    task_id = await client.submit_task(Task("counted", payload).with_max_retries(0))
    status = await client.wait_for_end(task_id)
    assert status.status == "dead_letter"
    assert complaint in str(status.error)


async def test_a_call_that_the_function_would_refuse_is_refused_at_once() -> None:
    @App("127.0.0.1:1").task
    async def one(a: int) -> None: ...

    submit: Any = one.submit
    for args, kwargs in [((), {}), ((1, 2), {}), ((1,), {"b": 2})]:
        with pytest.raises(TypeError):
            await submit(*args, **kwargs)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), [(None, float("nan"))], object()])
async def test_arguments_that_json_cannot_say_are_refused_at_once(value: object) -> None:
    @App("127.0.0.1:1").task
    async def one(a: Any) -> None: ...

    with pytest.raises((TypeError, ValueError)):
        await one.submit(value)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: float("nan"), "nan"),
        (lambda: {"a": [None, (float("-inf"),)]}, "-inf"),
        (lambda: Point(float("nan")), "nan"),
        (object, "object"),
        (lambda: "x" * (10 * 1024 * 1024), "PayloadTooLarge: the result"),
        (lambda: b"x" * (12 * 1024 * 1024), "PayloadTooLarge: the result"),
    ],
)
async def test_a_result_that_cannot_be_kept_is_a_failed_attempt(
    bench: Bench, make: Callable[[], Any], complaint: str
) -> None:
    @bench.app.task(retries=0)
    async def give() -> Any:
        return make()

    await bench.work()
    assert complaint in await bench.failure(await give.submit())


async def test_none_is_a_result(bench: Bench) -> None:
    @bench.app.task
    async def nothing() -> None: ...

    @bench.app.task
    def perhaps(is_there: bool) -> list[int | None]:
        return [1 if is_there else None]

    await bench.work()
    assert await (await nothing.submit()).result() is None  # type: ignore[func-returns-value]
    assert await (await perhaps.submit(False)).result() == [None]


async def test_a_raw_handler_that_returns_no_bytes_has_failed(bench: Bench) -> None:
    wrong: Any = lambda payload: "text"  # noqa: E731
    bench.app.raw("text")(wrong)
    await bench.work()
    client = bench.app.client
    task_id = await client.submit_task(Task("text", b"").with_max_retries(0))
    assert "must return bytes, got str" in str((await client.wait_for_end(task_id)).error)


class Own(BaseException):
    """Not an Exception."""


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize("is_async", [True, False])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ValueError("no such user"), "ValueError: no such user"),
        (lambda: SystemExit(3), "SystemExit: 3"),
        (lambda: KeyboardInterrupt(), "KeyboardInterrupt"),
        (lambda: asyncio.CancelledError("own"), "CancelledError: own"),
        (lambda: StopIteration("stop"), "raised StopIteration"),
        (lambda: GeneratorExit(), "GeneratorExit"),
        (lambda: Own("own"), "Own: own"),
        (lambda: Mute(), "Mute: its message could not be made"),
        (lambda: ValueError("\ud800 \x00 ü"), "ValueError: ? \x00 ü"),
        (lambda: ValueError("x" * 3_000_000), "ValueError: xxxx"),
        (lambda: ExceptionGroup("both", [ValueError("a")]), "ExceptionGroup: both"),
    ],
)
async def test_whatever_a_handler_raises_is_a_failed_attempt_and_the_worker_lives(
    bench: Bench, make: Callable[[], BaseException], message: str, is_async: bool
) -> None:
    def fail() -> None:
        raise make()

    if is_async:

        @bench.app.task(name="fail", retries=0)
        async def failing() -> None:
            fail()
    else:
        failing = bench.app.task(name="fail", retries=0)(fail)

    @bench.app.task
    async def fine() -> str:
        return "alive"

    await bench.work(concurrency=1)
    status = await bench.ended(await failing.submit())
    assert status.status == "dead_letter"
    assert message in str(status.error)
    assert "in fail" in status.failures[0].traceback
    assert "test_handlers.py" in status.failures[0].traceback
    assert await (await fine.submit()).result() == "alive"


async def test_a_traceback_shows_the_causes(bench: Bench) -> None:
    @bench.app.task(retries=0)
    async def translate() -> None:
        try:
            raise KeyError("key")
        except KeyError as error:
            raise ValueError("no such setting") from error

    await bench.work()
    handle = await translate.submit()
    with pytest.raises(TaskFailed) as failure:
        await handle.result()
    assert failure.value.message == "ValueError: no such setting"
    assert "KeyError: 'key'" in failure.value.traceback


async def test_a_recursion_without_end_is_a_failed_attempt(bench: Bench) -> None:
    def deeper() -> None:
        deeper()

    @bench.app.task(retries=0)
    def endless() -> None:
        deeper()

    await bench.work()
    assert "RecursionError" in await bench.failure(await endless.submit())


async def test_a_failed_attempt_is_retried_and_counted(bench: Bench) -> None:
    attempts: list[int] = []

    @bench.app.task(retries=1)
    async def second_time(ctx: Context) -> str:
        attempts.append(ctx.attempt)
        if ctx.attempt == 1:
            raise ValueError("not yet")
        return "now"

    worker = await bench.work()
    handle = await second_time.submit()
    clock = bench.door.clock
    assert isinstance(clock, ManualClock)
    await until(lambda: bool(attempts) and not worker.busy_threads)
    clock.advance(6)
    await bench.door.broker.upkeep.promote()
    assert await handle.result() == "now"
    assert attempts == [1, 2]


async def test_options_hold_for_one_submit_and_the_tasks_own_for_the_others(bench: Bench) -> None:
    @bench.app.task(name="other.name", priority=7, timeout=8, retries=9)
    async def one() -> None: ...

    status = await (await one.submit()).status()
    assert (status.task_type, status.priority) == ("other.name", 7)
    assert (status.timeout_seconds, status.max_retries) == (8, 9)
    task_id = str(uuid4())
    at = datetime(2130, 1, 1, tzinfo=UTC)
    changed = one.options(priority=1, timeout=2).options(schedule_at=at, task_id=task_id)
    status = await (await changed.submit()).status()
    assert (status.task_id, status.priority, status.schedule_at) == (task_id, 1, at)
    assert (status.timeout_seconds, status.max_retries) == (2, 9)
    with pytest.raises(InvalidRequest, match="delay cannot go with schedule_at"):
        await changed.options(delay=1).submit()
    with pytest.raises(InvalidRequest, match="priority"):
        await one.options(priority=256).submit()


def test_two_handlers_of_one_name_are_refused() -> None:
    app = App()

    @app.task
    async def one() -> None: ...

    with pytest.raises(ValueError, match="two handlers are called 'one'"):

        @app.task(name="one")
        async def other() -> None: ...

    with pytest.raises(ValueError, match="two handlers are called 'one'"):
        app.raw("one")(lambda payload: payload)


def test_arguments_without_names_are_refused() -> None:
    def several(*numbers: int) -> None: ...
    def named(**numbers: int) -> None: ...

    for function in (several, named):
        with pytest.raises(TypeError, match="numbers cannot be a task's parameter"):
            App().task(function)


def test_the_function_itself_can_be_called() -> None:
    @App().task
    def add(a: int, b: int) -> int:
        return a + b

    assert add.function(1, 2) == 3


async def test_a_handler_may_submit(bench: Bench) -> None:
    @bench.app.task
    async def child(n: int) -> int:
        return n + 1

    @bench.app.task
    async def parent(n: int) -> int:
        return await (await child.submit(n)).result() + 1

    @bench.app.task
    def parent_in_thread(n: int) -> int:
        return child.submit_sync(n).result_sync() + 1

    await bench.work()
    assert await (await parent.submit(1)).result() == 3
    assert await (await parent_in_thread.submit(1)).result() == 3
