"""Logs: one line each to stderr, JSON for machines or readable text for a terminal.

structlog's loggers of the broker and the standard ones of libraries and the SDK's worker come out
in the same form. What clients send is escaped, so that it cannot forge or colour a line.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Final, TextIO

import structlog
from structlog.typing import Processor

_QUIET: Final = ("uvicorn.access", "asyncio")
_EXTRA: Final = structlog.stdlib.ExtraAdder(allow={"task_id", "worker_id", "component"})


def set_up_logs(level: str, form: str, stream: TextIO = sys.stderr) -> None:
    """Send all logs from `level` on to `stream`; `form` is json, text or auto."""
    as_text = form == "text" or (form == "auto" and stream.isatty())
    shared: list[Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _escape,
    ]
    last: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if as_text:
        last.append(structlog.dev.ConsoleRenderer(colors=stream.isatty()))
    else:
        last += [structlog.processors.EventRenamer("message"), structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[_EXTRA, _name_component, *shared], processors=last
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


def _name_component(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    record: logging.LogRecord | None = event.get("_record")
    if record is not None:
        event.setdefault("component", record.name.removeprefix("taskqueue."))
    return event


def _escape(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if isinstance(value, str) and key != "exception" and not value.isprintable():
            event[key] = "".join(
                character
                if character.isprintable()
                else character.encode("unicode_escape", "backslashreplace").decode()
                for character in value
            )
    return event
