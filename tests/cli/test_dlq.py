"""Dead tasks: grouped by what they failed of, shown with their failures, put back."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from taskqueue import SyncClient, Task, TaskStatus
from taskqueue.cli.dlq import grouped
from tests.cli.running import Here

NO_TASK = "550e8400-e29b-41d4-a716-446655440000"


def died(client: SyncClient, *messages: str) -> list[str]:
    """Tasks that failed for good, with these messages."""
    payloads = [json.dumps({"message": message}).encode() for message in messages]
    ids = client.submit_many([Task("fail", payload, max_retries=0) for payload in payloads])
    for task_id in ids:
        client.wait_for_end(task_id)
    return ids


def test_tasks_that_failed_alike_are_one_group(tq: Here, client: SyncClient) -> None:
    ids = died(client, "smtp 1.2.3.4:25 refused", "smtp 9.9.9.9:25 refused", "smtp is full")
    groups = json.loads(tq("dlq", "list", "--error", "SMTP", "-o", "json").out)
    assert [group["count"] for group in groups] == [2, 1]
    assert groups[0]["task_id"] in ids[:2]
    assert groups[0]["error"].endswith("refused")
    assert groups[1]["error"] == "RuntimeError: smtp is full"
    assert {row[1] for row in tq("dlq", "list", "--error", "smtp").rows} == {"fail"}
    listed = tq("dlq", "list", "--error", "smtp", "-o", "id").out.split()
    assert sorted(listed) == sorted(ids)
    assert tq("dlq", "list", "--type", "none-such", "-o", "json").out == "[]\n"


def test_how_many_are_looked_at_is_bounded_and_said(tq: Here, client: SyncClient) -> None:
    died(client, "bound 1", "bound 2")
    ran = tq("dlq", "list", "--limit", "1", "-o", "json")
    assert sum(group["count"] for group in json.loads(ran.out)) == 1
    assert "newest 1 of" in ran.err
    tq("dlq", "list", "--limit", "0", code=2)


def test_a_dead_task_is_shown_with_its_tracebacks(tq: Here, client: SyncClient) -> None:
    [task_id] = died(client, "shown")
    shown = tq("dlq", "show", task_id).out
    assert "attempt 1 at" in shown
    assert "Traceback (most recent call last)" in shown
    assert "RuntimeError: shown" in shown
    [failure] = json.loads(tq("dlq", "show", task_id, "-o", "json").out)["failures"]
    assert failure["error"] == "RuntimeError: shown"
    alive = client.submit_task(Task("dlq.nobody", b"{}"))
    assert "INVALID_STATUS" in tq("dlq", "show", alive, code=1).err
    tq("dlq", "show", NO_TASK, code=5)


def test_dead_tasks_go_back_by_name_or_by_error(tq: Here, client: SyncClient) -> None:
    ids = died(client, "gone east", "gone west", "gone west")
    assert tq("dlq", "retry", "--error", "gone west", "--dry-run").out.startswith("2\t")
    assert tq("dlq", "retry", ids[0]).rows == [[ids[0], "back in the queue"]]
    tq("dlq", "retry", "--error", "gone west", code=2)  # nobody can be asked
    ran = tq("dlq", "retry", "--type", "fail", "--error", "gone west", "--yes")
    assert ran.out == "2\tback in the queue\n"
    for task_id in ids:
        client.wait_for_end(task_id)


def test_dead_tasks_are_deleted_and_no_others(tq: Here, client: SyncClient) -> None:
    ids = died(client, "drop this", "drop that", "drop that")
    done = client.submit_task(Task("hello", b"{}"))
    client.wait_for_end(done)
    assert "not dead" in tq("dlq", "delete", ids[0], done, "--yes", code=1).err
    tq("dlq", "delete", ids[0], code=2)  # nobody can be asked
    assert client.get_status(ids[0]).status == "dead_letter"
    assert tq("dlq", "delete", ids[0], "--yes").rows == [[ids[0], "deleted"]]
    assert tq("dlq", "delete", "--error", "drop that", "--yes").out == "2\tdeleted\n"
    for task_id in ids:
        tq("status", task_id, code=5)
    assert client.get_status(done).status == "completed"


@pytest.mark.parametrize("words", [(), ("--all", "--type", "x"), (NO_TASK, "--all")])
def test_which_ones_must_be_clear(tq: Here, words: tuple[str, ...]) -> None:
    assert "--all" in tq("dlq", "retry", *words, code=2).err


def test_ids_and_numbers_make_no_group_of_their_own() -> None:
    def task(number: int, error: str, **more: Any) -> TaskStatus:
        at = datetime(2030, 1, number, tzinfo=UTC)
        stated = {
            "task_id": f"{number}", "status": "dead_letter", "created_at": at, "updated_at": at,
            "task_type": "mail", "priority": 1, "worker_id": None, "result": None, "error": error,
            "retry_count": 0, "timeout_seconds": 1, "max_retries": 0, "schedule_at": at,
            "progress": None, "progress_note": "", "failures": [],
        }  # fmt: skip
        return TaskStatus(**{**stated, **more})

    groups = grouped(
        [
            task(3, "KeyError: user 550e8400e29b41d4\nmore"),
            task(5, "KeyError: user 77"),
            task(4, "KeyError: user 0xdeadbeef"),
            task(1, "KeyError: user 77", task_type="report"),
            task(2, ""),
        ]
    )
    assert [(group.count, group.task_type, group.task_id) for group in groups] == [
        (3, "mail", "5"),
        (1, "mail", "2"),
        (1, "report", "1"),
    ]
    assert (groups[0].first.day, groups[0].last.day) == (3, 5)
    assert groups[0].error == "KeyError: user 77"
