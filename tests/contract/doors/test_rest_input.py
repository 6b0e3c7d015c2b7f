"""Bad input over REST: the answer names field, problem and fix, and nothing is changed."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from taskqueue.core.clock import ManualClock
from taskqueue.doors import rest_input
from taskqueue.wire import messages as m
from tests.support.broker import claimed, until_parked
from tests.support.rest import TASKS, Reply, RestClient, a_rest_client

pytestmark = pytest.mark.asyncio(loop_scope="module")

GOOD = {"task_type": "work", "payload": "eA=="}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RestClient]:
    folder = tmp_path_factory.mktemp("broker") / "data"
    async with a_rest_client(folder, clock=ManualClock()) as client:
        yield client


async def refused(client: RestClient, body: object, **headers: str) -> Reply:
    """The answer to a submit that must leave the queue as it was."""
    before = await client.broker.counts()
    reply = await client.ask("POST", TASKS, body, headers)
    assert 400 <= reply.status < 500, reply
    assert set(reply.json) == {"error", "code", "timestamp"}
    assert await client.broker.counts() == before
    return reply


def with_priority(literal: str) -> bytes:
    return b'{"task_type": "work", "payload": "", "priority": %b}' % literal.encode()


@pytest.mark.parametrize(
    "literal",
    ["-1", "256", "1.0", "1e2", '"5"', "true", "null", str(2**63), str(2**64), "9" * 5000, "[5]"],
)
async def test_a_priority_is_a_whole_number_up_to_255(client: RestClient, literal: str) -> None:
    reply = await refused(client, with_priority(literal))
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    demand = "priority must be a whole number between 0 and 255, got "
    assert reply.json["error"].startswith(demand + literal[:60])


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "+1", "01", "0x10", "1_000"])
async def test_what_is_no_json_number_is_refused(client: RestClient, literal: str) -> None:
    reply = await refused(client, with_priority(literal))
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")


@pytest.mark.parametrize(("literal", "priority"), [("0", 0), ("-0", 0), ("255", 255)])
async def test_priorities_at_the_edges_are_taken(
    client: RestClient, literal: str, priority: int
) -> None:
    task_id = (await client.ask("POST", TASKS, with_priority(literal))).json["task_id"]
    assert (await client.ask("GET", f"{TASKS}/{task_id}")).json["priority"] == priority


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("timeout_seconds", 0, "timeout_seconds must be a whole number between 1 and 31536000"),
        ("timeout_seconds", -1, "timeout_seconds must be a whole number between 1 and 31536000"),
        ("timeout_seconds", 2**63, "timeout_seconds must be a whole number between 1 and "),
        ("max_retries", 2**32, "max_retries must be a whole number between 0 and 1000"),
        ("max_retries", False, "max_retries must be a whole number between 0 and 1000, got false"),
        ("delay_seconds", 86400 * 365 * 1e9, "delay_seconds must be a number between 0 and "),
        ("delay_seconds", -0.5, "delay_seconds must be a number between 0 and "),
        ("delay_seconds", "5", "delay_seconds must be a number between 0 and "),
        ("task_type", None, "task_type must be text of 1 to 255 printable characters without "),
        ("task_type", 5, "task_type must be text of 1 to 255 printable characters without "),
        ("payload", None, "payload must be base64"),
        ("payload", 5, "payload must be base64"),
        ("payload", [1], "payload must be base64"),
        ("task_id", "5", "task_id must be a UUID such as "),
        ("task_id", "0192F0C12F8E7CC298B41F2D3C4B5A69", "task_id must be a UUID such as "),
        ("task_id", 5, "task_id must be text, got 5"),
        ("priorty", 5, "priorty is not a field of this request; did you mean priority?"),
        ("x", 5, "x is not a field of this request; it takes task_type, payload, priority, "),
        ("x" * 500, 5, "x" * 60 + "… is not a field of this request"),
        ("a\nb", 5, "a\\nb is not a field of this request"),
    ],
)
async def test_a_value_that_cannot_be_used_is_named(
    client: RestClient, field: str, value: object, error: str
) -> None:
    reply = await refused(client, {**GOOD, field: value})
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert reply.json["error"].startswith(error)


@pytest.mark.parametrize("field", ["task_type", "payload"])
async def test_a_required_field_that_is_missing_is_named(client: RestClient, field: str) -> None:
    reply = await refused(client, {name: GOOD[name] for name in GOOD if name != field})
    assert reply.json["error"] == f"{field} is missing; it is required"


@pytest.mark.parametrize(
    "text",
    [
        *(
            "!!!",
            "YQ",
            "YQ=",
            "Y Q==",
            " YQ==",
            "YQ==\n",
            "YQ==YQ==",
            "YR==",
            "YWJ=",
            "_-==",
            "====",
        ),
        *("Y", "=", "YQ===", "YW=h", "YWFhYQ==YWFh", "YQ\u0000=", "ＹＱ==", "data:,YQ=="),
    ],
)
async def test_only_canonical_base64_is_taken(client: RestClient, text: str) -> None:
    reply = await refused(client, {**GOOD, "payload": text})
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert reply.json["error"].startswith("payload must be base64 in the standard alphabet")


@pytest.mark.parametrize("length", [*range(0, 7), 255, 256, 10_001])
async def test_bytes_of_any_length_arrive_as_they_were(client: RestClient, length: int) -> None:
    payload = bytes(number * 7 % 256 for number in range(length))
    await client.submit(task_type=f"bytes{length}", payload=base64.b64encode(payload).decode())
    [one] = await claimed(client.broker, f"bytes{length}")
    assert one.payload == payload


async def test_an_escaped_payload_is_the_same_payload(client: RestClient) -> None:
    body = b'{"task_type": "escaped", "payload": "\\u0059Q=\\u003d"}'
    assert (await client.ask("POST", TASKS, body)).status == 201
    [one] = await claimed(client.broker, "escaped")
    assert one.payload == b"a"


@pytest.mark.parametrize(
    "text",
    [
        *("0000-01-01T00:00:00Z", "2024-02-30T00:00:00Z", "2024-01-01T24:00:00Z", "2024-01-01"),
        *("2024-01-01T23:59:60Z", "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59"),
        *("10000-01-01T00:00:00Z", "1700000000", "now", "", "2" * 100_000),
    ],
)
async def test_a_date_that_is_none_is_refused(client: RestClient, text: str) -> None:
    reply = await refused(client, {**GOOD, "schedule_at": text})
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert reply.json["error"].startswith("schedule_at must ")
    assert len(reply.body) < 400


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("2030-01-01T12:00:00Z", "2030-01-01T12:00:00Z"),
        ("2030-01-01T12:00:00+02:00", "2030-01-01T10:00:00Z"),
        ("2030-01-01T12:00:00", "2030-01-01T12:00:00Z"),
        ("2030-01-01T12:00:00.123456789Z", "2030-01-01T12:00:00.123457Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
        ("1999-01-01T00:00:00Z", "2023-11-14T22:13:20Z"),
        (None, "2023-11-14T22:13:20Z"),
    ],
)
async def test_a_date_is_utc_and_never_before_now(
    client: RestClient, text: str | None, meant: str
) -> None:
    task_id = await client.submit(schedule_at=text)
    assert (await client.ask("GET", f"{TASKS}/{task_id}")).json["schedule_at"] == meant


async def test_a_date_as_a_number_is_refused(client: RestClient) -> None:
    reply = await refused(client, {**GOOD, "schedule_at": 1_700_000_000})
    assert reply.json["error"].startswith("schedule_at must be a date and time such as ")


async def test_a_delay_does_not_go_with_a_date(client: RestClient) -> None:
    reply = await refused(
        client, {**GOOD, "schedule_at": "2030-01-01T12:00:00Z", "delay_seconds": 5}
    )
    assert "delay_seconds" in reply.json["error"]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "",
            "a" * 256,
            "a b",
            " a",
            "a\u00a0b",
            "a\x00",
            "a\r\nb",
            "a\x7f",
            "a\u200bb",
            "\u202ea",
        ),
        *("a\u2028b", "\ufeffa", "a\n"),
    ],
)
async def test_a_name_that_cannot_be_printed_is_refused(client: RestClient, name: str) -> None:
    reply = await refused(client, {**GOOD, "task_type": name})
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert reply.json["error"].startswith("task_type must be text of 1 to 255 printable")
    assert "\n" not in reply.json["error"]


async def test_a_lone_surrogate_is_refused(client: RestClient) -> None:
    body = b'{"task_type": "a\\ud800", "payload": ""}'
    assert (await refused(client, body)).json["code"] == "INVALID_REQUEST"


@pytest.mark.parametrize(
    "name",
    [
        "a" * 255,
        "../etc",
        "%00",
        "__proto__",
        "';DROP--",
        "<script>",
        "ü",
        "任务",
        "🦆",
        '"\\"',
        "{}",
    ],
)
async def test_any_printable_name_is_kept_as_it_is(client: RestClient, name: str) -> None:
    task_id = await client.submit(task_type=name)
    assert (await client.ask("GET", f"{TASKS}/{task_id}")).json["task_type"] == name


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"5",
        b'"text"',
        b'{"task_type": "a", "payload": ""} x',
        b'{"task_type": "a", "payload": ""}{}',
        b'{"task_type": "a", "payload": "",}',
        b"{'task_type': 'a', 'payload': ''}",
        b'{"task_type": "a", "payload": "" /* none */}',
        b'\xef\xbb\xbf{"task_type": "a", "payload": ""}',
        '{"task_type": "a", "payload": ""}'.encode("utf-16"),
        '{"task_type": "a", "payload": ""}'.encode("utf-32"),
        b'{"task_type": "a\xff", "payload": ""}',
        b'{"task_type": "a\xed\xa0\x80", "payload": ""}',
        b'{"task_type": "a\xc0\xaf", "payload": ""}',
        b'{"task_type": "a\n", "payload": ""}',
        b'{"task_type": "a", "payload": "", "priority": 5, "priority": 5}',
        b'{"task_type": "a", "payload": "", "task_\\u0074ype": "b"}',
        b'{"task_type": "a", "payload": "", "x": ' + b"[" * 100_000,
        b'{"task_type": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b"{" + b",".join(b'"k%d":1' % number for number in range(1_000_000)) + b"}",
        b'{"task_type": "a", "payload": ""' + b', "priority": 5' * 500_000 + b"}",
    ],
    ids=lambda body: repr(body[:60]),
)
async def test_a_body_that_is_not_one_clean_object_is_refused(
    client: RestClient, body: bytes
) -> None:
    reply = await refused(client, body)
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert len(reply.body) < 500


async def test_a_field_given_twice_is_named(client: RestClient) -> None:
    body = b'{"task_type": "a", "payload": "", "priority": 5, "priority": 6}'
    error = (await refused(client, body)).json["error"]
    assert error == "priority is given more than once; give it once"


@pytest.mark.parametrize(
    ("headers", "field"),
    [
        ({"Content-Type": ""}, "Content-Type"),
        ({"Content-Type": "text/plain"}, "Content-Type"),
        ({"Content-Type": "application/x-www-form-urlencoded"}, "Content-Type"),
        ({"Content-Type": "application/json; charset=utf-7"}, "Content-Type"),
        ({"Content-Type": "application/json; charset=utf-8; x=y"}, "Content-Type"),
        ({"Content-Type": "application/jsonp"}, "Content-Type"),
        ({"Content-Type": "application/json\r\nContent-Type: text/plain"}, "Content-Type"),
        ({"Content-Encoding": "gzip"}, "Content-Encoding"),
        ({"Content-Encoding": "br"}, "Content-Encoding"),
        ({"Content-Encoding": "identity, gzip"}, "Content-Encoding"),
    ],
)
async def test_a_body_of_another_kind_is_refused(
    client: RestClient, headers: dict[str, str], field: str
) -> None:
    reply = await refused(client, GOOD, **headers)
    assert (reply.status, reply.json["code"]) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert reply.json["error"].startswith(field)


@pytest.mark.parametrize(
    "kind", ["application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"']
)
async def test_json_may_name_its_character_set(client: RestClient, kind: str) -> None:
    reply = await client.ask(
        "POST", TASKS, GOOD, {"Content-Type": kind, "Content-Encoding": "identity"}
    )
    assert reply.status == 201


async def test_ten_mebibytes_are_taken_and_not_one_byte_more(client: RestClient) -> None:
    largest = base64.b64encode(bytes(m.LARGEST_PAYLOAD)).decode()
    await client.submit(task_type="large", payload=largest)
    [one] = await claimed(client.broker, "large")
    assert one.payload == bytes(m.LARGEST_PAYLOAD)
    too_large = base64.b64encode(bytes(m.LARGEST_PAYLOAD + 1)).decode()
    reply = await refused(client, {**GOOD, "payload": too_large})
    assert (reply.status, reply.json["code"]) == (413, "PAYLOAD_TOO_LARGE")
    assert reply.json["error"] == "payload must be at most 10485760 bytes; send less"


HEAD = f"POST {TASKS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n".encode()


async def test_a_body_over_the_cap_is_refused_before_it_is_sent(client: RestClient) -> None:
    answer = await client.raw(HEAD + b"Content-Length: 14680065\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b'"code":"PAYLOAD_TOO_LARGE"' in answer
    assert b"connection: close\r\n" in answer


async def test_a_body_without_a_length_is_counted_while_it_is_read(client: RestClient) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", client.door.port)
    writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"100000\r\n" + b" " * 0x100000 + b"\r\n"
    for _ in range(15):
        writer.write(chunk)
        await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 10)
    assert answer.startswith(b"HTTP/1.1 413 ")
    writer.close()


async def test_a_chunked_body_is_taken(client: RestClient) -> None:
    body = json.dumps(GOOD).encode()
    chunks = b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n"
    answer = await client.raw(
        HEAD + b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n" + chunks
    )
    assert answer.startswith(b"HTTP/1.1 201 ")


async def test_a_client_that_asks_first_is_told_to_go_on(client: RestClient) -> None:
    body = json.dumps(GOOD).encode()
    head = HEAD + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    answer = await client.raw(head % len(body) + body)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 201 ")


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("limit=0", "limit must be a whole number between 1 and 1000, got 0"),
        ("limit=1001", "limit must be a whole number between 1 and 1000, got 1001"),
        ("limit=-1", "limit must be a whole number between 1 and 1000, got -1"),
        ("limit=abc", "limit must be a whole number between 1 and 1000, got abc"),
        ("limit=", "limit must be a whole number between 1 and 1000, got "),
        ("limit=1_0", "limit must be a whole number between 1 and 1000, got 1_0"),
        ("limit=%205", "limit must be a whole number between 1 and 1000, got  5"),
        ("limit=5.0", "limit must be a whole number between 1 and 1000, got 5.0"),
        ("limit=%D9%A5", "limit must be a whole number between 1 and 1000, got ٥"),
        ("limit=5&limit=5", "limit is given more than once; give it once"),
        ("offset=-1", "offset must be a whole number between 0 and 9007199254740991, got -1"),
        (f"offset={2**63}", "offset must be a whole number between 0 and 9007199254740991"),
        (f"offset={'9' * 5000}", "offset must be a whole number between 0 and "),
        ("status=Pending", "status must be one of pending, in_progress, completed, failed, "),
        ("status=", "status must be one of pending, in_progress, completed, failed, "),
        ("task_type=", "task_type must be text of 1 to 255 printable characters without spaces"),
        ("task_type=a%20b", "task_type must be text of 1 to 255 printable characters"),
        ("task_type=%00", "task_type must be text of 1 to 255 printable characters"),
        ("task_type=%FF", "the query is malformed"),
        ("task_type", "the query is malformed"),
        ("limit=5&&", "the query is malformed"),
        ("&".join(f"a{n}=1" for n in range(101)), "the query is malformed"),
        ("statos=pending", "statos is not a field of this request; did you mean status?"),
        ("wait=5", "wait is not a field of this request"),
        ("cursor=zz", "cursor must be the next_cursor of a page with the same filters"),
        ("cursor=1-00000000", "cursor must be the next_cursor of a page"),
        ("cursor=-1-0", "cursor must be the next_cursor of a page"),
        (f"cursor={'a' * 65}", "cursor must be text of at most 64 characters"),
    ],
)
async def test_a_list_with_bad_parameters_is_refused(
    client: RestClient, query: str, error: str
) -> None:
    reply = await client.ask("GET", f"{TASKS}?{query}")
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert reply.json["error"].startswith(error)


async def test_a_cursor_is_good_for_its_own_filter_only(client: RestClient) -> None:
    for _ in range(2):
        await client.submit(task_type="cursor")
    cursor = (await client.ask("GET", f"{TASKS}?task_type=cursor&limit=1")).json["next_cursor"]
    for query in (f"task_type=cursor&cursor={cursor[:-1]}", f"task_type=other&cursor={cursor}"):
        assert (await client.ask("GET", f"{TASKS}?{query}")).status == 400
    with_offset = await client.ask("GET", f"{TASKS}?task_type=cursor&cursor={cursor}&offset=1")
    assert with_offset.status == 400
    assert with_offset.json["error"].startswith("offset ")


@pytest.mark.parametrize("value", ["-1", "3600.001", "3601", "abc", "", "1e", "inf", "nan", "%201"])
async def test_a_wait_is_a_number_of_seconds_up_to_an_hour(client: RestClient, value: str) -> None:
    task_id = await client.submit()
    reply = await client.ask("GET", f"{TASKS}/{task_id}?wait={value}")
    assert reply.status == 400
    assert reply.json["error"].startswith("wait must be a number of seconds between 0 and 3600")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", TASKS),
        ("POST", f"{TASKS}/batch"),
        ("DELETE", f"{TASKS}/0192f0c1-2f8e-7cc2-98b4-1f2d3c4b5a69"),
        ("POST", f"{TASKS}/0192f0c1-2f8e-7cc2-98b4-1f2d3c4b5a69/retry"),
        ("GET", f"{TASKS}/0192f0c1-2f8e-7cc2-98b4-1f2d3c4b5a69"),
        ("GET", "/api/v1/stats"),
        ("GET", "/api/v1/health"),
        ("GET", "/metrics"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
    ],
)
async def test_a_parameter_that_nobody_knows_is_refused_by_name(
    client: RestClient, method: str, path: str
) -> None:
    reply = await client.ask(method, f"{path}?task_id=5", GOOD if path == TASKS else None)
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert "task_id" in reply.json["error"]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"tasks": []}, "tasks must be a list of 1 to 10000 entries, got 0"),
        ({"tasks": [GOOD] * 10_001}, "tasks must be a list of 1 to 10000 entries, got 10001"),
        (b'{"tasks": [' + b"0," * 5_000_000 + b"0]}", "tasks must be a list of 1 to 10000"),
        ({"tasks": 5}, "tasks must be a list of 1 to 10000 entries"),
        ({"tasks": None}, "tasks must be a list of 1 to 10000 entries"),
        ({}, "tasks is missing; it is required"),
        ([GOOD], "the body must be a JSON object, got array"),
        ({"tasks": [GOOD], "task": 1}, "task is not a field of this request; did you mean tasks?"),
        (b'{"tasks": [], "tasks": [{}]}', "tasks is given more than once; give it once"),
        (b'{"tasks": [{}]', "the body is not valid JSON"),
        (b'{"tasks": [' + b"[" * 100_000, "the "),
        (b'{"tasks": [{"task_type": "a\xff"}]}', "the request is not valid UTF-8"),
        (
            b'{"tasks": [{' + b'"priority": 5,' * 900_000 + b'"priority": 5}]}',
            "tasks must be a list",
        ),
        (b'{"tasks": [{' + b'"priority": 5,' * 6_000 + b'"priority": 5}]}', "the body has more"),
    ],
    ids=lambda value: repr(value)[:40],
)
async def test_a_batch_that_is_wrong_as_a_whole_is_refused(
    client: RestClient, body: object, error: str
) -> None:
    before = await client.broker.counts()
    reply = await client.ask("POST", f"{TASKS}/batch", body)
    assert (reply.status, reply.json["code"]) == (400, "INVALID_REQUEST")
    assert reply.json["error"].startswith(error)
    assert await client.broker.counts() == before


@pytest.mark.parametrize(
    ("entry", "code"),
    [
        (b'{"task_type": "a", "payload": "", "payload": ""}', "INVALID_REQUEST"),
        (b'{"task_type": "a", "payload": "", "x": %s}' % (b"9" * 5000), "INVALID_REQUEST"),
        (b'{"task_type": "a", "payload": "%s"}' % (b"A" * 13_981_020), "PAYLOAD_TOO_LARGE"),
        (b'{"task_type": "a", "payload": "", "task_id": "5"}', "INVALID_REQUEST"),
    ],
    ids=["repeated", "number", "large", "id"],
)
async def test_an_entry_that_is_wrong_does_not_spoil_a_batch(
    client: RestClient, entry: bytes, code: str
) -> None:
    body = b'{"tasks": [%s, {"task_type": "a", "payload": ""}]}' % entry
    reply = await client.ask("POST", f"{TASKS}/batch", body)
    wrong, right = reply.json["results"]
    assert (wrong["code"], right["status"]) == (code, "pending")


async def test_bodies_that_arrive_share_one_bounded_room(
    client: RestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest_input, "LARGEST_ROOM", 2_000_000)
    _reader, slow = await asyncio.open_connection("127.0.0.1", client.door.port)
    slow.write(HEAD + b"Content-Length: 1900000\r\n\r\n" + b" " * 1_800_000)
    await slow.drain()
    await until_parked()
    reply = await client.ask("POST", TASKS, b" " * 1_000_000)
    assert (reply.status, reply.json["code"]) == (503, "BROKER_UNAVAILABLE")
    slow.transport.abort()
    await until_parked()
    reply = await client.ask("POST", TASKS, b" " * 1_000_000)
    assert reply.status == 400
