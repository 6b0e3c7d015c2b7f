"""One thing done to many tasks: found by filters, asked for, counted exactly."""

import re

import pytest

from taskqueue import SyncClient, Task
from taskqueue.cli import bulk
from tests.cli.running import Here, on_a_terminal
from tests.support.broker import BrokerProcess

NO_TASK = "550e8400-e29b-41d4-a716-446655440000"


def submitted(client: SyncClient, task_type: str, number: int) -> list[str]:
    return client.submit_many([Task(task_type, b"{}") for _ in range(number)])


def test_a_filter_finds_all_there_are_beyond_one_page(tq: Here, client: SyncClient) -> None:
    submitted(client, "bulk.many", 1_203)
    kept = submitted(client, "bulk.kept", 2)
    found = ("cancel", "--type", "bulk.many")
    assert tq(*found, "--dry-run").out == "1203\twould be cancelled\n"
    assert client.list_tasks(task_type="bulk.many", status="pending").total == 1_203
    assert tq(*found, "--yes").out == "1203\tcancelled\n"
    assert client.list_tasks(task_type="bulk.many", status="cancelled").total == 1_203
    assert [client.get_status(task_id).status for task_id in kept] == ["pending"] * 2
    assert tq(*found, "--yes").out == "0\tcancelled\n"


def test_statuses_may_be_several_and_must_fit(tq: Here, client: SyncClient) -> None:
    [task_id, other] = submitted(client, "bulk.status", 2)
    client.cancel(task_id)
    found = ("retry", "--type", "bulk.status")
    assert tq(*found, "--dry-run").out.startswith("0\t")  # by default those that are dead
    both = ("--status", "cancelled", "--status", "dead_letter")
    assert tq(*found, *both, "--yes").out == "1\tback in the queue\n"
    assert client.get_status(other).status == "pending"
    said = tq(*found, "--status", "failed", "--yes", code=2).err
    assert "dead_letter or cancelled" in said
    assert "cancel is not for" in tq("cancel", "--status", "completed", "--yes", code=2).err


def test_tags_and_metadata_find_tasks_too(tq: Here, client: SyncClient) -> None:
    both = Task("bulk.tagged", b"", tags=("a", "b"), metadata={"customer": "ada"})
    one = Task("bulk.tagged", b"", tags=("a",), metadata={"customer": "bob"})
    found, _ = [client.submit_task(task) for task in (both, one)]
    for words in (
        ("--tag", "a", "--tag", "b"),
        ("--meta", "customer=ada"),
        ("--tag", "a", "--meta", "customer=ada", "--status", "pending"),
    ):
        assert tq("list", "--type", "bulk.tagged", *words, "-o", "id").out == f"{found}\n"
    assert tq("cancel", "--tag", "b", "--dry-run").out == "1\twould be cancelled\n"
    assert tq("cancel", "--meta", "customer=ada", "--yes").out == "1\tcancelled\n"
    assert client.get_status(found).status == "cancelled"
    assert "write name=value" in tq("cancel", "--meta", "customer", "--yes", code=2).err


def test_waiting_tasks_are_given_another_priority_or_time(tq: Here, client: SyncClient) -> None:
    ids = submitted(client, "bulk.changed", 3)
    assert tq("change", ids[0], "--priority", "high").out == f"{ids[0]}\tchanged\n"
    assert client.get_status(ids[0]).priority == 200
    found = ("change", "--type", "bulk.changed", "--delay", "3600")
    assert tq(*found, "--dry-run").out == "3\twould be changed\n"
    assert tq(*found, "--yes").out == "3\tchanged\n"
    due = [client.get_status(task_id).schedule_at for task_id in ids]
    assert len(due) == 3
    assert None not in due
    client.cancel(ids[1])
    assert "INVALID_STATUS" in tq("change", ids[1], "--priority", "low", code=1).err
    assert "nothing is to be changed" in tq("change", ids[0], code=2).err
    assert "no priority" in tq("change", ids[0], "--priority", "urgent", code=2).err


def test_tasks_that_have_ended_are_deleted(tq: Here, client: SyncClient) -> None:
    [*ended, alive] = submitted(client, "bulk.purged", 3)
    for task_id in ended:
        client.cancel(task_id)
    assert "INVALID_STATUS" in tq("purge", alive, "--yes", code=1).err
    assert "--yes" in tq("purge", ended[0], code=2).err
    assert tq("purge", "--type", "bulk.purged", "--dry-run").out == "2\twould be deleted\n"
    assert tq("purge", "--type", "bulk.purged", "--yes").out == "2\tdeleted\n"
    assert client.list_tasks(task_type="bulk.purged").total == 1
    assert "purge is not for" in tq("purge", "--status", "pending", "--yes", code=2).err


