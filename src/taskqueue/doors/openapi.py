"""The OpenAPI 3.1 document, made from the table of operations and the structs they speak in."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from typing import Any, Final

import msgspec
from msgspec import Struct, inspect

from taskqueue.broker.operation import Operation
from taskqueue.broker.operations import OPERATIONS
from taskqueue.core.errors import (
    AuthenticationFailed,
    BrokerUnavailable,
    IdempotencyConflict,
    InternalError,
    InvalidRequest,
    InvalidStatus,
    KeyExists,
    KeyNotFound,
    OutcomeUnknown,
    PayloadTooLarge,
    PermissionDenied,
    QueueDepthExceeded,
    RateLimitExceeded,
    TaskNotFound,
    TaskQueueError,
    UnsupportedMedia,
    WorkerNotFound,
)
from taskqueue.core.keys import Permission
from taskqueue.doors.actions import body_struct
from taskqueue.doors.faults import bare
from taskqueue.doors.rest_input import LONGEST_WAIT, WAIT_PARAMETER, QueryReader, path_fields_of
from taskqueue.wire import administration, figures
from taskqueue.wire import messages as m
from taskqueue.wire.cluster import ClusterBrokerReply

Json = dict[str, Any]

REF: Final = "#/components/schemas/{name}"

_ID: Final = "550e8400-e29b-41d4-a716-446655440000"
_SUBMIT: Final[Json] = {
    "task_type": "send_email",
    "payload": "eyJlbWFpbCI6ICJ1c2VyQGV4YW1wbGUuY29tIn0=",
    "priority": 200,
    "timeout_seconds": 600,
    "max_retries": 5,
}
EXAMPLES: Final[dict[str, Json]] = {
    "submit": _SUBMIT,
    "submit_batch": {"tasks": [_SUBMIT, {"task_type": "send_email", "payload": ""}]},
    "create_key": {"name": "web-shop", "permissions": ["submit_tasks", "read_tasks"]},
    "rotate_key": {"overlap_seconds": 3600},
    "change": {"priority": 250, "delay_seconds": 60},
}
"""A body for each operation that takes one."""

PARAMETER_EXAMPLES: Final[dict[str, object]] = {
    "task_id": _ID,
    "key_id": "key_2f6b1c0de4a95d38",
    "status": "completed",
    "limit": 50,
    "task_type": "send_email",
    "running": True,
    "tags": ["vip"],
    "metadata": ["customer=17"],
    "worker_id": "web-1.4711",
    "order": "quiet",
    WAIT_PARAMETER: 0.5,
}

NAMED: Final = "^[!-<>-~]{1,255}=[ -~]{0,1000}$"
"""Names and values that need no thought; there are others."""

BASE64: Final = (
    "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$"
)
"""With padding, and with the bits that stand for nothing at 0: one text for any bytes."""

_TEXT: Final[Json] = {"type": "string"}
_NUMBER: Final[Json] = {"type": "number"}
_CHANGED: Final = "ChangeBody"
_START: Final = ({"schedule_at": _TEXT}, {"delay_seconds": _NUMBER})
_NOT_TOGETHER: Final[dict[str, tuple[tuple[Json, Json], ...]]] = {
    "SubmitRequest": (_START, ({"expires_at": _TEXT}, {"expires_in_seconds": _NUMBER})),
    _CHANGED: (_START,),
    "CreateKeyRequest": (
        (
            {"task_type_prefix": _TEXT},
            {"permissions": {"type": "array", "contains": {"const": Permission.ADMIN.value}}},
        ),
    ),
}
"""What excludes each other in a request."""

_IDEMPOTENCY_KEY: Final[Json] = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "Any name of your own: for a day, a repeat gets the first answer again",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$"},
    "example": "order-17",
}

_SHUT_OUT: Final = (AuthenticationFailed, PermissionDenied)
_READ: Final = (InvalidRequest, BrokerUnavailable, InternalError)
_CHANGE: Final = (*_READ, OutcomeUnknown)
_WRITE: Final = (*_CHANGE, PayloadTooLarge, UnsupportedMedia)
_MOVE: Final = (*_CHANGE, TaskNotFound, InvalidStatus)
RAISES: Final[dict[str, tuple[type[TaskQueueError], ...]]] = {
    "submit": (*_WRITE, IdempotencyConflict, QueueDepthExceeded),
    "submit_batch": _WRITE,
    "get": (*_READ, TaskNotFound),
    "cancel": _MOVE,
    "stop": _MOVE,
    "retry": _MOVE,
    "change": (*_MOVE, PayloadTooLarge, UnsupportedMedia),
    "purge": _MOVE,
    "logs": (*_READ, TaskNotFound),
    "order": (*_CHANGE, WorkerNotFound),
    "create_key": (*_WRITE, KeyExists),
    "rotate_key": (*_WRITE, KeyNotFound, InvalidStatus),
    "revoke_key": (*_CHANGE, KeyNotFound, InvalidStatus),
}
"""What each operation may refuse with; those not named here read only."""

_LIMITS: Final = {
    "X-RateLimit-Limit": "Requests a second that one key or address may send",
    "X-RateLimit-Remaining": "How many may come at once now",
    "X-RateLimit-Reset": "Unix time at which all of them may come again",
    "X-Request-Id": "Names the request in the broker's log; made, or as the request brought it",
}
"""Headers of every answer; the first three only where there is a limit."""

SECURITY: Final[Json] = {"type": "http", "scheme": "bearer", "description": "An API key"}

_PAGES: Final = (
    ("/metrics", "metrics", "The broker's numbers for Prometheus", "text/plain"),
    ("/openapi.json", "openapi", "This document", "application/json"),
    ("/docs", "docs", "This document as a page", "text/html"),
)


def document(operations: Sequence[Operation] = OPERATIONS) -> Json:
    """The whole document."""
    paths: dict[str, Json] = defaultdict(dict)
    offered = [operation for operation in operations if operation.http is not None]
    schemas = _schemas(offered)
    for operation in offered:
        assert operation.http is not None  # noqa: S101  for the type checker
        paths[operation.http.path][operation.http.method.lower()] = _operation(operation, schemas)
    for path, name, summary, media in _PAGES:
        paths[path]["get"] = {
            "operationId": name,
            "summary": summary,
            "responses": {
                "200": {"description": summary, "content": {media: {}}, "headers": _headers()},
                **_told((InvalidRequest, *_SHUT_OUT, RateLimitExceeded)),
            },
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "taskqueue",
            "version": version("taskqueue"),
            "description": "A durable task queue. Bytes are base64, times RFC 3339 in UTC.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": dict(paths),
        "components": {"schemas": schemas, "securitySchemes": {"api_key": SECURITY}},
    }


def _operation(operation: Operation, schemas: Json) -> Json:
    assert operation.http is not None  # noqa: S101  for the type checker
    path_fields = path_fields_of(operation.http.path)
    entry: Json = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [_parameter(name, "path", schemas, operation) for name in path_fields],
    }
    if operation.http.method not in ("POST", "PATCH") or not operation.http.has_body:
        names = QueryReader(operation.request, path_fields).names
        entry["parameters"] += [_parameter(name, "query", schemas, operation) for name in names]
    elif operation.name in EXAMPLES:
        body = body_struct(operation.request, path_fields)
        media = {"schema": _ref(body), "example": EXAMPLES[operation.name]}
        entry["requestBody"] = {"required": True, "content": {"application/json": media}}
    if operation.name == "submit":
        entry["parameters"].append(_IDEMPOTENCY_KEY)
    if operation.permission is not None:
        # A key, or none while none is needed.
        entry["security"] = [{"api_key": []}, {}]
        entry["description"] = f"Needs the permission `{operation.permission}` once keys exist."
    if operation.deprecated is not None:
        entry["deprecated"] = True
    entry["responses"] = {str(operation.http.status): _success(operation), **_errors(operation)}
    return entry


def _parameter(name: str, place: str, schemas: Json, operation: Operation) -> Json:
    if name == WAIT_PARAMETER:
        schema: Json = {"type": "number", "minimum": 0, "maximum": LONGEST_WAIT, "default": 0}
        text = "Seconds to wait for the task's end before answering how it stands"
    else:
        schema = _without_null(schemas[operation.request.__name__]["properties"][name])
        text = schema.pop("description", "")
        if place == "query" and schema.get("type") == "object":
            schema = {"type": "array", "items": {"type": "string", "pattern": NAMED}}
            text += "; each as name=value"
    is_required = name in schemas[operation.request.__name__].get("required", ())
    entry: Json = {"name": name, "in": place, "required": is_required, "schema": schema}
    if text:
        entry["description"] = text
    if name in PARAMETER_EXAMPLES:
        entry["example"] = PARAMETER_EXAMPLES[name]
    return entry


def _success(operation: Operation) -> Json:
    if operation.replies is None:
        return {"description": "Done; there is nothing to say", "headers": _headers()}
    return {
        "headers": _headers(),
        "description": _first_sentence(operation.replies.__doc__ or operation.summary),
        "content": {"application/json": {"schema": _ref(operation.replies)}},
    }


def _errors(operation: Operation) -> Json:
    raised = RAISES.get(operation.name, _READ)
    if operation.permission is not None:
        raised = (*raised, AuthenticationFailed, PermissionDenied)
    if operation.is_counted:
        raised = (*raised, RateLimitExceeded)
    responses = _told(raised)
    if operation.replies is figures.HealthReply:
        responses["503"] = {**_success(operation), "description": "The broker is degraded"}
    return responses


def _told(errors: Iterable[type[TaskQueueError]]) -> Json:
    """The responses that stand for errors, by their status."""
    by_status: dict[int, list[type[TaskQueueError]]] = defaultdict(list)
    for error in errors:
        by_status[error.http].append(error)
    responses: Json = {}
    for status, alike in sorted(by_status.items()):
        told = (f"`{error.code}`: {_first_sentence(error.__doc__ or '')}" for error in alike)
        responses[str(status)] = {
            "description": "\n\n".join(told),
            "headers": _headers(status),
            "content": {"application/json": {"schema": _ref(m.ErrorReply)}},
        }
    return responses


def _headers(status: int = 200) -> Json:
    names = dict(_LIMITS)
    if status in (429, 503):
        names["Retry-After"] = "Seconds to wait before trying again, where that is known"
    return {
        name: {"description": text, "schema": {"type": "string"}} for name, text in names.items()
    }


def _schemas(operations: Iterable[Operation]) -> Json:
    structs: dict[type[Struct], None] = {m.ErrorReply: None}
    for operation in operations:
        structs[operation.request] = None
        assert operation.http is not None  # noqa: S101  for the type checker
        if operation.name in EXAMPLES:
            structs[body_struct(operation.request, path_fields_of(operation.http.path))] = None
        # msgspec has no schema for a choice of structs; that one is written out below.
        if operation.replies is not None and operation.replies is not m.SubmitBatchReply:
            structs[operation.replies] = None
    _refs, schemas = msgspec.json.schema_components(list(structs), ref_template=REF)
    _write_patterns(schemas)
    for schema in schemas.values():
        schema["description"] = _first_sentence(schema.get("description", ""))
    inner: list[type[Struct]] = [
        m.TaskSummary,
        m.FailureReply,
        administration.KeyReply,
        administration.AuditEntryReply,
        ClusterBrokerReply,
    ]
    for struct in [*structs, *inner]:
        if struct.__name__ in schemas:
            _mark_dates(struct, schemas[struct.__name__])
    _say_what_structs_cannot(schemas)
    return schemas


def _say_what_structs_cannot(schemas: Json) -> None:
    """Write out what the types of a struct do not tell, or msgspec has no schema for."""
    for name, pairs in _NOT_TOGETHER.items():
        if name in schemas:
            schemas[name]["allOf"] = [
                {"not": {"properties": {**one, **other}, "required": [*one, *other]}}
                for one, other in pairs
            ]
    if _CHANGED in schemas:
        schemas[_CHANGED]["anyOf"] = [
            {"properties": {name: kind}, "required": [name]}
            for name, kind in (
                ("priority", {"type": "integer"}),
                *_START[0].items(),
                *_START[1].items(),
            )
        ]
    batch = schemas.get(m.SubmitBatchRequest.__name__)
    if batch is None:
        return
    # A task that cannot be read has an error of its own, and spoils none of the others.
    batch["properties"]["tasks"]["items"] = {
        "anyOf": [_ref(m.SubmitRequest), {"description": "Gets an error in its place"}]
    }
    one_of = [_ref(m.SubmitReply), _ref(m.ErrorReply)]
    schemas[m.SubmitBatchReply.__name__] = {
        "title": m.SubmitBatchReply.__name__,
        "description": m.SubmitBatchReply.__doc__,
        "type": "object",
        "properties": {"results": {"type": "array", "items": {"anyOf": one_of}}},
        "required": ["results"],
    }


def _write_patterns(schema: Any) -> None:
    """Put regular expressions as ECMAScript has them, where `$` is the end and nothing else.

    Lone surrogates, which some tools cannot name, are no text in JSON in any case.
    """
    if isinstance(schema, list):
        for part in schema:
            _write_patterns(part)
    elif isinstance(schema, dict):
        if schema.get("contentEncoding") == "base64":
            schema["pattern"] = BASE64
        if schema.get("pattern") == m.NAME_PATTERN:
            pattern = m.NAME_PATTERN.replace(r"(?![\s\S])", "$")
            schema["pattern"] = pattern.replace(r"\ud800-\udfff", "")
        for part in schema.values():
            _write_patterns(part)


def _mark_dates(struct: type[Struct], schema: Json) -> None:
    # msgspec says so only of dates that must carry an offset.
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)  # noqa: S101  for the type checker
    for field in info.fields:
        if isinstance(bare(field.type), inspect.DateTimeType):
            found = schema["properties"][field.encode_name]
            found.get("anyOf", [found])[0]["format"] = "date-time"


def _without_null(schema: Json) -> Json:
    choices = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    if not choices:
        return dict(schema)
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**choices[0], **rest}


def _ref(struct: type[Struct]) -> Json:
    return {"$ref": REF.format(name=struct.__name__)}


def _first_sentence(text: str) -> str:
    line = " ".join(text.split())
    return line.split(". ")[0].removesuffix(".")
