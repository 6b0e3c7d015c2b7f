"""Every native command and option, in RESP2 and RESP3."""

from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hiredis
import pytest

from taskqueue.broker.operations import OPERATIONS
from taskqueue.doors.grammar import GRAMMARS
from taskqueue.doors.handshake import HANDSHAKES
from tests.support.resp import RespClient, RespHouse, a_resp_house, as_dict

NOBODY = "01890a5d-ac96-774b-bcce-b302099a8057"
START = b"2023-11-14T22:13:20Z"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[RespHouse]:
    async with a_resp_house(tmp_path / "data") as house:
        yield house


@pytest.fixture
async def client(house: RespHouse) -> RespClient:
    return await house.connect()


async def test_a_submit_answers_with_the_id_and_takes_the_defaults(client: RespClient) -> None:
    task_id = await client.submit(payload=b"\x00\r\n\xff")
    assert await client.task(task_id) == {
        "task_id": task_id.encode(),
        "status": b"pending",
        "created_at": START,
        "updated_at": START,
        "task_type": b"work",
        "priority": 100,
        "worker_id": None,
        "result": None,
        "error": None,
        "retry_count": 0,
        "timeout_seconds": 300,
        "max_retries": 3,
        "schedule_at": START,
        "progress": None,
        "progress_note": b"",
        "failures": [],
        "tags": [],
        "metadata": [],
        "expires_at": None,
    }
    assert await client.claim() == [
        [task_id.encode(), 1, b"work", b"\x00\r\n\xff", 1, 300, 100, START]
    ]


@pytest.mark.parametrize(
    ("options", "field", "value"),
    [
        (("PRIORITY", 0), "priority", 0),
        (("PRIORITY", "255"), "priority", 255),
        (("priority", "-0"), "priority", 0),
        (("DELAY", "90.5"), "schedule_at", b"2023-11-14T22:14:50.500000Z"),
        (("DELAY", "0"), "schedule_at", START),
        (("AT", "2024-01-01T12:00:00Z"), "schedule_at", b"2024-01-01T12:00:00Z"),
        (("AT", "2024-01-01T12:00:00+02:00"), "schedule_at", b"2024-01-01T10:00:00Z"),
        (("AT", "2024-01-01T12:00:00"), "schedule_at", b"2024-01-01T12:00:00Z"),
        (("AT", "1999-01-01T00:00:00Z"), "schedule_at", START),
        (("TIMEOUT", 31_536_000), "timeout_seconds", 31_536_000),
        (("Retries", 0), "max_retries", 0),
        (("RETRIES", 1_000), "max_retries", 1_000),
        (("ID", NOBODY), "task_id", NOBODY.encode()),
        (("ID", NOBODY.upper()), "task_id", NOBODY.encode()),
        (("RETRIES", 7, "PRIORITY", 9, "TIMEOUT", 5), "max_retries", 7),
    ],
)
async def test_options_of_a_submit(
    client: RespClient, options: tuple[str | int, ...], field: str, value: object
) -> None:
    task_id = await client.submit(*options)
    assert (await client.task(task_id))[field] == value


async def test_a_submit_with_an_id_may_be_repeated_but_not_changed(
    house: RespHouse, client: RespClient
) -> None:
    assert [await client.submit("ID", NOBODY) for _ in range(3)] == [NOBODY] * 3
    error = await client.error("TQ.SUBMIT", "work", "other", "ID", NOBODY)
    assert error.startswith("IDEMPOTENCY_CONFLICT ")
    assert sum(count.present for count in await house.broker.counts()) == 1


async def test_names_of_commands_may_be_written_in_any_case(client: RespClient) -> None:
    task_id = await client.ask("tq.Submit", "work", "x")
    assert as_dict(await client.ask("tq.get", task_id))["status"] == b"pending"


