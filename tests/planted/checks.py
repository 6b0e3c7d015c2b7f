"""The storage suite's checks, run on the SQLite engine by hand until one of them fails."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from taskqueue.core.task import Status
from tests.contract.storage import test_books, test_claims, test_lifecycle
from tests.support.storage import Queue, a_queue

Check = Callable[[Queue], Awaitable[None]]

_TABLE = (
    test_lifecycle.test_a_word_takes_hold_where_the_table_allows_it_and_changes_nothing_elsewhere
)
_TOKENS = test_lifecycle.test_a_word_with_another_token_is_refused_and_changes_nothing
_REPEATS = test_lifecycle.test_a_repeated_end_is_answered_as_the_first_one_and_changes_nothing

CHECKS: dict[str, Check] = {
    name: check
    for module in (test_lifecycle, test_claims, test_books)
    for name, check in vars(module).items()
    if name.startswith("test_") and list(inspect.signature(check).parameters) == ["queue"]
} | {
    "the table: cancel of a completed task": partial(
        _TABLE, status=Status.COMPLETED, word="cancel"
    ),
    "the table: retry of a pending task": partial(_TABLE, status=Status.PENDING, word="retry"),
    "an old token": partial(_TOKENS, word="complete", token=1),
    "a repeated completion": partial(_REPEATS, word="complete"),
}


def first_failure(folder: Path, caught: tuple[type[BaseException], ...]) -> str | None:
    """The name of the first check that fails in one of the `caught` ways."""

    async def run(check: Check, place: Path) -> None:
        async with a_queue("sqlite", place) as queue:
            await check(queue)

    for number, (name, check) in enumerate(CHECKS.items()):
        try:
            asyncio.run(run(check, folder / str(number)))
        except caught:
            return name
    return None
