"""Bad words and bad bytes at the native door: refused by name, nothing changed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from taskqueue.doors.grammar import GRAMMARS
from taskqueue.doors.handshake import HANDSHAKES
from tests.support.broker import until_parked
from tests.support.resp import RespClient, RespHouse, Word, a_resp_house, words_of

ID = "01890a5d-ac96-774b-bcce-b302099a8057"
PING = words_of("PING")


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[RespHouse]:
    async with a_resp_house(tmp_path / "data") as house:
        yield house


@pytest.fixture
async def client(house: RespHouse) -> RespClient:
    return await house.connect()


async def count(house: RespHouse) -> int:
    """Tasks kept."""
    return sum(count.present for count in await house.broker.counts())


NOT_WHOLE: list[Word] = [
    *("1_000", " 5", "5 ", "+5", "5.0", "1e2", "0x5", "", "-", "--5", "five", "true", "null"),
    *("٣", "５", "²", "5\n", "5\x00", b"\xff", "NaN", "9" * 21, "9" * 5_000),
]
NOT_DECIMAL: list[Word] = [
    *("1_0.5", " 0.5", "0.5 ", "+0.5", ".5", "5.", "1e-2", "", "-", "٠.٥", "0,5", "0.5\n"),
    *("nan", "inf", "-inf", "Infinity", "9" * 21, "0." + "1" * 21, b"\xff"),
]
WHOLE_FIELDS: list[tuple[str, tuple[Word, ...]]] = [
    ("priority", ("TQ.SUBMIT", "work", "x", "PRIORITY")),
    ("timeout_seconds", ("TQ.SUBMIT", "work", "x", "TIMEOUT")),
    ("max_retries", ("TQ.SUBMIT", "work", "x", "RETRIES")),
    ("wait_ms", ("TQ.WAIT", ID)),
    ("limit", ("TQ.LIST", "LIMIT")),
    ("offset", ("TQ.LIST", "OFFSET")),
    ("token", ("TQ.COMPLETE", ID)),
    ("token", ("TQ.RELEASE", ID)),
    ("token", ("TQ.BEAT", "w1", ID)),
]
DECIMAL_FIELDS: list[tuple[str, tuple[Word, ...]]] = [
    ("delay_seconds", ("TQ.SUBMIT", "work", "x", "DELAY")),
    ("delay_seconds", ("TQ.FAIL", ID, 1, "no", "DELAY")),
    ("fraction", ("TQ.PROGRESS", ID, 1)),
]


@pytest.mark.parametrize(("field", "words"), WHOLE_FIELDS, ids=lambda value: value[0])
async def test_whole_numbers_are_digits_and_nothing_else(
    house: RespHouse, client: RespClient, field: str, words: tuple[Word, ...]
) -> None:
    for bad in NOT_WHOLE:
        error = await client.error(*words, bad)
        assert error.startswith(f"INVALID_REQUEST {field} must be a whole number, got "), bad
        assert len(error) < 200
    assert await count(house) == 0


@pytest.mark.parametrize("words", [("COUNT",), ("BLOCK",)])
async def test_numbers_of_a_claim_are_digits_too(
    house: RespHouse, client: RespClient, words: tuple[Word, ...]
) -> None:
    await client.submit()
    for bad in NOT_WHOLE:
        error = await client.error("TQ.CLAIM", "w1", *words, bad, "TYPES", "work")
        assert "must be a whole number, got " in error
    assert len(await client.claim()) == 1


@pytest.mark.parametrize(("field", "words"), DECIMAL_FIELDS, ids=lambda value: value[0])
async def test_decimal_numbers_are_digits_and_one_point(
    house: RespHouse, client: RespClient, field: str, words: tuple[Word, ...]
) -> None:
    for bad in NOT_DECIMAL:
        error = await client.error(*words, bad)
        assert error.startswith(f"INVALID_REQUEST {field} must be a decimal number, got "), bad
    assert await count(house) == 0


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("TQ.SUBMIT", "work", "x", "PRIORITY", -1), "priority must be a whole number between 0"),
        (("TQ.SUBMIT", "work", "x", "PRIORITY", 256), "and 255, got 256"),
        (("TQ.SUBMIT", "work", "x", "PRIORITY", 2**63), "priority must be"),
        (("TQ.SUBMIT", "work", "x", "PRIORITY", 2**64), "priority must be"),
        (("TQ.SUBMIT", "work", "x", "TIMEOUT", 0), "timeout_seconds must be"),
        (("TQ.SUBMIT", "work", "x", "TIMEOUT", 31_536_001), "timeout_seconds must be"),
        (("TQ.SUBMIT", "work", "x", "RETRIES", -1), "max_retries must be"),
        (("TQ.SUBMIT", "work", "x", "RETRIES", 1_001), "max_retries must be"),
        (("TQ.SUBMIT", "work", "x", "DELAY", "-0.1"), "delay_seconds must be a number between 0"),
        (("TQ.SUBMIT", "work", "x", "DELAY", 315_360_001), "delay_seconds must be"),
        (("TQ.SUBMIT", "work", "x", "AT", "tomorrow"), "schedule_at must be a date and time"),
        (("TQ.SUBMIT", "work", "x", "AT", "2024-01-01T12:00:60Z"), "schedule_at must be"),
        (("TQ.SUBMIT", "work", "x", "AT", "1700000000"), "schedule_at must be"),
        (("TQ.SUBMIT", "work", "x", "AT", "9999-12-31T23:59:59-23:59"), "schedule_at must lie"),
        (
            ("TQ.SUBMIT", "work", "x", "AT", "2024-01-01T12:00:00Z", "DELAY", "1"),
            "delay_seconds cannot go with schedule_at",
        ),
        (("TQ.SUBMIT", "work", "x", "ID", "rot"), "task_id must be a UUID"),
        (("TQ.SUBMIT", "work", "x", "ID", ID.replace("-", "")), "task_id must be a UUID"),
        (("TQ.SUBMIT", "work", "x", "ID", f"{{{ID}}}"), "task_id must be a UUID"),
        (("TQ.SUBMIT", "work", "x", "ID", "x" * 10_240), "task_id must be a UUID"),
        (("TQ.SUBMIT", "work", "x", "ID", b"\xff"), "task_id must be UTF-8 text"),
        (("TQ.SUBMIT", "", "x"), "task_type must be text of 1 to 255"),
        (("TQ.SUBMIT", "x" * 256, "x"), "task_type must be text of 1 to 255"),
        (("TQ.SUBMIT", "two words", "x"), "task_type must be text"),
        (("TQ.SUBMIT", "a\r\nb", "x"), r"printable characters without spaces, got a\r\nb"),
        (("TQ.SUBMIT", "a\x00", "x"), "task_type must be text"),
        (("TQ.SUBMIT", "a\u202e", "x"), "task_type must be text"),
        (("TQ.SUBMIT", b"\xff", "x"), "task_type must be UTF-8 text"),
        (("TQ.SUBMIT", b"\xed\xa0\x80", "x"), "task_type must be UTF-8 text"),
        (("TQ.SUBMIT", "work", "x", "COLOUR", "red"), "unknown option 'COLOUR'; usage: TQ.SUBMIT "),
        (("TQ.SUBMIT", "work", "x", "PRIORITY"), "option PRIORITY needs a value"),
        (("TQ.SUBMIT", "work", "x", "RETRIES", 1, "PRIORITY"), "option PRIORITY needs a value"),
        (
            ("TQ.SUBMIT", "work", "x", "PRIORITY", 1, "priority", 1),
            "option PRIORITY is given twice",
        ),
        (("TQ.SUBMIT", "work", "x", b"\xff\r\n", "1"), "unknown option "),
        (("TQ.SUBMIT", "work"), "too few words; usage: TQ.SUBMIT task_type payload ["),
        (("TQ.SUBMIT",), "too few words; usage: TQ.SUBMIT "),
        (("TQ.GET",), "too few words; usage: TQ.GET task_id"),
        (("TQ.GET", ID, "x"), "unknown option 'x'; usage: TQ.GET task_id"),
        (("TQ.STATS", "x"), "unknown option 'x'; usage: TQ.STATS"),
        (("TQ.WAIT", ID, -1), "wait_ms must be a whole number between 0 and 3600000"),
        (("TQ.WAIT", ID, 3_600_001), "wait_ms must be"),
        (("TQ.LIST", "STATUS", "sleeping"), "status must be one of pending, "),
        (("TQ.LIST", "STATUS", "PENDING"), "status must be one of pending, "),
        (("TQ.LIST", "TYPE", ""), "task_type must be"),
        (("TQ.LIST", "LIMIT", 0), "limit must be a whole number between 1 and 1000"),
        (("TQ.LIST", "LIMIT", 1_001), "limit must be"),
        (("TQ.LIST", "OFFSET", -1), "offset must be"),
        (("TQ.LIST", "OFFSET", 2**53), "offset must be"),
        (("TQ.LIST", "CURSOR", "rot"), "cursor must be"),
        (("TQ.LIST", "CURSOR", "x" * 65), "cursor must be"),
        (("TQ.LIST", "CURSOR", "1-0", "OFFSET", 1), "offset cannot go with a cursor"),
        (("TQ.CLAIM", "w1"), "task_types is missing"),
        (("TQ.CLAIM", "w1", "TYPES"), "task_types must be a list of 1 to 100 entries"),
        (("TQ.CLAIM", "w1", "work"), "unknown option 'work'; usage: TQ.CLAIM "),
        (("TQ.CLAIM", "w1", "TYPES", *map(str, range(101))), "task_types must be a list"),
        (("TQ.CLAIM", "w1", "TYPES", "work", "x y"), "task_types"),
        (("TQ.CLAIM", "w1", "TYPES", b"\xff"), "task_types must be UTF-8 text"),
        (("TQ.CLAIM", "w\n1", "TYPES", "work"), r"worker_id must be text"),
        (("TQ.CLAIM", "", "TYPES", "work"), "worker_id must be text"),
        (("TQ.CLAIM", "w" * 256, "TYPES", "work"), "worker_id must be text"),
        (("TQ.CLAIM", "w1", "COUNT", 0, "TYPES", "work"), "count must be a whole number between 1"),
        (("TQ.CLAIM", "w1", "COUNT", 501, "TYPES", "work"), "count must be"),
        (("TQ.CLAIM", "w1", "COUNT", 10**9, "TYPES", "work"), "count must be"),
        (("TQ.CLAIM", "w1", "BLOCK", -1, "TYPES", "work"), "wait_ms must be"),
        (("TQ.CLAIM", "w1", "BLOCK", 3_600_001, "TYPES", "work"), "wait_ms must be"),
        (("TQ.CLAIM", "w1", "BLOCK", 2**63, "TYPES", "work"), "wait_ms must be"),
        (("TQ.CLAIM", "w1", "COUNT", 1, "COUNT", 1, "TYPES", "work"), "COUNT is given twice"),
        (("TQ.COMPLETE", ID, -1), "token must be a whole number between 0"),
        (("TQ.COMPLETE", ID, 2**63), "token must be"),
        (("TQ.COMPLETE", ID, 1, "RESULT"), "option RESULT needs a value"),
        (("TQ.COMPLETE", ID, 1, "done"), "unknown option 'done'"),
        (("TQ.FAIL", ID, 1), "too few words; usage: TQ.FAIL "),
        (("TQ.FAIL", ID, 1, "no", "RETRYABLE", "true"), "retryable must be yes or no, got 'true'"),
        (("TQ.FAIL", ID, 1, "no", "RETRYABLE", ""), "retryable must be yes or no"),
        (("TQ.FAIL", ID, 1, "no", "DELAY", 315_360_001), "delay_seconds must be"),
        (("TQ.PROGRESS", ID, 1, "1.01"), "fraction must be a number between 0"),
        (("TQ.PROGRESS", ID, 1, "-0.5"), "fraction must be"),
        (("TQ.PROGRESS", ID, 1, "0.5", "NOTE", "x" * 1_001), "note must be text of at most 1000"),
        (("TQ.BEAT",), "too few words; usage: TQ.BEAT worker_id [task_id token …]"),
        (("TQ.BEAT", "w1", ID), "held must be pairs of a task id and its token"),
        (("TQ.BEAT", "w1", *([ID, 1] * 501)), "held must be a list of 0 to 500 entries"),
        (("TQ.BEAT", "w1", ID, -1), "held"),
        (("TQ.BEAT", "w1", b"\xff", 1), "task_id must be UTF-8 text"),
        (("TQ.LEAVE", "two words"), "worker_id must be text"),
        (("TQ.LEAVE", "w1", "w2"), "unknown option 'w2'; usage: TQ.LEAVE worker_id"),
    ],
    ids=lambda value: repr(value)[:60],
)
async def test_a_bad_word_is_named_and_changes_nothing(
    house: RespHouse, client: RespClient, words: tuple[Word, ...], complaint: str
) -> None:
    error = await client.error(*words)
    assert error.startswith("INVALID_REQUEST ")
    assert complaint in error
    assert error.isprintable()
    assert len(error) < 600
    assert await client.ask("PING") == b"PONG"
    assert await count(house) == 0
    assert len(house.broker.workers) == 0


@pytest.mark.parametrize("words", [("TQ.COMPLETE",), ("TQ.RELEASE",), ("TQ.FAIL", "no")])
async def test_a_token_that_is_not_the_claims_changes_nothing(
    client: RespClient, words: tuple[str, ...]
) -> None:
    task_id = await client.submit()
    await client.claim()
    before = await client.task(task_id)
    for token in (0, 2, 2**63 - 1):
        error = await client.error(words[0], task_id, token, *words[1:])
        assert error.startswith("LEASE_LOST ")
    assert await client.task(task_id) == before


@pytest.mark.parametrize("data", [b"*0\r\n", b"*-10\r\n", b"\r\n", b"  \n"])
async def test_empty_commands_are_passed_over(house: RespHouse, data: bytes) -> None:
    assert await house.raw(data * 100 + PING) == b"+PONG\r\n"


async def test_half_a_command_is_ignored_and_whole_ones_before_it_are_applied(
    house: RespHouse,
) -> None:
    whole = words_of("TQ.SUBMIT", "work", "first") + words_of("TQ.SUBMIT", "work", "second")
    half = words_of("TQ.SUBMIT", "work", "third" * 100)
    for size in (1, 4, 20, len(half) - 1):
        answers = await house.raw(whole + half[:size])
        assert answers.count(b"$36\r\n") == 2
        assert answers.startswith(b"$36\r\n")
        assert b"\n-" not in answers
    client = await house.connect()
    client.writer.write(whole + half[:-1])
    await client.answers(2)
    client.hang_up()
    await until_parked()
    assert await count(house) == 10
    assert house.door.held_bytes == 0


COMMANDS = st.sampled_from([name.decode() for name in [*GRAMMARS, *HANDSHAKES]])
WORDS: st.SearchStrategy[Word] = st.one_of(
    st.sampled_from(["work", "TYPES", "COUNT", "ID", "DELAY", "AT", "STATUS", "0", "1", "2", ID]),
    st.sampled_from(["RESULT", "RETRYABLE", "no", "SETNAME", "INFO", "DOCS", "3", "pending"]),
    st.binary(max_size=12),
    st.text(max_size=6),
    st.integers(-5, 2**70),
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(COMMANDS, st.lists(WORDS, max_size=6)), min_size=1, max_size=8))
async def test_no_words_make_the_broker_fail(
    house: RespHouse, commands: list[tuple[str, list[Word]]]
) -> None:
    def words(name: str, options: list[Word]) -> list[Word]:
        cleaned = [one.encode(errors="replace") if isinstance(one, str) else one for one in options]
        return [name, *cleaned]

    with capture_logs() as logs:
        answers = await house.raw(b"".join(words_of(*words(*one)) for one in commands))
    assert b"INTERNAL_ERROR" not in answers
    assert [line for line in logs if line["log_level"] == "error"] == []
    assert answers.endswith(b"\r\n")