async def test_commands_may_be_typed_into_telnet(client: RespClient) -> None:
    client.writer.write(b'tq.submit work "two words\\x00" RETRIES 0\r\n')
    task_id = await client.answer()
    client.writer.write(b"TQ.CLAIM w1 COUNT 5 TYPES work\n")
    [claimed] = await client.answer()
    assert claimed[:4] == [task_id, 1, b"work", b"two words\x00"]


async def test_a_claim_takes_as_many_as_asked_of_the_types_asked_by_priority(
    client: RespClient,
) -> None:
    low, high = await client.submit("PRIORITY", 1), await client.submit("PRIORITY", 200)
    other = await client.submit(task_type="other")
    await client.submit(task_type="third")
    claimed = await client.ask("TQ.CLAIM", "w1", "COUNT", 10, "TYPES", "other", "work", "work")
    assert [one[0].decode() for one in claimed] == [high, other, low]
    assert await client.ask("TQ.CLAIM", "w1", "BLOCK", 0, "COUNT", 1, "TYPES", "work") == []
    assert len(await client.claim(task_type="third")) == 1


async def test_a_claim_may_name_a_type_like_an_option(client: RespClient) -> None:
    task_id = await client.submit(task_type="COUNT")
    [claimed] = await client.ask("TQ.CLAIM", "w1", "TYPES", "TYPES", "COUNT", "5")
    assert claimed[0].decode() == task_id


async def test_a_blocking_claim_in_vain_answers_with_no_task(client: RespClient) -> None:
    assert await client.claim("BLOCK", 1) == []


async def test_an_attempt_that_succeeds(client: RespClient) -> None:
    task_id = await client.submit()
    [[_, token, *_]] = await client.claim()
    assert await client.ask("TQ.COMPLETE", task_id, token, "RESULT", b"\x00done") == b"completed"
    assert await client.ask("TQ.COMPLETE", task_id, token, "RESULT", b"again") == b"completed"
    task = await client.task(task_id)
    assert (task["status"], task["result"], task["error"]) == (b"completed", b"\x00done", None)
    assert (await client.error("TQ.FAIL", task_id, token, "no")).startswith("LEASE_LOST ")


async def test_a_result_may_be_left_out(client: RespClient) -> None:
    task_id = await client.submit()
    await client.claim()
    assert await client.ask("TQ.COMPLETE", task_id, 1) == b"completed"
    assert (await client.task(task_id))["result"] == b""


async def test_an_attempt_that_fails_is_tried_again_after_the_delay_asked_for(
    house: RespHouse, client: RespClient
) -> None:
    task_id = await client.submit("RETRIES", 1)
    await client.claim()
    answer = await client.ask(
        *("TQ.FAIL", task_id, 1, "böse\r\n", "KIND", "ValueError"),
        *("TRACEBACK", "line 1\nline 2", "DELAY", "2.5", "RETRYABLE", "YES"),
    )
    assert answer == b"failed"
    task = await client.task(task_id)
    assert (task["status"], task["retry_count"]) == (b"failed", 1)
    assert task["schedule_at"] == b"2023-11-14T22:13:22.500000Z"
    assert task["error"].decode() == "ValueError: böse\r\n"
    assert as_dict(task["failures"][0]) == {
        "attempt": 1,
        "at": START,
        "worker_id": b"w1",
        "error": "ValueError: böse\r\n".encode(),
        "traceback": b"line 1\nline 2",
    }
    assert await client.claim() == []
    house.clock.advance(2.5)
    await house.broker.upkeep.promote()
    [claimed] = await client.claim()
    assert claimed[1] == 2
    assert claimed[4] == 2, "the second attempt"
    assert await client.ask("TQ.FAIL", task_id, 2, "") == b"dead_letter"


async def test_a_failure_that_must_not_be_retried_is_dead(client: RespClient) -> None:
    task_id = await client.submit("RETRIES", 9)
    await client.claim()
    assert await client.ask("TQ.FAIL", task_id, 1, "no", "RETRYABLE", "no") == b"dead_letter"
    assert await client.ask("TQ.RETRY", task_id) == b"pending"
    assert (await client.error("TQ.RETRY", task_id)).startswith("INVALID_STATUS ")
    assert (await client.task(task_id))["retry_count"] == 0


