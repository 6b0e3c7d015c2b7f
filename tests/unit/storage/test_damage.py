"""What comes out of a database with damaged bytes in it: the truth or a refusal, nothing else."""

import random
import zlib
from contextlib import closing, suppress
from pathlib import Path

import apsw
import pytest

from taskqueue.core.commands import Cancel, Claim, Complete, Purge
from taskqueue.core.errors import DataDamaged, TaskQueueError
from taskqueue.core.task import Status
from taskqueue.storage.engines import open_storage
from taskqueue.storage.port import Storage
from tests.support.sqlite import an_open_storage, apply, claimed, clock, submitted
from tests.support.tasks import a_submit


async def test_a_damaged_payload_is_never_handed_out(tmp_path: Path) -> None:
    async with an_open_storage(tmp_path) as storage:
        damaged = await submitted(storage, a_submit(payload=b"as it was sent"))
        sound = await submitted(storage, a_submit(payload=b"sound"))
    with apsw.Connection(str(tmp_path / "queue.db")) as connection:
        connection.execute("UPDATE payloads SET data = x'00' WHERE seq = ?", (damaged.seq,))
    async with an_open_storage(tmp_path) as storage:
        with pytest.raises(DataDamaged):
            await storage.payload(damaged.id)
        taken = await claimed(storage, Claim("w", ("work",), 10))
        assert [(one.task.id, one.payload) for one in taken] == [(sound.id, b"sound")]
        detail = await storage.get(damaged.id)
        assert detail is not None
        assert detail.task.status is Status.DEAD_LETTER
        assert "checksum" in detail.failures[0].message
        assert await storage.audit() == []


async def test_a_damaged_result_is_never_handed_out(tmp_path: Path) -> None:
    async with an_open_storage(tmp_path) as storage:
        task = await submitted(storage, a_submit())
        await apply(storage, Claim("w", ("work",), 1))
        await apply(storage, Complete(task.id, 1, b"the result"))
    with apsw.Connection(str(tmp_path / "queue.db")) as connection:
        connection.execute("UPDATE results SET data = x'00'")
    async with an_open_storage(tmp_path) as storage:
        with pytest.raises(DataDamaged):
            await storage.get(task.id)


async def test_a_lost_payload_is_never_made_up_and_holds_nobody_up(tmp_path: Path) -> None:
    async with an_open_storage(tmp_path) as storage:
        lost = await submitted(storage, a_submit(payload=b"lost"))
        sound = await submitted(storage, a_submit(payload=b"sound"))
        await write_aside(tmp_path, f"DELETE FROM payloads WHERE seq = {lost.seq}")
        assert await storage.audit() == [f"task {lost.id} has no payload"]
        taken = await claimed(storage, Claim("w", ("work",), 10))
        assert [(one.task.id, one.payload) for one in taken] == [(sound.id, b"sound")]
        detail = await storage.get(lost.id)
        assert detail is not None
        assert detail.task.status is Status.DEAD_LETTER


async def test_a_row_that_makes_no_sense_spoils_only_what_needs_it(tmp_path: Path) -> None:
    async with an_open_storage(tmp_path) as storage:
        senseless = await submitted(storage, a_submit(task_type="bad"))
        await submitted(storage, a_submit(task_type="good"))
        await write_aside(
            tmp_path, f"UPDATE tasks SET last_event = 'xyz' WHERE seq = {senseless.seq}"
        )
        fresh = a_submit(task_type="good")
        outcomes = (
            await apply(storage, Claim("w", ("bad",), 5), Claim("w", ("good",), 5), fresh)
        ).outcomes
        assert isinstance(outcomes[0], DataDamaged)
        assert isinstance(outcomes[1], list)
        assert len(outcomes[1]) == 2
        with pytest.raises(DataDamaged):
            await storage.get(senseless.id)


