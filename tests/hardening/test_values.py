"""One bad value, every door: the same refusal everywhere, and nothing has changed."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import pytest

from taskqueue.doors.grpc import taskqueue_pb2 as pb
from taskqueue.doors.grpc.offers import TASK_QUEUE, WORK
from tests.hardening.attacker import a_native_client, ask
from tests.hardening.bystander import log_of, unharmed
from tests.support.broker import BrokerProcess
from tests.support.grpc import OPTIONS, Refusal
from tests.support.resp import RespClient, Word
from tests.support.rest import TASKS

OFFERS = {offer.name: offer for offer in (*TASK_QUEUE, *WORK)}
UNKNOWN = "01890a5d-ac96-774b-bcce-b302099a8057"
EVIL = "a\r\nX-Evil: yes\r\n\r\n-ERR\x1b[31m\x00\u202e"


class Doors(NamedTuple):
    """The three ways in."""

    process: BrokerProcess
    native: RespClient
    channel: grpc.aio.Channel

    async def rest(self, method: str, path: str, body: object = None) -> str:
        """What REST says is wrong."""
        sent = None if body is None else json.dumps(body).encode()
        reply = await ask(self.process.http, method, path, sent)
        assert reply.status == 400, reply
        assert reply.code == "INVALID_REQUEST"
        assert reply.headers["content-type"] == "application/json"
        assert "X-Evil" not in reply.headers
        return str(reply.json["error"])

    async def resp(self, *words: Word) -> str:
        """What the native door says is wrong."""
        code, _, message = (await self.native.error(*words)).partition(" ")
        assert code == "INVALID_REQUEST"
        return message

    async def grpc(self, name: str, **fields: Any) -> str:
        """What the gRPC door says is wrong."""
        offer = OFFERS[name]
        service = "Work" if offer in WORK else "TaskQueue"
        method = self.channel.unary_unary(
            f"/taskqueue.{service}/{name}",
            offer.kind.SerializeToString,
            offer.response.FromString,
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(offer.kind(**fields))
        refusal = Refusal(caught.value)
        assert (refusal.status, refusal.code) == ("INVALID_ARGUMENT", "INVALID_REQUEST")
        return refusal.message


@pytest.fixture
async def doors(broker: BrokerProcess) -> AsyncIterator[Doors]:
    async with (
        a_native_client(broker.native) as native,
        grpc.aio.insecure_channel(broker.grpc, OPTIONS) as channel,
    ):
        yield Doors(broker, native, channel)


def demand(message: str) -> str:
    """What an error asks for, without what it got: each door quotes in its own way."""
    return message.partition(", got ")[0]


async def books_of(process: BrokerProcess) -> tuple[Any, dict[str, str]]:
    """The figures of the queue, and all counters of tasks."""
    stats = (await ask(process.http, "GET", "/api/v1/stats")).json
    lines = (await ask(process.http, "GET", "/metrics")).body.decode().splitlines()
    counters = dict(line.rsplit(" ", 1) for line in lines if line.startswith("tq_tasks"))
    assert counters
    return stats, counters


SUBMITS: list[tuple[str, str, object]] = [
    *(("priority", "PRIORITY", value) for value in (256, 2**31, 2**32 - 1)),
    *(("timeout_seconds", "TIMEOUT", value) for value in (0, 31_536_001, 2**63, 2**64 - 1)),
    *(("max_retries", "RETRIES", value) for value in (1_001, 2**32 - 1)),
    *(("delay_seconds", "DELAY", value) for value in (-1.0, 315_360_001.0)),
    *(("task_id", "ID", value) for value in ("", "x", UNKNOWN.replace("-", ""), f"{{{UNKNOWN}}}")),
    ("task_id", "ID", f"urn:uuid:{UNKNOWN}"),
    ("task_id", "ID", UNKNOWN.replace("0", "\uff10")),
    *(("idempotency_key", "KEY", value) for value in ("", "x" * 256, "x" * 10_240, "a b", EVIL)),
]


@pytest.mark.parametrize(("field", "option", "value"), SUBMITS, ids=lambda one: str(one)[:24])
async def test_a_bad_option_of_a_submit_is_refused_alike_at_every_door(
    doors: Doors, field: str, option: str, value: object
) -> None:
    """B03, B04, B12, B24."""
    before = await books_of(doors.process)
    typed = value if not isinstance(value, float) else int(value)
    said = [
        await doors.rest("POST", TASKS, {"task_type": "bad", "payload": "", field: value}),
        await doors.resp("TQ.SUBMIT", "bad", "x", option, str(typed)),
        await doors.grpc("SubmitTask", task_type="bad", payload=b"", **{field: value}),
    ]
    for message in said:
        assert message.startswith(f"{field} ")
        assert message.isprintable()
        assert len(message) < 400
    assert len({demand(message) for message in said}) == 1
    assert await books_of(doors.process) == before


NAMES = ["", "x" * 256, "a b", "a\x00", "a\r\nb", "a\x7f", "\u202ea", "a\u200bb", "\ufeffa", EVIL]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
async def test_a_bad_name_is_refused_alike_at_every_door(doors: Doors, name: str) -> None:
    """B06, B13: of a type, a worker, a key, a claim."""
    before = await books_of(doors.process)
    for said in (
        [
            await doors.rest("POST", TASKS, {"task_type": name, "payload": ""}),
            await doors.resp("TQ.SUBMIT", name, "x"),
            await doors.grpc("SubmitTask", task_type=name, payload=b""),
        ],
        [
            await doors.resp("TQ.CLAIM", name, "TYPES", "bad"),
            await doors.grpc("Claim", worker_id=name, task_types=["bad"]),
        ],
        [
            await doors.resp("TQ.CLAIM", "w1", "TYPES", name),
            await doors.grpc("Claim", worker_id="w1", task_types=[name]),
        ],
        [
            await doors.resp("TQ.CLAIM", "w1", "ID", name, "TYPES", "bad"),
            await doors.grpc("Claim", worker_id="w1", request_id=name, task_types=["bad"]),
        ],
        [
            await doors.rest("POST", "/api/v1/keys", {"name": name, "permissions": ["admin"]}),
            await doors.resp("TQ.KEY.CREATE", name, "PERMISSIONS", "admin"),
        ],
    ):
        assert len({demand(message) for message in said}) == 1
        assert all(message.isprintable() and len(message) < 400 for message in said)
    assert await books_of(doors.process) == before


async def test_a_name_of_a_mebibyte_is_refused_beside_others(doors: Doors) -> None:
    """B30: of a key, which is the only thing besides a task that clients may name."""
    name = "n" * 2**20
    async with unharmed(doors.process):
        said = await asyncio.gather(
            *(
                doors.rest("POST", "/api/v1/keys", {"name": name, "permissions": ["admin"]})
                for _ in range(20)
            )
        )
        said += [await doors.resp("TQ.KEY.CREATE", name, "PERMISSIONS", "admin")]
    assert {message[:5] for message in said} == {"name "}
    assert max(map(len, said)) < 400
    assert (await ask(doors.process.http, "GET", "/api/v1/keys")).json == {"keys": []}


async def test_what_a_worker_says_of_its_failure_is_shown_inert_at_every_door(
    doors: Doors,
) -> None:
    """B13: it comes back as it was said, within the bounds of each protocol."""
    task_id = await doors.native.submit("RETRIES", 0, task_type="inert")
    [task] = await doors.native.claim(task_type="inert")
    words: tuple[Word, ...] = ("TQ.FAIL", task_id, task[1], EVIL, "KIND", EVIL, "TRACEBACK", EVIL)
    assert await doors.native.ask(*words) == b"dead_letter"
    reply = await ask(doors.process.http, "GET", f"{TASKS}/{task_id}")
    assert reply.json["error"] == f"{EVIL}: {EVIL}"
    assert b"\x1b" not in reply.body
    assert b"\r" not in reply.body
    assert "X-Evil" not in reply.headers
    assert (await doors.native.task(task_id))["error"].decode() == f"{EVIL}: {EVIL}"
    assert await doors.native.ask("PING") == b"PONG"
    status = doors.channel.unary_unary(
        "/taskqueue.TaskQueue/GetTaskStatus",
        pb.GetTaskStatusRequest.SerializeToString,
        pb.GetTaskStatusResponse.FromString,
    )
    answer = await status(pb.GetTaskStatusRequest(task_id=task_id))
    assert answer.error == f"{EVIL}: {EVIL}"
    metrics = (await ask(doors.process.http, "GET", "/metrics")).body
    assert b"\x1b" not in metrics
    assert "X-Evil" not in log_of(doors.process)


LITERALS = ["-1", "1.0", "1e2", "-0.5", '"5"', "true", "null", str(2**64), "9" * 5_000, "1e999"]


@pytest.mark.parametrize("literal", LITERALS, ids=lambda one: one[:12])
@pytest.mark.parametrize("field", ["priority", "timeout_seconds", "max_retries"])
async def test_a_number_in_another_form_is_no_number(
    doors: Doors, field: str, literal: str
) -> None:
    """B03: neither in JSON nor as a word."""
    body = f'{{"task_type": "bad", "payload": "", "{field}": {literal}}}'.encode()
    before = await books_of(doors.process)
    reply = await ask(doors.process.http, "POST", TASKS, body)
    assert (reply.status, reply.code) == (400, "INVALID_REQUEST")
    assert field in reply.json["error"] or "JSON" in reply.json["error"]
    option = {"priority": "PRIORITY", "timeout_seconds": "TIMEOUT", "max_retries": "RETRIES"}
    assert field in await doors.resp("TQ.SUBMIT", "bad", "x", option[field], literal)
    assert await books_of(doors.process) == before


@pytest.mark.parametrize(
    ("query", "words", "fields"),
    [
        ("limit=0", ("LIMIT", 0), {"limit": 0}),
        ("limit=1001", ("LIMIT", 1_001), {"limit": 1_001}),
        (f"offset={2**63}", ("OFFSET", 2**63), {"offset": 2**63}),
        ("status=running", ("STATUS", "running"), {"status": "running"}),
        ("cursor=zz", ("CURSOR", "zz"), {"cursor": "zz"}),
        ("cursor=1-0", ("CURSOR", "1-0"), {"cursor": "1-0"}),
        (f"cursor={'a' * 65}", ("CURSOR", "a" * 65), {"cursor": "a" * 65}),
    ],
    ids=lambda one: str(one)[:30],
)
async def test_a_bad_page_is_refused_alike_at_every_door(
    doors: Doors, query: str, words: tuple[Word, ...], fields: dict[str, Any]
) -> None:
    """B11."""
    said = {
        await doors.rest("GET", f"{TASKS}?{query}"),
        await doors.resp("TQ.LIST", *words),
        await doors.grpc("ListTasks", **fields),
    }
    assert len({demand(message) for message in said}) == 1


async def test_a_cursor_that_was_tampered_with_is_refused(doors: Doors) -> None:
    """B11: in any one character."""
    for _ in range(3):
        await doors.native.submit(task_type="paged")
    page = await ask(doors.process.http, "GET", f"{TASKS}?task_type=paged&limit=1")
    cursor = page.json["next_cursor"]
    for place in range(len(cursor)):
        for other in "0f-":
            tampered = cursor[:place] + other + cursor[place + 1 :]
            if tampered != cursor:
                await doors.rest("GET", f"{TASKS}?task_type=paged&cursor={tampered}")
    for length in range(len(cursor)):
        await doors.rest("GET", f"{TASKS}?task_type=paged&cursor={cursor[:length]}")


@pytest.mark.parametrize("text", ["100%", "send_email", "[a-z]*", "\\", "%", "_", "*", "a'--"])
async def test_a_filter_matches_its_own_letters_only(doors: Doors, text: str) -> None:
    """B07: over the native door and gRPC; the others are held against REST elsewhere."""
    await doors.native.submit(task_type=text)
    for other in ("100x", "sendXemail", "b", "/", "x"):
        await doors.native.submit(task_type=other)
    pages = doors.channel.unary_unary(
        "/taskqueue.TaskQueue/ListTasks",
        pb.ListTasksRequest.SerializeToString,
        pb.ListTasksResponse.FromString,
    )
    answer = await pages(pb.ListTasksRequest(task_type=text))
    assert {task.task_type for task in answer.tasks} == {text}
    listed = await doors.native.ask("TQ.LIST", "TYPE", text)
    assert listed[3] == answer.total == 1