def test_running_tasks_are_found_only_if_that_is_said(tq: Here, client: SyncClient) -> None:
    task_id = client.submit_task(Task("count", b'{"to": 100000}'))
    while client.get_status(task_id).status != "in_progress":
        pass
    running = ("cancel", "--type", "count", "--status", "in_progress", "--yes")
    tq(*running, code=2)
    assert tq(*running, "--running").out == "1\tcancelled\n"
    assert client.get_status(task_id).status == "cancelled"


@pytest.mark.parametrize(("age", "number"), [("0s", 3), ("0", 3), ("1h", 0), ("2w", 0)])
def test_age_is_a_filter(tq: Here, client: SyncClient, age: str, number: int) -> None:
    name = f"bulk.age-{age}"
    submitted(client, name, 3)
    ran = tq("cancel", "--type", name, "--older-than", age, "--dry-run")
    assert ran.out == f"{number}\twould be cancelled\n"


@pytest.mark.parametrize("age", ["soon", "-1h", "7 d", "1.5h", ""])
def test_an_age_that_is_none_is_refused(tq: Here, age: str) -> None:
    assert "7d" in tq("cancel", f"--older-than={age}", "--dry-run", code=2).err


def test_nothing_happens_unasked(tq: Here, client: SyncClient) -> None:
    submitted(client, "bulk.unasked", 2)
    said = tq("cancel", "--type", "bulk.unasked", code=2).err
    assert "cancel 2 tasks?" in said
    assert "--yes" in said
    assert client.list_tasks(task_type="bulk.unasked", status="pending").total == 2


@pytest.mark.parametrize(("answer", "code", "status"), [("n", 1, "pending"), ("y", 0, "cancelled")])
def test_somebody_at_a_terminal_is_asked(
    broker: BrokerProcess, client: SyncClient, answer: str, code: int, status: str
) -> None:
    name = f"bulk.asked-{answer}"
    [task_id] = submitted(client, name, 1)
    with on_a_terminal("cancel", "--type", name, "--url", broker.native) as terminal:
        terminal.expect(r"cancel 1 task\? \[y/N\]")
        terminal.press(f"{answer}\n")
        assert terminal.end() == code
    assert client.get_status(task_id).status == status


def test_long_work_shows_how_far_it_is_on_a_terminal(
    broker: BrokerProcess, client: SyncClient
) -> None:
    submitted(client, "bulk.long", bulk.AT_ONCE + 1)
    words = ("cancel", "--type", "bulk.long", "--yes", "--url", broker.native)
    with on_a_terminal(*words) as terminal:
        assert terminal.end() == 0
    assert f"/{bulk.AT_ONCE + 1}" in terminal.text
    assert re.search(rf"{bulk.AT_ONCE + 1}\s+cancelled$", terminal.text, re.MULTILINE)


def test_each_failure_is_told_by_id_and_code(tq: Here, client: SyncClient) -> None:
    [first, second] = submitted(client, "bulk.named", 2)
    ran = tq("cancel", first, NO_TASK, first, second, code=1)
    assert ran.rows == [[first, "cancelled"], [second, "cancelled"]]
    assert f"tq: {NO_TASK}: TASK_NOT_FOUND" in ran.err
    assert "1 of 3 tasks not cancelled" in ran.err
    assert tq("cancel", NO_TASK, code=5).out == ""


@pytest.mark.parametrize("command", ["cancel", "retry", "purge"])
def test_tasks_must_be_named_or_found(tq: Here, command: str) -> None:
    assert "--status" in tq(command, code=2).err
    assert "not both" in tq(command, NO_TASK, "--type", "x", code=2).err


def test_a_broker_that_goes_away_ends_the_work(
    client: SyncClient, broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch, tq: Here
) -> None:
    from taskqueue.core.errors import BrokerUnavailable

    tried: list[str] = []

    async def gone(_door: object, task_id: str) -> None:
        tried.append(task_id)
        raise BrokerUnavailable("gone")

    deed = bulk.Deed("cancel", "cancelled", (), (), gone)
    monkeypatch.setattr(bulk, "AT_ONCE", 2)
    failed = bulk.do_all(client, deed, ["a", "b", "c", "d", "e"])
    assert tried == ["a", "b"]
    assert [entry.task_id for entry in failed] == ["a", "b", "c", "d", "e"]
