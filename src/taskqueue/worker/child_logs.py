"""What handlers in processes log, carried to their worker's own loggers."""

import logging
import os
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from taskqueue.worker.outcomes import clipped

_plain: Final = logging.Formatter()


class Logged(Struct, tag=True, frozen=True):
    """From a child: a record of a logger, its message with its traceback."""

    logger: str
    level: int
    text: str

    def log(self, pid: int, task_id: str | None) -> None:
        """Hand it to the logger of that name in this process."""
        logger = logging.getLogger(self.logger)
        if logger.isEnabledFor(self.level):
            about = {"process_id": pid} | ({"task_id": task_id} if task_id else {})
            logger.log(self.level, "%s", self.text, extra=about)


class PipeHandler(logging.Handler):
    """Says every record to the worker; what is logged in a fork of this process is lost."""

    def __init__(self, say: Callable[[Logged], None]) -> None:
        super().__init__()
        self._say = say
        self._pid = os.getpid()

    def emit(self, record: logging.LogRecord) -> None:
        if os.getpid() != self._pid:
            return  # two processes that write to one pipe would spoil what the other says
        try:
            text = _plain.format(record)
            self._say(Logged(clipped(record.name), record.levelno, clipped(text)))
        except Exception:  # noqa: BLE001  as every handler of the standard library has it
            self.handleError(record)
