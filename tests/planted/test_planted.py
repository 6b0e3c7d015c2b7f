"""Each deliberate bug is switched on in turn; the suite's own checks must fail with it."""

import asyncio
from pathlib import Path

import apsw
import pytest

from tests.planted import bugs
from tests.planted.checks import first_failure
from tests.unit.broker import test_ledger
from tests.unit.storage import test_damage


def test_without_a_bug_every_check_passes(tmp_path: Path) -> None:
    assert first_failure(tmp_path, bugs.CAUGHT_AS) is None


@pytest.mark.parametrize("bug", bugs.IN_THE_QUEUE, ids=lambda bug: bug.__name__)
def test_the_storage_suite_catches(
    bug: bugs.Bug, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bug(monkeypatch)
    failed = first_failure(tmp_path, (*bugs.CAUGHT_AS, apsw.Error))
    assert failed is not None, f"no check noticed: {bug.__doc__}"


def test_an_acknowledgement_before_the_commit_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    check = test_ledger.test_nothing_is_acknowledged_before_its_transaction_is_durable
    asyncio.run(check())
    bugs.acknowledged_before_the_commit(monkeypatch)
    with pytest.raises(AssertionError):
        asyncio.run(check())


def test_a_skipped_checksum_is_caught(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check = test_damage.test_a_damaged_payload_is_never_handed_out
    asyncio.run(check(tmp_path / "sound"))
    bugs.checksum_skipped(monkeypatch)
    with pytest.raises(AssertionError):
        asyncio.run(check(tmp_path / "bug"))
