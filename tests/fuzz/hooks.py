"""What a JSON schema cannot say, told to schemathesis: it imports this file by its name.

Cases that mean something else than the tool takes them for are made to mean it. One check is
replaced: a task that was cancelled by DELETE is not gone, it is to be read as cancelled.
"""

from itertools import count
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import schemathesis

SECONDS_TO_WAIT = 0.05
IDEMPOTENCY_KEY = "Idempotency-Key"
LONGEST_TO_LENGTHEN = 100

TASK = "/api/v1/tasks/{task_id}"

_numbers = count(1)
_cancelled: set[str] = set()


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Mend waits, cursors that no answer gave, 88.0 for 88, and names that were used before."""
    query = case.query
    if query:
        if _is_wait(query.get("wait")):
            query["wait"] = min(float(query["wait"]), SECONDS_TO_WAIT)
        cursor = query.get("cursor")
        if isinstance(cursor, str) and len(cursor) <= 64:
            del query["cursor"]  # it would have to come out of an answer
    if isinstance(case.body, dict | list):
        case.body = _plain(case.body)
    if case.meta is not None and case.meta.generation.mode.is_positive:
        _make_unique(case)


@schemathesis.check
def a_cancelled_task_is_kept(_context: Any, response: Any, case: Any) -> None:
    """After DELETE a task is read as cancelled, unless it was put back."""
    task_id = (case.path_parameters or {}).get("task_id")
    if not 200 <= response.status_code < 300 or not isinstance(task_id, str):
        return
    if case.method.upper() == "POST":
        _cancelled.discard(task_id)
    elif case.path == TASK and case.method.upper() == "DELETE":
        _cancelled.add(task_id)
    elif case.path == TASK and task_id in _cancelled:
        assert response.json()["status"] == "cancelled"


def _make_unique(case: Any) -> None:
    """Give a sound case names of its own: else most are refused as repeats of the first."""
    headers, body = case.headers or {}, case.body if isinstance(case.body, dict) else {}
    if case.path == "/api/v1/keys":
        _lengthen(body, "name")
    _make_fitting(case)
    if isinstance(body.get("task_id"), str):
        body["task_id"] = str(uuid5(NAMESPACE_OID, f"{body['task_id']}-{next(_numbers)}"))
    if IDEMPOTENCY_KEY in headers:
        _lengthen(headers, IDEMPOTENCY_KEY)
        if "idempotency_key" in body:
            body["idempotency_key"] = headers[IDEMPOTENCY_KEY]  # two different ones are refused
    else:
        _lengthen(body, "idempotency_key")


def _make_fitting(case: Any) -> None:
    """Take away what is sound on its own and does not fit what is beside it."""
    query, body = case.query or {}, case.body if isinstance(case.body, dict) else {}
    if isinstance(query.get("metadata"), list):
        query["metadata"] = query["metadata"][:1]  # the same name twice is refused
    if isinstance(body.get("metadata"), dict):
        for name, text in body["metadata"].items():
            if isinstance(text, str):
                body["metadata"][name] = text.replace("\0", "")  # no pattern of a schema can say so
    if "task_type" in body:
        for name in ("expires_at", "expires_in_seconds", "retry_delay_seconds", "unique_seconds"):
            body.pop(name, None)  # later than the start; at most the longest; with its period
        for name in ("unique_while", "replace"):
            body.pop(name, None)


def _lengthen(fields: Any, name: str) -> None:
    value = fields.get(name)
    if isinstance(value, str) and len(value) <= LONGEST_TO_LENGTHEN:
        fields[name] = f"{value}-{next(_numbers)}"


def _is_wait(value: object) -> bool:
    try:
        return 0 <= float(str(value)) <= 3600
    except ValueError:
        return False


def _plain(value: Any) -> Any:
    # To a schema 88.0 is a whole number, to the broker by decision it is not.
    match value:
        case dict():
            return {name: _plain(part) for name, part in value.items()}
        case list():
            return [_plain(part) for part in value]
        case float() if value.is_integer():
            return int(value)
        case _:
            return value
