"""Log lines: one form for all sources, one line each whatever is in them."""

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from taskqueue.server.logs import set_up_logs


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root, before = logging.getLogger(), logging.getLogger().handlers[:]
    stream = io.StringIO()
    yield stream
    root.handlers = before
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_has_the_documented_fields(stream: io.StringIO) -> None:
    set_up_logs("info", "json", stream)
    structlog.get_logger(component="ledger").warning("slow", task_id="t", worker_id="w")
    [line] = lines(stream)
    assert line.pop("timestamp")
    assert line == {
        "level": "warning",
        "message": "slow",
        "component": "ledger",
        "task_id": "t",
        "worker_id": "w",
    }


def test_the_workers_lines_come_out_alike(stream: io.StringIO) -> None:
    set_up_logs("info", "json", stream)
    logging.getLogger("taskqueue.worker").warning("task %s", "failed", extra={"task_id": "t"})
    [line] = lines(stream)
    assert (line["message"], line["component"], line["task_id"], line["level"]) == (
        "task failed",
        "worker",
        "t",
        "warning",
    )


@pytest.mark.parametrize("form", ["json", "text"])
def test_nothing_a_client_sends_breaks_or_colours_a_line(stream: io.StringIO, form: str) -> None:
    set_up_logs("info", form, stream)
    evil = "a\r\nb\x1b[31m\u202ec\0"
    structlog.get_logger(component="x").warning("told", worker_id=evil)
    logging.getLogger("taskqueue.worker").warning("told %s", evil)
    text = stream.getvalue()
    assert len(text.splitlines()) == 2
    assert not {"\r", "\x1b", "\u202e", "\0"} & set(text)


def test_what_is_below_the_level_is_left_out(stream: io.StringIO) -> None:
    set_up_logs("error", "json", stream)
    structlog.get_logger(component="x").warning("quiet")
    logging.getLogger("taskqueue.worker").info("quiet")
    assert stream.getvalue() == ""


def test_an_exception_keeps_its_traceback_in_one_line(stream: io.StringIO) -> None:
    set_up_logs("info", "json", stream)
    try:
        raise ValueError("inner")
    except ValueError:
        structlog.get_logger(component="x").exception("outer")
    [line] = lines(stream)
    assert "ValueError: inner" in str(line["exception"])
