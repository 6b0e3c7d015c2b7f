"""Everything together: the database with its nodes, three brokers, and workers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from examples.ha.brokers import Broker, worker
from examples.ha.database import Database
from examples.ha.processes import Process

BROKERS: Final = ("b1", "b2", "b3")
APP: Final = "taskqueue.cli.samples:app"
WORKERS: Final = 2


class Cluster:
    """What runs in a folder."""

    def __init__(self, folder: Path) -> None:
        self.database = Database(folder)
        self.brokers = [Broker(name, folder / name, self.database.dsn()) for name in BROKERS]
        addresses = [broker.native for broker in self.brokers]
        self.workers: list[Process] = [worker(folder, APP, addresses) for _ in range(WORKERS)]

    def start(self) -> None:
        """Start one thing after the other."""
        self.database.start()
        for broker in self.brokers:
            broker.start()
        for one in self.workers:
            one.start()

    def stop(self) -> None:
        """Stop them the other way round, and leave nothing running."""
        ending = [*self.workers, *(broker.process for broker in self.brokers)]
        for process in ending:
            process.ask_to_end()
        for process in ending:
            process.wait()
        self.database.stop()


@contextmanager
def a_cluster(folder: Path) -> Iterator[Cluster]:
    """A running cluster in a folder, stopped with the block, whatever happens in it."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