async def test_progress_can_be_told_and_read(client: RespClient) -> None:
    task_id = await client.submit()
    await client.claim()
    told = await client.ask("TQ.PROGRESS", task_id, 1, "0.25", "NOTE", "a quarter")
    assert told == b"in_progress"
    task = await client.task(task_id)
    assert (task["progress"], task["progress_note"]) == (b"0.25", b"a quarter")
    assert await client.ask("TQ.PROGRESS", task_id, 1, 1) == b"in_progress"
    assert (await client.error("TQ.PROGRESS", task_id, 2, 1)).startswith("LEASE_LOST ")


async def test_a_released_task_goes_back_at_no_cost(client: RespClient) -> None:
    task_id = await client.submit()
    await client.claim()
    assert await client.ask("TQ.RELEASE", task_id, 1) == b"pending"
    [claimed] = await client.claim(worker="w2")
    assert (claimed[1], claimed[4]) == (2, 1)
    assert (await client.error("TQ.COMPLETE", task_id, 1)).startswith("LEASE_LOST ")


async def test_a_running_task_is_cancelled_where_that_is_asked_for(client: RespClient) -> None:
    task_id = await client.submit()
    [[_, token, *_]] = await client.claim()
    assert (await client.error("TQ.CANCEL", task_id)).startswith("INVALID_STATUS ")
    assert await client.ask("TQ.CANCEL", task_id, "RUNNING", "yes") == b"OK"
    assert as_dict(await client.ask("TQ.BEAT", "w1", task_id, token))["lost"] == [task_id.encode()]
    assert (await client.error("TQ.COMPLETE", task_id, token)).startswith("LEASE_LOST ")


async def test_a_task_may_be_given_back_for_later(house: RespHouse, client: RespClient) -> None:
    task_id = await client.submit()
    [[_, token, *_]] = await client.claim()
    assert await client.ask("TQ.RELEASE", task_id, token, "DELAY", 60) == b"pending"
    assert await client.claim() == []
    house.clock.advance(61)
    await house.broker.upkeep.promote()
    [[_, again, _, _, attempt, *_]] = await client.claim()
    assert (again, attempt) == (2, 1)


async def test_a_beat_names_what_is_lost(house: RespHouse, client: RespClient) -> None:
    await client.submit()
    await client.submit()
    [first, second] = await client.claim("COUNT", 2)
    beat = await client.ask("TQ.BEAT", "w1", first[0], first[1], second[0], 7, NOBODY, 1, "rot", 0)
    lost = [second[0], NOBODY.encode(), b"rot"]
    assert as_dict(beat) == {"lost": lost, "lease_seconds": b"30.0", "shared": 0, "order": None}
    assert as_dict(await client.ask("TQ.BEAT", "w2"))["lost"] == []
    assert len(house.broker.workers) == 2


async def test_a_beat_that_does_not_name_a_claim_gives_it_up_after_a_lease(
    house: RespHouse, client: RespClient
) -> None:
    task_id = await client.submit()
    await client.claim()
    await client.ask("TQ.BEAT", "w1")
    assert (await client.task(task_id))["status"] == b"in_progress"
    house.clock.advance(31)
    await client.ask("TQ.BEAT", "w1")
    assert (await client.task(task_id))["status"] == b"failed"


async def test_a_worker_that_leaves_gives_back_what_it_holds(
    house: RespHouse, client: RespClient
) -> None:
    for _ in range(3):
        await client.submit()
    await client.claim("COUNT", 2)
    assert await client.ask("TQ.LEAVE", "w1") == 2
    assert await client.ask("TQ.LEAVE", "w1") == 0
    assert [one[4] for one in await client.claim("COUNT", 3)] == [1, 1, 1]


