"""Who is let in, and for what: on REST and the native door, against the table of operations."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from structlog.testing import capture_logs

from taskqueue.broker.access import AccessSettings, Caller
from taskqueue.broker.broker import Broker
from taskqueue.broker.operation import Operation
from taskqueue.broker.operations import OPERATIONS
from taskqueue.core.clock import ManualClock
from taskqueue.core.keys import Permission
from taskqueue.doors.bounds import RespSettings
from taskqueue.doors.http import RestSettings
from taskqueue.doors.resp import RespDoor
from taskqueue.doors.rest import RestDoor
from taskqueue.wire.administration import CreateKeyRequest, KeyRequest, RotateKeyRequest
from tests.support.broker import a_broker
from tests.support.door import until
from tests.support.resp import RespClient
from tests.support.rest import Reply, RestClient

BOOTSTRAP = "a-key-for-automation-of-32-characters-or-more"
OPEN = AccessSettings(rate_limit=0)
CLOSED = AccessSettings(rate_limit=0, bootstrap_key=BOOTSTRAP)
NOBODY = Caller("192.0.2.1")
UNKNOWN_ID = "0192f0c1-2f8e-7cc2-98b4-000000000000"

BODIES: dict[str, object] = {
    "submit": {"task_type": "work", "payload": ""},
    "submit_batch": {"tasks": [{"task_type": "work", "payload": ""}]},
    "create_key": {"name": "x", "permissions": ["work"]},
    "rotate_key": {},
    "change": {"priority": 1},
}
WORDS: dict[str, list[str]] = {
    "submit": ["work", ""],
    "get": [UNKNOWN_ID],
    "wait": [UNKNOWN_ID, "1"],
    "cancel": [UNKNOWN_ID],
    "retry": [UNKNOWN_ID],
    "claim": ["w", "TYPES", "work"],
    "complete": [UNKNOWN_ID, "1"],
    "fail": [UNKNOWN_ID, "1", "why"],
    "progress": [UNKNOWN_ID, "1", "0.5"],
    "release": [UNKNOWN_ID, "1"],
    "change": [UNKNOWN_ID, "PRIORITY", "1"],
    "purge": [UNKNOWN_ID],
    "logs": [UNKNOWN_ID],
    "log": [UNKNOWN_ID, "1", "line"],
    "checkpoint": [UNKNOWN_ID, "1", "data"],
    "extend": [UNKNOWN_ID, "1", "60"],
    "order": ["w9", "quiet"],
    "about": ["w9", "{}"],
    "notice": ["w9", "0"],
    "beat": ["w"],
    "leave": ["w"],
    "create_key": ["x", "PERMISSIONS", "work"],
    "rotate_key": ["key_x"],
    "revoke_key": ["key_x"],
}


class House(NamedTuple):
    """A broker with both doors."""

    broker: Broker
    rest: RestClient
    native_port: int
    clients: AsyncExitStack

    async def connect(self, *words: str) -> RespClient:
        """A connection to the native door that begins with a command, if any."""
        client = RespClient(*await asyncio.open_connection("127.0.0.1", self.native_port))
        self.clients.callback(client.hang_up)
        if words:
            await client.ask(*words)
        return client

    async def key(self, *permissions: Permission, **fields: Any) -> str:
        """A new key's secret."""

        number = len((await self.broker.keys.list_all()).keys)
        request = CreateKeyRequest(name=f"k{number}", permissions=list(permissions), **fields)

        _, secret = await self.broker.keys.create(request, NOBODY)
        return secret

    async def ask(self, method: str, path: str, key: str | None, body: object = None) -> Reply:
        """A request over REST."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return await self.rest.ask(method, path, body, headers)


@asynccontextmanager
async def a_house(folder: Path, access: AccessSettings = OPEN) -> AsyncIterator[House]:
    """A broker with both doors, on a clock that stands still."""
    async with a_broker(folder, access=access) as broker:
        rest = RestDoor(broker, RestSettings())
        native = RespDoor(broker, RespSettings())
        await rest.start("127.0.0.1", 0)
        await native.start("127.0.0.1", 0)
        try:
            async with AsyncExitStack() as clients:
                yield House(broker, RestClient(broker, rest), native.port, clients)
        finally:
            await broker.close()
            await asyncio.gather(rest.close(), native.close())


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """A broker that has one key, the one for automation."""
    async with a_house(tmp_path, CLOSED) as house:
        yield house


def path_of(operation: Operation) -> str:
    """The path of an operation, about something that does not exist."""
    assert operation.http is not None
    return operation.http.path.format(task_id=UNKNOWN_ID, key_id="key_x", worker_id="w9")


@pytest.mark.parametrize("permission", [*Permission, None])
async def test_every_operation_asks_for_its_permission_on_every_door(
    house: House, permission: Permission | None
) -> None:
    key = await house.key(permission) if permission else None
    native = await house.connect(*(["AUTH", key] if key else []))
    for operation in OPERATIONS:
        is_open = operation.permission is None
        may = is_open or permission in (operation.permission, Permission.ADMIN)
        refusal = "PERMISSION_DENIED" if key else "AUTHENTICATION_FAILED"
        if operation.http is not None:
            reply = await house.ask(
                operation.http.method, path_of(operation), key, BODIES.get(operation.name)
            )
            expected = None if may else refusal
            assert (reply.code if reply.code == refusal else None) == expected, operation.name
            assert (reply.status in (401, 403)) != may
        if operation.native is not None:
            if key is None:
                native = await house.connect()  # ten refusals end a connection
            answer = str(await native.ask(operation.native, *WORDS.get(operation.name, [])))
            assert answer.startswith(refusal) != may, (operation.name, answer)


async def test_while_there_is_no_key_nobody_needs_one_and_any_will_do(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        for key in (None, "my_api_key", "tq_wrong"):
            assert (await house.ask("GET", "/api/v1/stats", key)).status == 200
        native = await house.connect()
        for words in (["AUTH", "any"], ["AUTH", "user", "any"], ["HELLO", "2", "AUTH", "u", "any"]):
            assert not str(await native.ask(*words)).startswith("AUTH")


async def test_a_key_can_be_demanded_before_there_is_one(tmp_path: Path) -> None:
    async with a_house(tmp_path, AccessSettings(required=True)) as house:
        assert (await house.ask("GET", "/api/v1/stats", None)).code == "AUTHENTICATION_FAILED"
        assert (await house.ask("GET", "/api/v1/health", "wrong")).status == 200


async def test_the_first_key_closes_the_door_behind_whoever_made_it(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        maker, waiter = await house.connect("HELLO", "3"), await house.connect()
        waiter.send("TQ.CLAIM", "w", "BLOCK", "60000", "TYPES", "work")
        made = await maker.ask("TQ.KEY.CREATE", "ops", "PERMISSIONS", "admin")
        assert made[b"key"].startswith(b"tq_")
        assert str(await maker.answer()).startswith("AUTHENTICATION_FAILED")
        assert str(await waiter.answer()).startswith("BROKER_UNAVAILABLE")
        assert str(await waiter.answer()).startswith("AUTHENTICATION_FAILED")
        assert await waiter.rest() == b""
        assert (await house.ask("GET", "/api/v1/keys", made[b"key"].decode())).status == 200


async def test_a_wrong_key_is_refused_in_one_way_however_wrong_it_is(house: House) -> None:
    good = await house.key(Permission.ADMIN)
    revoked = await house.key(Permission.ADMIN)
    [key_id] = [key.key_id for key in (await house.broker.keys.list_all()).keys if key.name == "k1"]
    await house.broker.keys.revoke(KeyRequest(key_id=key_id), NOBODY)
    one_off = good[:20] + ("a" if good[20] != "a" else "b") + good[21:]
    wrong = ["", "x", good[:-1], good + "a", one_off, revoked, "k" * 513]
    bodies = set()
    for key in wrong:
        headers = {"Authorization": f"Bearer {key}"}
        reply = await house.rest.ask("GET", "/api/v1/stats", None, headers)
        assert (reply.status, reply.headers.get("www-authenticate")) == (401, "Bearer"), (
            key,
            reply,
        )
        bodies.add(reply.json["error"])
    assert len(bodies) == 1
    for header in (f"Basic {good}", good, f"Bearer {good} {good}", f"Bearer  {good}x"):
        reply = await house.rest.ask("GET", "/api/v1/stats", None, {"Authorization": header})
        assert reply.status == 401
    twice = "GET /api/v1/stats HTTP/1.1\r\nHost: b\r\nConnection: close\r\n"
    twice += f"Authorization: Bearer {good}\r\n" * 2 + "\r\n"
    assert b" 401 " in (await house.rest.raw(twice.encode())).splitlines()[0]
    assert (await house.ask("GET", f"/api/v1/stats?api_key={good}", None)).status == 401
    assert (await house.ask("GET", "/api/v1/stats", good)).status == 200


async def test_redis_clients_show_their_key_by_auth_or_hello(house: House) -> None:
    key = await house.key(Permission.READ_TASKS)
    for words in (["AUTH", key], ["AUTH", "me", key], ["HELLO", "2", "AUTH", "me", key]):
        native = await house.connect(*words)
        assert isinstance(await native.ask("TQ.STATS"), list)
    native = await house.connect()
    assert (await native.error("HELLO", "3")).startswith("AUTHENTICATION_FAILED")
    assert (await native.error("AUTH", key[:-1])).startswith("AUTHENTICATION_FAILED")
    assert await native.ask("PING") == b"PONG"
    assert isinstance(await native.ask("TQ.HEALTH"), list)
    for words in (["ECHO", "x"], ["COMMAND"], ["CLIENT", "ID"], ["INFO"], ["GET", "x"]):
        assert (await native.error(*words)).startswith("AUTHENTICATION_FAILED")
    assert await native.ask("AUTH", key) == b"OK"
    assert (await native.error("AUTH", "wrong")).startswith("AUTHENTICATION_FAILED")
    assert isinstance(await native.ask("TQ.STATS"), list)
    assert await native.ask("RESET") == b"RESET"
    assert (await native.error("TQ.STATS")).startswith("AUTHENTICATION_FAILED")


async def test_a_stranger_gets_no_more_than_a_handshake(house: House) -> None:
    native = await house.connect()
    for _ in range(11):
        assert (await native.error("TQ.STATS")).startswith("AUTHENTICATION_FAILED")
    assert await native.rest() == b""
    for start in (b"*11\r\n$4\r\nPING\r\n", b"*2\r\n$4\r\nAUTH\r\n$16385\r\n"):
        native = await house.connect()
        native.writer.write(start)
        with pytest.raises((EOFError, ConnectionError)):
            await native.answer()


async def test_a_revoked_key_ends_what_goes_on_under_it(house: House) -> None:
    key = await house.key(Permission.READ_TASKS, Permission.WORK, Permission.SUBMIT_TASKS)
    key_id = (await house.broker.keys.list_all()).keys[0].key_id
    idle = await house.connect("AUTH", key)
    claiming = await house.connect("AUTH", key)
    claiming.send("TQ.CLAIM", "w", "BLOCK", "60000", "TYPES", "work")
    task_id = await idle.submit("DELAY", "60")
    waiting = await house.connect("AUTH", key)
    waiting.send("TQ.WAIT", task_id, "60000")
    long_poll = asyncio.create_task(house.ask("GET", f"/api/v1/tasks/{task_id}?wait=60", key))
    await until(lambda: len(house.broker.access._bound[key_id]) == 4)
    async with asyncio.timeout(1):
        await house.broker.keys.revoke(KeyRequest(key_id=key_id), NOBODY)
        assert (await long_poll).code == "AUTHENTICATION_FAILED"
        for native in (idle, claiming, waiting):
            assert b"AUTHENTICATION_FAILED" in await native.rest()
    assert (await house.ask("GET", "/api/v1/stats", key)).status == 401


async def test_a_key_that_was_changed_elsewhere_is_known_with_the_next_look(
    house: House, tmp_path: Path
) -> None:
    key = await house.key(Permission.READ_TASKS, expires_in_seconds=60)
    native = await house.connect("AUTH", key)
    assert (await house.ask("GET", "/api/v1/stats", key)).status == 200
    clock = house.broker.clock
    assert isinstance(clock, ManualClock)
    clock.advance(60)
    assert (await house.ask("GET", "/api/v1/stats", key)).status == 401
    await house.broker.access.refresh()
    assert b"AUTHENTICATION_FAILED" in await native.rest()


async def test_after_a_rotation_both_secrets_are_good_for_a_while(house: House) -> None:
    old = await house.key(Permission.READ_TASKS)
    key_id = (await house.broker.keys.list_all()).keys[0].key_id
    path = f"/api/v1/keys/{key_id}/rotate"
    reply = await house.ask("POST", path, BOOTSTRAP, {"overlap_seconds": 10})
    new = reply.json["key"]
    assert reply.status == 200
    assert (new != old, reply.json["hint"]) == (True, new[-4:])
    clock = house.broker.clock
    assert isinstance(clock, ManualClock)
    for seconds, expected in ((0, 200), (9, 200), (1, 401)):
        clock.advance(seconds)
        await house.broker.access.refresh()
        assert (await house.ask("GET", "/api/v1/stats", old)).status == expected
        assert (await house.ask("GET", "/api/v1/stats", new)).status == 200


async def test_a_key_for_some_task_types_reaches_no_others(house: House) -> None:
    key = await house.key(
        Permission.SUBMIT_TASKS,
        Permission.READ_TASKS,
        Permission.CANCEL_TASKS,
        Permission.WORK,
        task_type_prefix="mail_",
    )
    other = (
        await house.ask("POST", "/api/v1/tasks", BOOTSTRAP, {"task_type": "pay", "payload": ""})
    ).json["task_id"]
    path = f"/api/v1/tasks/{other}"

    async def code(method: str, path: str, body: object = None) -> str | None:
        return (await house.ask(method, path, key, body)).code

    assert await code("GET", path) == "TASK_NOT_FOUND"
    assert await code("DELETE", path) == "TASK_NOT_FOUND"
    assert await code("GET", "/api/v1/tasks") == "PERMISSION_DENIED"
    assert await code("GET", "/api/v1/tasks?task_type=pay") == "PERMISSION_DENIED"
    assert await code("GET", "/api/v1/tasks?task_type=mail_x") is None
    assert await code("GET", "/api/v1/stats") == "PERMISSION_DENIED"
    pay, mail = {"task_type": "pay", "payload": ""}, {"task_type": "mail_x", "payload": ""}
    assert await code("POST", "/api/v1/tasks", pay) == "PERMISSION_DENIED"
    batch = await house.ask("POST", "/api/v1/tasks/batch", key, {"tasks": [pay, mail]})
    assert [one.get("code") for one in batch.json["results"]] == ["PERMISSION_DENIED", None]
    native = await house.connect("AUTH", key)
    claim = await native.error("TQ.CLAIM", "w", "TYPES", "mail_x", "pay")
    assert claim.startswith("PERMISSION_DENIED")
    admin = await house.connect("AUTH", BOOTSTRAP)
    [[_, token, *_]] = await admin.claim("COUNT", "1", worker="w", task_type="pay")
    for word in (["TQ.COMPLETE", other, token], ["TQ.RELEASE", other, token]):
        assert (await native.error(*word)).startswith("TASK_NOT_FOUND")
    assert await native.ask("TQ.LEAVE", "w") == 0
    assert (await admin.task(other))["status"] == b"in_progress"


async def test_admin_cannot_be_limited_to_task_types(house: House) -> None:
    body = {"name": "x", "permissions": ["admin"], "task_type_prefix": "a"}
    reply = await house.ask("POST", "/api/v1/keys", BOOTSTRAP, body)
    assert (reply.status, "task_type_prefix" in reply.json["error"]) == (400, True)


async def test_secrets_are_shown_once_and_kept_nowhere(tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with a_house(tmp_path, CLOSED) as house:
            body = {"name": "shop", "permissions": ["submit_tasks", "submit_tasks"]}
            made = await house.ask("POST", "/api/v1/keys", BOOTSTRAP, body)
            secret = made.json["key"]
            assert (made.status, made.json["permissions"]) == (201, ["submit_tasks"])
            listed = await house.ask("GET", "/api/v1/keys", BOOTSTRAP)
            [entry] = listed.json["keys"]
            assert entry == {name: made.json[name] for name in made.json if name != "key"}
            wrong = secret[:-1] + ("a" if secret[-1] != "a" else "b")
            await house.ask("GET", "/api/v1/stats", wrong)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]  # noqa: ASYNC240
    kept = b"".join(file.read_bytes() for file in files)
    for text in (secret, BOOTSTRAP, wrong):
        assert text.encode() not in kept
        assert text not in str(logs)
    assert [line["client"] for line in logs if line["event"] == "a key was refused"]


async def test_wrong_keys_are_answered_ever_more_slowly(house: House) -> None:
    access = house.broker.access
    seconds = [access.penalty("192.0.2.9") for _ in range(20)]
    assert seconds[:10] == [0.0] * 10
    assert seconds[10:] == sorted(seconds[10:])
    assert 0 < seconds[10] < seconds[-1] <= 3
    assert access.penalty("192.0.2.10") == 0


async def test_what_operators_do_is_in_the_audit_log(house: House) -> None:
    ops = await house.key(Permission.ADMIN)
    task = {"task_type": "work", "payload": ""}
    task_id = (await house.ask("POST", "/api/v1/tasks", ops, task)).json["task_id"]
    path = f"/api/v1/tasks/{task_id}"
    assert (await house.ask("DELETE", path, ops)).status == 204
    assert (await house.ask("DELETE", path, ops)).status == 409
    assert (await house.ask("POST", f"{path}/retry", ops)).status == 200
    log = (await house.ask("GET", "/api/v1/audit?limit=3", ops)).json["entries"]
    told = [(one["operation"], one["target"], one["outcome"], one["name"]) for one in log]
    assert told == [
        ("retry", task_id, "ok", "k0"),
        ("cancel", task_id, "INVALID_STATUS", "k0"),
        ("cancel", task_id, "ok", "k0"),
    ]
    assert {one["address"] for one in log} == {"127.0.0.1"}
    older = (await house.ask("GET", f"/api/v1/audit?before={log[-1]['number']}", ops)).json
    assert [one["operation"] for one in older["entries"]] == ["create_key"]


async def test_the_use_of_a_key_is_noted_to_the_hour(house: House) -> None:
    key = await house.key(Permission.READ_TASKS)
    clock = house.broker.clock
    assert isinstance(clock, ManualClock)

    async def used_at() -> object:
        await house.broker.keys.note_uses()
        return (await house.broker.keys.list_all()).keys[0].last_used_at

    assert await used_at() is None
    await house.ask("GET", "/api/v1/stats", key)
    first = await used_at()
    assert first is not None
    clock.advance(3599)
    await house.ask("GET", "/api/v1/stats", key)
    assert await used_at() == first
    clock.advance(1)
    await house.ask("GET", "/api/v1/stats", key)
    assert await used_at() != first


async def test_metrics_can_be_closed(tmp_path: Path) -> None:
    access = AccessSettings(rate_limit=0, bootstrap_key=BOOTSTRAP, open_metrics=False)
    async with a_house(tmp_path, access) as house:
        assert (await house.ask("GET", "/metrics", None)).status == 401
        assert (await house.ask("GET", "/metrics", BOOTSTRAP)).status == 200
        for open_to_all in ("/openapi.json", "/docs", "/api/v1/health"):
            assert (await house.ask("GET", open_to_all, None)).status == 200


async def test_keys_live_on_in_the_data_folder(tmp_path: Path) -> None:
    async with a_house(tmp_path) as house:
        key = await house.key(Permission.ADMIN)
        rotated = (await house.broker.keys.list_all()).keys[0].key_id
        request = RotateKeyRequest(key_id=rotated, overlap_seconds=0)
        _, new = await house.broker.keys.rotate(request, NOBODY)
    async with a_house(tmp_path) as house:
        assert (await house.ask("GET", "/api/v1/stats", key)).status == 401
        assert (await house.ask("GET", "/api/v1/stats", new)).status == 200