async def test_an_index_of_ids_that_leads_to_another_task_is_noticed(tmp_path: Path) -> None:
    async with an_open_storage(tmp_path) as storage:
        await submitted(storage, a_submit())
        asked = await submitted(storage, a_submit(payload=b"asked"))
        other = await submitted(storage, a_submit(payload=b"other"))
    swap(tmp_path, asked.id.encode() + bytes([asked.seq]), asked.id.encode() + bytes([other.seq]))
    async with an_open_storage(tmp_path) as storage:
        for question in (storage.get(asked.id), storage.payload(asked.id)):
            with pytest.raises(DataDamaged):
                await question
        with pytest.raises(DataDamaged):
            await apply(storage, Cancel(asked.id))
        detail = await storage.get(other.id)
        assert detail is not None
        assert detail.task == other
        assert any("index by_id" in line for line in await storage.audit())


async def test_an_index_of_ready_tasks_that_leads_to_another_type_is_noticed(
    tmp_path: Path,
) -> None:
    async with an_open_storage(tmp_path) as storage:
        await submitted(storage, a_submit())
        asked = await submitted(storage, a_submit(task_type="a"))
        other = await submitted(storage, a_submit(task_type="b"))
    entry = b"a" + bytes([asked.priority]) + asked.run_at.to_bytes(8)
    swap(tmp_path, entry + bytes([asked.seq]), entry + bytes([other.seq]))
    async with an_open_storage(tmp_path) as storage:
        outcomes = (await apply(storage, Claim("w", ("a",), 5), Claim("w", ("b",), 5))).outcomes
        assert isinstance(outcomes[0], DataDamaged)
        assert isinstance(outcomes[1], list)
        assert [one.task.id for one in outcomes[1]] == [other.id]


async def test_an_index_of_ended_tasks_that_leads_to_a_living_one_deletes_nothing(
    tmp_path: Path,
) -> None:
    async with an_open_storage(tmp_path) as storage:
        living = [await submitted(storage, a_submit()) for _ in range(2)][-1]
        ended = await submitted(storage, a_submit())
        await apply(storage, Cancel(ended.id))
    entry = b"\x03\x06\x01" + clock.wall().to_bytes(8)  # a record of two numbers, 8 and 1 bytes
    swap(tmp_path, entry + bytes([ended.seq]), entry + bytes([living.seq]))
    async with an_open_storage(tmp_path) as storage:
        [outcome] = (await apply(storage, Purge(clock.wall() + 1, 10))).outcomes
        assert isinstance(outcome, DataDamaged)
        assert await storage.get(living.id) is not None


async def test_a_random_flip_in_the_database_gives_a_refusal_or_the_truth(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with an_open_storage(folder) as storage:
        sent = {
            (await submitted(storage, a_submit(payload=bytes([number]) * 500))).id: (
                bytes([number]) * 500
            )
            for number in range(30)
        }
    pristine = (folder / "queue.db").read_bytes()
    chance = random.Random(7)
    for _ in range(60):
        damaged = bytearray(pristine)
        damaged[chance.randrange(len(damaged))] ^= 1 << chance.randrange(8)
        (folder / "queue.db").write_bytes(damaged)
        (folder / "commit.mark").unlink(missing_ok=True)
        storage = open_storage(folder)
        with suppress(TaskQueueError):
            await storage.open()
            await check_answers(storage, sent)
            await storage.close()


async def check_answers(storage: Storage, sent: dict[str, bytes]) -> None:
    """Each answer is the truth; a refusal is none."""
    for task_id, payload in sent.items():
        with suppress(TaskQueueError):
            assert await storage.payload(task_id) in (payload, None)
        with suppress(TaskQueueError):
            detail = await storage.get(task_id)
            assert detail is None or detail.task.id == task_id
    with suppress(TaskQueueError, apsw.SQLError):  # the latter for a damaged schema
        for one in await claimed(storage, Claim("w", ("work",), 30)):
            assert zlib.crc32(one.payload) == one.task.payload_crc
            assert one.payload == sent.get(one.task.id, one.payload)


async def write_aside(folder: Path, statement: str) -> None:
    """Change the database behind the engine's back."""
    with closing(apsw.Connection(str(folder / "queue.db"))) as connection:
        connection.execute(statement)


def swap(folder: Path, found: bytes, put: bytes) -> None:
    """Put other bytes in the one place of the database where `found` stands."""
    contents = (folder / "queue.db").read_bytes()
    assert contents.count(found) == 1
    (folder / "queue.db").write_bytes(contents.replace(found, put))