async def test_cancel(client: RespClient) -> None:
    task_id = await client.submit()
    assert await client.ask("TQ.CANCEL", task_id) == b"OK"
    assert (await client.error("TQ.CANCEL", task_id)).startswith("INVALID_STATUS ")
    assert await client.claim() == []


async def test_a_wait_answers_with_the_task_once_it_has_ended(house: RespHouse) -> None:
    client, worker = await house.connect(), await house.connect()
    task_id = await client.submit()
    client.send("TQ.WAIT", task_id, 3_600_000)
    await worker.claim()
    await worker.ask("TQ.COMPLETE", task_id, 1, "RESULT", "yes")
    task = as_dict(await client.answer())
    assert (task["status"], task["result"]) == (b"completed", b"yes")
    assert as_dict(await client.ask("TQ.WAIT", task_id, 3_600_000)) == task


async def test_a_wait_in_vain_answers_with_the_task_as_it_stands(client: RespClient) -> None:
    task_id = await client.submit()
    for patience in (0, 1):
        assert as_dict(await client.ask("TQ.WAIT", task_id, patience))["status"] == b"pending"


@pytest.mark.parametrize(
    "words",
    [
        ("TQ.GET", NOBODY),
        ("TQ.GET", "rot"),
        ("TQ.WAIT", NOBODY, 3_600_000),
        ("TQ.CANCEL", NOBODY),
        ("TQ.RETRY", NOBODY),
        ("TQ.COMPLETE", NOBODY, 1),
        ("TQ.FAIL", NOBODY, 1, "no"),
        ("TQ.PROGRESS", NOBODY, 1, 0),
        ("TQ.RELEASE", NOBODY, 1),
    ],
)
async def test_what_nobody_has_submitted_is_not_found(
    client: RespClient, words: tuple[str | int, ...]
) -> None:
    assert await client.error(*words) == "TASK_NOT_FOUND Task not found"


async def test_lists_are_filtered_and_cut_into_pages(client: RespClient) -> None:
    ids = [await client.submit() for _ in range(5)]
    await client.submit(task_type="other")
    gone = await client.submit()
    await client.ask("TQ.CANCEL", gone)
    page = as_dict(
        await client.ask("TQ.LIST", "STATUS", "pending", "TYPE", "work", "LIMIT", 2, "OFFSET", 1)
    )
    assert (page["total"], page["limit"], page["offset"]) == (5, 2, 1)
    assert [as_dict(one)["task_id"].decode() for one in page["tasks"]] == [ids[3], ids[2]]
    assert as_dict(page["tasks"][0]) == {
        "task_id": ids[3].encode(),
        "status": b"pending",
        "task_type": b"work",
        "priority": 100,
        "created_at": START,
        "updated_at": START,
    }
    cursor = page["next_cursor"]
    filters = ("STATUS", "pending", "TYPE", "work")
    rest = as_dict(await client.ask("TQ.LIST", *filters, "CURSOR", cursor))
    assert [as_dict(one)["task_id"].decode() for one in rest["tasks"]] == [ids[1], ids[0]]
    assert rest["next_cursor"] is None
    assert (await client.error("TQ.LIST", "CURSOR", cursor)).startswith("INVALID_REQUEST cursor ")
    assert as_dict(await client.ask("TQ.LIST"))["total"] == 7


async def test_statistics_and_health(client: RespClient) -> None:
    await client.submit("PRIORITY", 200)
    await client.submit()
    await client.claim()
    assert as_dict(await client.ask("TQ.STATS")) == {
        "pending_count": 1,
        "in_progress_count": 1,
        "completed_last_hour": 0,
        "failed_last_hour": 0,
        "worker_count": 1,
        "avg_processing_time_ms": b"0.0",
        "queue_depth_by_priority": [b"high", 0, b"normal", 1, b"low", 0],
    }
    assert as_dict(await client.ask("TQ.HEALTH")) == {
        "status": b"healthy",
        "is_leader": 1,
        "connected_workers": 1,
        "pending_tasks": 1,
        "cluster_healthy": 1,
    }


