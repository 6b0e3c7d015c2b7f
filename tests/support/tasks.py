"""Tasks to test with: each field as a default unless the test says otherwise."""

import zlib
from typing import Any

from taskqueue.core.clock import SECOND, ManualClock
from taskqueue.core.commands import Submit
from taskqueue.core.ids import new_task_id
from taskqueue.core.task import Status, Task

START = ManualClock().wall()


def a_submit(payload: bytes = b"x", **fields: Any) -> Submit:
    """A submit of a task of the type "work", at the moment at which a ManualClock starts."""
    moment = fields.pop("now", START)
    values: dict[str, Any] = {
        "seq": 0,
        "id": new_task_id(),
        "task_type": "work",
        "priority": 100,
        "status": Status.PENDING,
        "run_at": moment,
        "timeout": 300 * SECOND,
        "max_retries": 3,
        "payload_crc": zlib.crc32(payload),
        "created_at": moment,
        "updated_at": moment,
    }
    return Submit(Task(**values | fields), payload)
