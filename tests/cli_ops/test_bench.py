"""`tq bench`: figures of a real broker, and nothing left behind."""

from tests.cli_ops.conftest import Tq

SMALL = ("--tasks", "60", "--connections", "2", "--workers", "1", "--seconds", "8")


def test_it_measures_and_leaves_nothing_waiting(tq: Tq) -> None:
    ran = tq("bench", *SMALL, "--payload", "50", "-o", "json").json
    figures = {one["figure"]: one["value"] for one in ran["figures"]}
    assert len(figures) == 6
    assert min(figures.values()) > 0
    measured = ran["measured"]
    assert (measured["tasks"], measured["payload_bytes"]) == (60, 50)
    assert "synced to disk" in measured["durability"]
    page = tq("list", "--type", measured["task_type"], "-o", "json").json
    assert {task["status"] for task in page} == {"completed"}


def test_what_is_left_when_the_time_is_over_is_cancelled(tq: Tq) -> None:
    ran = tq("bench", "--tasks", "100000", "--seconds", "1", "--workers", "1", "-o", "json").json
    task_type = ran["measured"]["task_type"]
    for status in ("pending", "in_progress"):
        assert tq("list", "--type", task_type, "--status", status, "-o", "json").json == []


def test_a_broker_that_is_not_on_this_machine_needs_yes(tq: Tq) -> None:
    ran = tq("bench", "--url", "192.0.2.1:6379", code=2)
    assert "--yes" in ran.complaints


def test_numbers_out_of_range_are_refused(tq: Tq) -> None:
    assert "connections must be 1 to 500" in tq("bench", "--connections", "501", code=2).complaints
