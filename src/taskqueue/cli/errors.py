"""`tq errors`: what each code means and what to do about it."""

from typing import Annotated, Final, NamedTuple

from cyclopts import Parameter

from taskqueue.cli.output import PLAIN, Form, is_for_programs, print_record, print_rows
from taskqueue.core.errors import InvalidRequest, TaskQueueError

COLUMNS: Final = ("code", "http", "meaning", "advice")


class Explained(NamedTuple):
    """A code, what it means and what to do; `next_step` is what to type where that can be said.

    `error` is the class of the SDK; several may have one code.
    """

    code: str
    http: int
    error: str
    meaning: str
    advice: str
    next_step: str = ""


EXPLAINED: Final = (
    Explained(
        "INVALID_REQUEST",
        400,
        "InvalidRequest",
        "the input is wrong; the message names the field",
        "correct it",
    ),
    Explained(
        "AUTHENTICATION_FAILED",
        401,
        "AuthenticationFailed",
        "a valid API key is needed",
        "send one; it may have been revoked",
        "give --api-key KEY, set TQ_API_KEY, or keep it: tq profile set NAME --api-key KEY",
    ),
    Explained(
        "PERMISSION_DENIED",
        403,
        "PermissionDenied",
        "the key has not the permission, or is for other task types",
        "ask for another key",
        "whoever has an admin key makes one: tq keys create --name NAME --permission …",
    ),
    Explained(
        "TASK_NOT_FOUND",
        404,
        "TaskNotFound",
        "no task has this id, or it is past retention",
        "check the id",
        "see the latest: tq list",
    ),
    Explained(
        "WORKER_NOT_FOUND",
        404,
        "WorkerNotFound",
        "no worker with this id is alive",
        "check the id",
    ),
    Explained(
        "KEY_NOT_FOUND",
        404,
        "KeyNotFound",
        "no API key has this id",
        "`tq keys list` shows them",
        "see them: tq keys list",
    ),
    Explained("NOT_FOUND", 404, "RouteNotFound", "no such path", "see the reference"),
    Explained(
        "METHOD_NOT_ALLOWED",
        405,
        "MethodNotAllowed",
        "the path has no such method",
        "`Allow` names those it has",
    ),
    Explained(
        "INVALID_STATUS",
        409,
        "InvalidStatus",
        "the task's status forbids it",
        "the message says what would be allowed",
    ),
    Explained(
        "IDEMPOTENCY_CONFLICT",
        409,
        "IdempotencyConflict",
        "the `task_id` or idempotency key stands for a task with other content",
        "choose a new one",
        "give another --key",
    ),
    Explained(
        "KEY_EXISTS",
        409,
        "KeyExists",
        "another valid API key has this name",
        "choose another name",
        "see them: tq keys list",
    ),
    Explained(
        "LEASE_LOST", 409, "LeaseLost", "the claim is over; nothing was changed", "drop the result"
    ),
    Explained(
        "PAYLOAD_TOO_LARGE",
        413,
        "PayloadTooLarge",
        "payload or result over 10 MiB, or body over its cap",
        "store it elsewhere, send its address",
    ),
    Explained(
        "UNSUPPORTED_MEDIA_TYPE",
        415,
        "UnsupportedMedia",
        "not `application/json`, or an encoding",
        "send plain JSON",
    ),
    Explained(
        "RATE_LIMIT_EXCEEDED",
        429,
        "RateLimitExceeded",
        "more requests than one key or address may send",
        "wait `Retry-After` seconds",
    ),
    Explained(
        "INTERNAL_ERROR",
        500,
        "InternalError",
        "a fault of the broker, or stored bytes that fail their checksum (`DataDamaged`)",
        "its log says more",
        "see the broker's log",
    ),
    Explained(
        "QUEUE_DEPTH_EXCEEDED",
        503,
        "QueueDepthExceeded",
        "as many tasks are pending as may be",
        "wait `Retry-After` seconds",
        "see what waits: tq queue-depth",
    ),
    Explained(
        "BROKER_UNAVAILABLE",
        503,
        "BrokerUnavailable",
        "it cannot be done now; nothing was changed",
        "try again",
    ),
    Explained(
        "BROKER_UNAVAILABLE",
        503,
        "OutcomeUnknown",
        'the message says "outcome unknown": it may have been done',
        "repeat with the same `task_id`",
    ),
    Explained(
        "BROKER_UNAVAILABLE",
        503,
        "NobodyAnswers",
        "none of the brokers whose addresses it has can be reached",
        "start one, or correct the address",
        "start one: tq serve; or say where it is: --url HOST:PORT",
    ),
    Explained(
        "TASK_FAILED",
        409,
        "TaskFailed",
        "the task ended without a result",
        "its failures say why",
        "see its failures: tq status ID; once mended: tq retry ID",
    ),
    Explained(
        "WAIT_TIMEOUT",
        504,
        "WaitTimeout",
        "the time to wait is over, the task goes on",
        "wait again",
        "wait longer: tq wait ID --timeout SECONDS",
    ),
)
"""Every error that a caller can meet, worded as in docs/reference/errors.md."""

CODES: Final = tuple(dict.fromkeys(explained.code for explained in EXPLAINED))


def errors(
    code: Annotated[
        str | None, Parameter(help="one of them", completer=lambda _context: CODES)
    ] = None,
    *,
    form: Form = PLAIN,
) -> None:
    """Explain an error's code, or list all of them."""
    if code is None:
        print_rows([entry._asdict() for entry in EXPLAINED], form, COLUMNS)
        return
    wanted = code.upper().replace("-", "_")
    found = [entry for entry in EXPLAINED if entry.code == wanted]
    if not found:
        raise InvalidRequest(f"there is no code {code!r}; tq errors lists them", field="code")
    if is_for_programs(form):
        print_rows([entry._asdict() for entry in found], form, COLUMNS)
        return
    for entry in found:
        print_record({name: text for name, text in entry._asdict().items() if text}, form)


def next_step(error: TaskQueueError) -> str:
    """What to type after an error, or nothing."""
    of_class = {entry.error: entry.next_step for entry in EXPLAINED}
    of_code = {entry.code: entry.next_step for entry in reversed(EXPLAINED)}
    name = type(error).__name__
    step = of_class[name] if name in of_class else of_code.get(error.code, "")
    task_id = getattr(error, "task_id", None)
    return step.replace(" ID", f" {task_id}") if task_id else step
