"""The reference of the native protocol: every command is in it, every example runs as printed."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskqueue.broker.operation import Operation
from taskqueue.broker.operations import OPERATIONS
from taskqueue.core.errors import ERRORS_BY_CODE
from taskqueue.doors.grammar import GRAMMARS
from taskqueue.doors.handshake import HANDSHAKES
from tests.support.redis_tools import redis_cli
from tests.support.resp import a_resp_house

PAGE = Path(__file__).parents[3] / "docs/reference/native-protocol.md"
PROMPT = "127.0.0.1:6379> "
ONLY_OVER_HTTP = {"UNSUPPORTED_MEDIA_TYPE", "NOT_FOUND", "METHOD_NOT_ALLOWED"}


def section(command: str) -> str:
    """What the page says under the heading of a command."""
    found = re.search(rf"^### {re.escape(command)}$(.*?)(?=^##|\Z)", PAGE.read_text(), re.M | re.S)
    assert found is not None, f"{command} has no section"
    return found[1]


def examples() -> Iterator[tuple[str, str]]:
    """Each line typed into redis-cli, and what the page says it prints."""
    for block in re.findall(r"^```console\n(.*?)^```", PAGE.read_text(), re.M | re.S):
        for example in block.split(PROMPT)[1:]:
            typed, _, printed = example.partition("\n")
            yield typed, printed


@pytest.mark.parametrize(
    "operation", [one for one in OPERATIONS if one.native], ids=lambda one: one.name
)
def test_every_native_command_has_its_usage_and_an_entry(operation: Operation) -> None:
    native = str(operation.native)
    grammar = GRAMMARS[native.encode()]
    assert f"\n{grammar.usage}\n" in section(native)
    anchor = native.lower().replace(".", "")
    assert f"[`{native}`](#{anchor})" in PAGE.read_text()


@pytest.mark.parametrize("name", [name.decode() for name in HANDSHAKES])
def test_every_command_about_the_connection_is_named(name: str) -> None:
    assert re.search(rf"`{name}\b[^`]*`", PAGE.read_text())


@pytest.mark.parametrize("code", sorted(set(ERRORS_BY_CODE) - ONLY_OVER_HTTP))
def test_every_error_code_is_explained(code: str) -> None:
    assert re.search(rf"^\| `{code}` \| .+ \|$", PAGE.read_text(), re.M)


async def test_every_example_prints_in_redis_cli_what_the_page_says(tmp_path: Path) -> None:
    typed, expected = zip(*examples(), strict=True)
    assert len(typed) > 20
    async with a_resp_house(tmp_path) as house:
        printed = await asyncio.to_thread(
            redis_cli, house.door.port, "-3", "--no-raw", typed="\n".join(typed) + "\n"
        )
    assert [line.rstrip() for line in printed.splitlines()] == "".join(expected).splitlines()