async def test_resp3_has_maps_numbers_and_truth(client: RespClient) -> None:
    hello = await client.ask("HELLO", 3)
    assert (hello[b"proto"], hello[b"server"]) == (3, b"taskqueue")
    task_id = await client.submit()
    await client.claim()
    await client.ask("TQ.PROGRESS", task_id, 1, "0.5")
    await client.ask("TQ.FAIL", task_id, 1, "no")
    task = await client.ask("TQ.GET", task_id)
    assert (task[b"progress"], task[b"result"]) == (0.5, None)
    assert task[b"failures"][0][b"error"] == b"no"
    assert (await client.ask("TQ.HEALTH"))[b"is_leader"] is True
    assert (await client.ask("TQ.STATS"))[b"queue_depth_by_priority"][b"normal"] == 0
    page = await client.ask("TQ.LIST", "STATUS", "failed")
    assert page[b"tasks"][0][b"task_id"].decode() == task_id
    assert page[b"next_cursor"] is None
    beat = await client.ask("TQ.BEAT", "w1")
    assert beat == {b"lost": [], b"lease_seconds": 30.0, b"shared": False, b"order": None}
    assert (await client.ask("TQ.WAIT", task_id, 0))[b"status"] == b"failed"


async def test_hello(client: RespClient) -> None:
    expected = {
        "server": b"taskqueue",
        "version": version("taskqueue").encode(),
        "proto": 2,
        "id": 1,
        "mode": b"standalone",
        "role": b"master",
        "modules": [],
    }
    assert as_dict(await client.ask("HELLO")) == expected
    assert as_dict(await client.ask("HELLO", 2)) == expected
    options = ("AUTH", "default", "key", "SETNAME", "me")
    assert (await client.ask("HELLO", 3, *options))[b"proto"] == 3
    assert await client.ask("CLIENT", "GETNAME") == b"me"
    assert (await client.ask("HELLO", 3, "SETNAME", "you", "AUTH", "x", "y"))[b"proto"] == 3
    assert await client.ask("CLIENT", "GETNAME") == b"you"
    assert (await client.ask("HELLO"))[b"proto"] == 3, "it says what is spoken"
    assert as_dict(await client.ask("HELLO", 2))["proto"] == 2


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("HELLO", 4), "NOPROTO "),
        (("HELLO", 1), "NOPROTO "),
        (("HELLO", "3\r\n"), "NOPROTO "),
        (("HELLO", 3, "AUTH", "x"), "ERR syntax error"),
        (("HELLO", 3, "SETNAME"), "ERR syntax error"),
        (("HELLO", 3, "SETNAME", "x", "BAD"), "ERR syntax error"),
        (("AUTH",), "ERR wrong number of arguments for 'auth' command"),
        (("AUTH", "a", "b", "c"), "ERR wrong number"),
        (("PING", "a", "b"), "ERR wrong number of arguments for 'ping' command"),
        (("ECHO",), "ERR wrong number"),
        (("SELECT", "1"), "ERR DB index is out of range"),
        (("SELECT",), "ERR "),
        (("CLIENT",), "ERR unknown CLIENT subcommand"),
        (("CLIENT", "KILL", "x"), "ERR unknown CLIENT subcommand"),
        (("CLIENT", "SETNAME"), "ERR "),
        (("COMMAND", "LIST"), "ERR unknown COMMAND subcommand"),
        (("MULTI",), "ERR unknown command 'MULTI'"),
        (("SUBSCRIBE", "x"), "ERR unknown command 'SUBSCRIBE'"),
        (("GET", "x"), "ERR unknown command 'GET'"),
        (("",), "ERR unknown command ''"),
        (("TQ.SUBMIT\x00",), "ERR unknown command 'TQ.SUBMIT "),
        (("-ERR\r\n+OK\r\n",), "ERR unknown command '-ERR  +OK  '"),
        (("\x1b[31m\u2028" + "x" * 5_000,), "ERR unknown command ' [31m xxx"),
    ],
)
async def test_what_is_refused_leaves_the_connection_as_it_was(
    client: RespClient, words: tuple[str | int, ...], code: str
) -> None:
    assert (await client.error(*words)).startswith(code)
    assert as_dict(await client.ask("HELLO"))["proto"] == 2
    assert await client.ask("CLIENT", "GETNAME") == b""
    assert await client.ask("PING") == b"PONG"


