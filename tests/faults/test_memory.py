"""What a worker takes of its machine: while it is idle, and after much work."""

from pathlib import Path

from benchmarks.worker_memory import IDLE_LIMIT, Census, a_worker, counted, grown, soak
from taskqueue import SyncClient
from tests.faults.scene import a_scene

TASKS = 6_000
"""`python -m benchmarks.worker_memory --tasks 1000000` is the long form."""


def test_a_worker_is_small_and_does_not_grow_with_its_work(tmp_path: Path) -> None:
    """Memory, objects, asyncio tasks, threads and descriptors, at a third and at the end."""
    with (
        a_scene(tmp_path, lease=30) as scene,
        a_worker(scene.broker.native),
        SyncClient(scene.broker.native) as client,
    ):
        assert counted(client).resident < IDLE_LIMIT
        done, seen = zip(*soak(client, TASKS, rounds=3), strict=True)
        assert done[-1] == TASKS
        assert grown(list(seen)) == []


def test_what_grows_is_found() -> None:
    fine = Census(
        children=2, resident=50 << 20, objects=40_000, asyncio_tasks=9, threads=9, descriptors=20
    )
    for name, more in {
        "resident": 57 << 20,
        "objects": 41_000,
        "asyncio_tasks": 20,
        "threads": 14,
        "descriptors": 30,
    }.items():
        figures = {field: getattr(fine, field) for field in Census.__struct_fields__}
        [complaint] = grown([fine, fine, Census(**{**figures, name: more})])
        assert complaint.startswith(f"{name} grew from ")
    assert grown([fine, fine, fine]) == []
