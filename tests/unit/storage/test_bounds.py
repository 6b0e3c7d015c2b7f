"""What the engine holds in memory and on disk stays bounded, and bytes come back as they were."""

import asyncio
import os
from contextlib import closing
from pathlib import Path

import apsw
import pytest
from structlog.testing import capture_logs

from taskqueue.core.commands import Claim, Complete
from taskqueue.storage import claiming
from taskqueue.storage.sqlite import writer
from tests.support.sqlite import an_open_storage, apply, claimed, clock, submitted
from tests.support.tasks import a_submit


async def test_bytes_of_every_kind_come_back_as_they_were(tmp_path: Path) -> None:
    payloads = [b"", b"\0", b"\0\xff\0", bytes(range(256)), "naïve ✓".encode(), os.urandom(70_000)]
    async with an_open_storage(tmp_path) as storage:
        sent = {
            (await submitted(storage, a_submit(payload=payload))).id: payload
            for payload in payloads
        }
        taken = await claimed(storage, Claim("w", ("work",), 100))
        assert {one.task.id: one.payload for one in taken} == sent
        for task_id, payload in sent.items():
            assert await storage.payload(task_id) == payload


async def test_a_claim_of_large_payloads_is_cut_to_what_memory_bears(tmp_path: Path) -> None:
    payload = bytes(7 * 1024 * 1024)
    async with an_open_storage(tmp_path) as storage:
        for _ in range(4):
            await submitted(storage, a_submit(payload=payload))
        applied = await apply(storage, Claim("a", ("work",), 10), Claim("b", ("work",), 10))
        assert [len(one) for one in applied.outcomes if isinstance(one, list)] == [2, 2]


async def test_the_log_stays_bounded_under_steady_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CHECKPOINT_PAGES", 100)
    monkeypatch.setattr(writer, "MOST_WAL_PAGES", 200)
    async with an_open_storage(tmp_path) as storage:
        for _ in range(60):
            await apply(storage, *(a_submit(payload=bytes(20_000)) for _ in range(10)))
            await asyncio.sleep(0)
        assert (tmp_path / "queue.db-wal").stat().st_size < 6_000_000


async def test_a_batch_hands_out_a_bounded_number_of_tasks_and_names_what_it_withheld(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "MOST_CLAIMED", 10)
    async with an_open_storage(tmp_path) as storage:
        await apply(storage, *(a_submit() for _ in range(30)))
        claims = [Claim(f"w{number}", ("work", "other"), 4) for number in range(5)]
        applied = await apply(storage, *claims)
        assert [len(one) for one in applied.outcomes if isinstance(one, list)] == [4, 4, 2, 0, 0]
        assert applied.ready == {"work": 8}
        again = await apply(storage, *claims[3:])
        assert [len(one) for one in again.outcomes if isinstance(one, list)] == [4, 4]
        assert again.ready == {}


async def test_a_batch_hands_out_a_bounded_number_of_bytes_and_names_what_it_withheld(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "LARGEST_CLAIM_BYTES", 1_000)
    monkeypatch.setattr(claiming, "LARGEST_BATCH_BYTES", 2_500)
    async with an_open_storage(tmp_path) as storage:
        payloads = {
            (await submitted(storage, a_submit(payload=bytes([number]) * 400))).id: (
                bytes([number]) * 400
            )
            for number in range(9)
        }
        applied = await apply(storage, *(Claim(f"w{number}", ("work",), 5) for number in range(5)))
        parts = [one for one in applied.outcomes if isinstance(one, list)]
        assert [len(part) for part in parts] == [2, 2, 2, 0, 0]
        assert applied.ready == {"work": 10}
        assert all(one.payload == payloads[one.task.id] for part in parts for one in part)


async def test_one_task_larger_than_a_claim_may_be_is_handed_out_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claiming, "LARGEST_CLAIM_BYTES", 1_000)
    async with an_open_storage(tmp_path) as storage:
        for _ in range(2):
            await submitted(storage, a_submit(payload=bytes(5_000)))
        taken = await claimed(storage, Claim("w", ("work",), 5))
        assert [len(one.payload) for one in taken] == [5_000]


async def test_a_type_named_twice_gives_no_task_twice(tmp_path: Path) -> None:
    async with an_open_storage(tmp_path) as storage:
        await submitted(storage, a_submit())
        assert len(await claimed(storage, Claim("w", ("work", "work"), 5))) == 1
        assert await storage.audit() == []


async def test_the_log_starts_over_once_a_foreign_reader_has_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "CHECKPOINT_PAGES", 50)
    monkeypatch.setattr(writer, "MOST_WAL_PAGES", 100)
    monkeypatch.setattr(writer, "WARN_WAL_PAGES", 200)
    log = tmp_path / "queue.db-wal"
    async with an_open_storage(tmp_path) as storage:

        async def write(number: int) -> int:
            for _ in range(number):
                await submitted(storage, a_submit(payload=bytes(20_000)))
            return log.stat().st_size

        await write(1)
        with closing(apsw.Connection(str(tmp_path / "queue.db"))) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM tasks").fetchall()
            with capture_logs() as said:
                held = await write(60)
        assert any("somebody keeps reading" in line["event"] for line in said)
        assert held > 300 * writer.PAGE
        grown = await write(20)
        assert await write(100) <= grown


async def test_minutes_past_their_week_are_forgotten(tmp_path: Path) -> None:
    async with an_open_storage(tmp_path) as storage:
        for _ in range(3):
            await submitted(storage, a_submit())
        for _ in range(3):
            [one] = await claimed(storage, Claim("w", ("work",), 1))
            await apply(storage, Complete(one.task.id, 1, b""))
            clock.advance(5 * 24 * 3600)
        totals = await storage.totals(0)
        assert totals.recent.completed == 2