async def test_words_about_the_connection(house: RespHouse, client: RespClient) -> None:
    assert await client.ask("PING") == b"PONG"
    assert await client.ask("ping", b"\x00\r\n") == b"\x00\r\n"
    assert await client.ask("ECHO", b"\xff") == b"\xff"
    assert await client.ask("AUTH", "key") == b"OK"
    assert await client.ask("AUTH", "user", "key") == b"OK"
    assert await client.ask("SELECT", 0) == b"OK"
    assert await client.ask("CLIENT", "SETINFO", "LIB-NAME", "x") == b"OK"
    assert await client.ask("client", "setname", "me") == b"OK"
    assert await client.ask("CLIENT", "ID") == 1
    assert await (await house.connect()).ask("CLIENT", "ID") == 2
    assert b"taskqueue_version:" in await client.ask("INFO", "server")


async def test_reset_forgets_what_was_agreed(client: RespClient) -> None:
    await client.ask("HELLO", 3, "SETNAME", "me")
    assert await client.ask("RESET") == b"RESET"
    assert as_dict(await client.ask("HELLO"))["proto"] == 2
    assert await client.ask("CLIENT", "GETNAME") == b""


async def test_quit_answers_and_hangs_up_without_what_came_after(
    house: RespHouse, client: RespClient
) -> None:
    client.send("TQ.SUBMIT", "work", "x")
    client.send("QUIT")
    client.send("TQ.SUBMIT", "work", "x")
    answers = await client.rest()
    assert answers.endswith(b"\r\n+OK\r\n")
    assert sum(count.present for count in await house.broker.counts()) == 1


async def test_the_commands_are_listed_for_tools_that_ask(client: RespClient) -> None:
    names = {name.decode().lower() for name in [*GRAMMARS, *HANDSHAKES]}
    assert names >= {operation.native.lower() for operation in OPERATIONS if operation.native}
    assert await client.ask("COMMAND", "COUNT") == len(names)
    listed = await client.ask("COMMAND")
    assert {one[0].decode() for one in listed} == names
    assert all(len(one) == 10 for one in listed)
    [known, unknown] = await client.ask("COMMAND", "INFO", "TQ.GET", "nix")
    assert (known[:2], unknown) == ([b"tq.get", 2], None)
    docs = as_dict(await client.ask("COMMAND", "DOCS"))
    assert set(docs) == names
    assert all(as_dict(one)["summary"] for one in docs.values())
    assert list(as_dict(await client.ask("COMMAND", "DOCS", "tq.submit", "nix"))) == ["tq.submit"]


async def test_no_two_connections_share_a_dialect(house: RespHouse) -> None:
    two, three = await house.connect(), await house.connect()
    await three.ask("HELLO", 3)
    answers: list[Any] = [await client.ask("TQ.HEALTH") for client in (two, three)]
    assert [type(answer) for answer in answers] == [list, dict]


async def test_a_change_of_dialect_holds_from_there_on(client: RespClient) -> None:
    for words in (("TQ.HEALTH",), ("HELLO", 3), ("TQ.HEALTH",), ("HELLO", 2), ("TQ.HEALTH",)):
        client.send(*words)
    answers = await client.answers(5)
    assert [type(answer) for answer in answers] == [list, dict, dict, list, list]


async def test_errors_are_values_among_answers(client: RespClient) -> None:
    assert isinstance(await client.ask("TQ.GET"), hiredis.ReplyError)
    assert await client.ask("PING") == b"PONG"
