"""A storage whose transactions end when the test says so."""

import asyncio

from taskqueue.core.batch import Applied, Batch
from taskqueue.storage.port import Storage


class GatedStorage(Storage):
    """Holds each batch until `commit` or `fail`; every outcome is 0."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self._gate: asyncio.Future[None] | None = None

    @property
    def begun(self) -> int:
        """How many transactions have begun."""
        return len(self.batches)

    async def apply(self, batch: Batch) -> Applied:
        self.batches.append(batch)
        self._gate = asyncio.get_running_loop().create_future()
        await self._gate
        return Applied([0 for _ in batch.commands], [], {}, None, 0)

    def commit(self) -> None:
        """Let the transaction that is under way succeed."""
        if self._gate is not None and not self._gate.done():
            self._gate.set_result(None)

    def fail(self, error: Exception) -> None:
        """Let the transaction that is under way fail."""
        assert self._gate is not None
        self._gate.set_exception(error)
