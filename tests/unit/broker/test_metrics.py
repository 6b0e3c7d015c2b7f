"""The figures a broker gives of itself."""

from pathlib import Path

from taskqueue.core.clock import SECOND, ManualClock
from taskqueue.wire import messages as m
from tests.support.broker import a_broker, claimed, submitted


async def test_a_forgiven_stall_makes_no_figure_fall_below_zero(tmp_path: Path) -> None:
    clock = ManualClock()
    async with a_broker(tmp_path, clock=clock) as broker:
        task = await submitted(broker)
        clock.advance(60)
        [one] = await claimed(broker)  # the stall is over, and has not been noticed yet
        clock.forgive(60 * SECOND)
        await broker.complete(m.CompleteRequest(task_id=task.id, token=one.task.token))
        assert (await broker.stats(m.NoRequest())).avg_processing_time_ms == 0
        histogram = broker.metrics.attempts["work"]
        assert (sum(histogram.buckets), histogram.total) == (1, 0)
