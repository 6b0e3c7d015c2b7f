"""The forms in which commands print: for people, pipes and programs."""

import json
import subprocess
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from taskqueue import SyncClient, Task
from tests.cli.running import TQ, Here, on_a_terminal, process
from tests.support.broker import BrokerProcess


@pytest.fixture
def mail(client: SyncClient) -> str:
    """A task that nobody runs, of a type that this module lists."""
    return client.submit_task(Task("printed.mail", b"{}", priority=7))


READ: dict[str, Callable[[str], Any]] = {
    "json": json.loads,
    "yaml": lambda text: msgspec.yaml.decode(text),
    "jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
}


@pytest.mark.parametrize("form", READ)
def test_lists_are_the_same_in_every_form_for_programs(tq: Here, mail: str, form: str) -> None:
    [*rows] = READ[form](tq("list", "--type", "printed.mail", "-o", form).out)
    assert rows[0]["task_id"] == mail
    assert rows[0]["priority"] == 7
    assert set(rows[0]) == {
        *("task_id", "status", "task_type", "priority", "created_at", "updated_at")
    }


@pytest.mark.parametrize(
    ("form", "printed"),
    [("json", "[]\n"), ("yaml", "[]\n"), ("jsonl", ""), ("id", ""), ("table", "")],
)
def test_an_empty_list_is_no_prose(tq: Here, form: str, printed: str) -> None:
    assert tq("list", "--type", "printed.never", "-o", form).out == printed


def test_fields_are_printed_in_the_order_that_was_asked_for(tq: Here, mail: str) -> None:
    asked = ("list", "--type", "printed.mail", "--limit", "1", "--fields", "priority,task_id")
    assert tq(*asked).rows == [["7", mail]]
    [row] = json.loads(tq(*asked, "-o", "json").out)
    assert list(row.items()) == [("priority", 7), ("task_id", mail)]
    assert tq("status", mail, "--fields", "status,task_type").rows == [
        ["status", "pending"],
        ["task_type", "printed.mail"],
    ]
    said = tq("list", "--type", "printed.mail", "--fields", "sender", code=2).err
    assert "'sender'" in said
    assert "task_type" in said


def test_wide_has_every_field(tq: Here) -> None:
    table = tq("config", "show").rows
    wide = tq("config", "show", "-o", "wide").rows
    assert {len(row) for row in table} == {2}
    assert {len(row) for row in wide} == {3}


def test_ids_come_alone(tq: Here, mail: str) -> None:
    assert tq("list", "--type", "printed.mail", "--limit", "1", "-o", "id").out == f"{mail}\n"
    assert tq("status", mail, "-o", "id").out == f"{mail}\n"
    assert tq("cluster", "-o", "id").out.strip()
    assert "no ids" in tq("stats", "-o", "id", code=2).err


@pytest.mark.parametrize("words", [("keys", "list"), ("audit",), ("cluster",), ("config", "show")])
def test_every_command_that_prints_data_knows_the_forms(tq: Here, words: tuple[str, ...]) -> None:
    assert json.loads(tq(*words, "-o", "json").out) == msgspec.yaml.decode(
        tq(*words, "-o", "yaml").out
    ) or words == ("cluster",)  # its figures move
    assert tq(*words, "-o", "wide").code == 0


@pytest.mark.parametrize(
    ("words", "env", "is_colored"),
    [
        ((), {}, False),
        (("--color", "always"), {}, True),
        ((), {"CLICOLOR_FORCE": "1"}, True),
        ((), {"CLICOLOR_FORCE": "0"}, False),
        ((), {"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, False),
        (("--color", "never"), {"CLICOLOR_FORCE": "1"}, False),
    ],
)
def test_pipes_have_colours_only_if_that_is_said(
    tq: Here,
    mail: str,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    env: dict[str, str],
    is_colored: bool,
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    [row] = tq("list", "--type", "printed.mail", "--limit", "1", *words).rows
    assert row[1] == ("\x1b[36mpending\x1b[0m" if is_colored else "pending")
    assert row[0] == mail


def test_a_terminal_has_a_coloured_table(broker: BrokerProcess, mail: str) -> None:
    words = ("list", "--type", "printed.mail", "--limit", "1", "--url", broker.native)
    with on_a_terminal(*words) as terminal:
        assert terminal.end() == 0
    assert "TASK ID" in terminal.text
    assert "\x1b[36mpending" in terminal.text
    assert mail in terminal.text
    with on_a_terminal(*words, env={"NO_COLOR": "1"}) as terminal:
        assert terminal.end() == 0
    assert "\x1b" not in terminal.text
    assert "TASK ID" in terminal.text


def test_what_tasks_say_cannot_steer_a_terminal(tq: Here, client: SyncClient) -> None:
    task_id = client.submit_task(Task("fail", b'{"message": "\\u001b[2J[bold]red"}', max_retries=0))
    tq("wait", task_id, code=3)
    shown = tq("dlq", "list", "--error", "[bold]red").out
    assert "\x1b" not in shown
    assert "[bold]red" in shown
    assert "\x1b" not in tq("dlq", "show", task_id).out


def test_depths_are_bars_on_a_terminal_and_lines_in_a_pipe(
    tq: Here, broker: BrokerProcess, mail: str
) -> None:
    rows = tq("queue-depth").rows
    assert [row[:2] for row in rows] == [
        ["high", "200-255"],
        ["normal", "100-199"],
        ["low", "0-99"],
    ]
    assert int(rows[2][2]) >= 1
    with on_a_terminal("queue-depth", "--url", broker.native) as terminal:
        assert terminal.end() == 0
    assert "█" in terminal.text


def test_nobody_who_reads_is_no_reason_to_complain(broker: BrokerProcess) -> None:
    shell = f"{' '.join(TQ)} list -o json --limit 1000 --url {broker.native} | true"
    ran = subprocess.run(["bash", "-c", shell], capture_output=True, timeout=30, check=False)
    assert ran.stderr == b""


def test_yaml_needs_no_quoting_by_hand(broker: BrokerProcess, mail: str) -> None:
    ran = process("status", mail, "-o", "yaml", "--url", broker.native)
    assert msgspec.yaml.decode(ran.out)["task_id"] == mail
