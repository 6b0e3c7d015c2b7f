"""Cursors of lists: where a page ended, good for the same filters only."""

import zlib

from taskqueue.core.errors import InvalidRequest
from taskqueue.wire import messages as m


def write_cursor(seq: int, request: m.ListRequest) -> str:
    """The cursor of the page after the task with this number."""
    return f"{seq:x}-{_check(seq, request):08x}"


def read_cursor(cursor: str, request: m.ListRequest) -> int:
    """The number that a page begins below. Raises InvalidRequest."""
    digits, _, _checksum = cursor.partition("-")
    try:
        seq = int(digits, 16)
    except ValueError:
        seq = -1
    if seq < 0 or cursor != write_cursor(seq, request):
        raise InvalidRequest(
            "cursor must be the next_cursor of a page with the same filters", field="cursor"
        )
    return seq


def _check(seq: int, request: m.ListRequest) -> int:
    filters = f"{seq}|{request.status}|{request.task_type}"
    if request.tags or request.metadata:
        filters += f"|{sorted(request.tags)}|{sorted(request.metadata.items())}"
    return zlib.crc32(filters.encode())
