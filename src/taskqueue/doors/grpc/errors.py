"""How errors leave by gRPC: a status, and its details in the form of google.rpc."""

import math
from typing import Final

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from taskqueue.core.errors import DataDamaged, InternalError, TaskQueueError

DOMAIN: Final = "taskqueue"
DETAILS: Final = "grpc-status-details-bin"
RETRY_AFTER: Final = "retry-after"

Metadata = list[tuple[str, str | bytes]]


def status_of(error: TaskQueueError) -> grpc.StatusCode:
    """The status an error has in gRPC."""
    return grpc.StatusCode[error.grpc]


def told_outside(error: TaskQueueError, request_id: str) -> TaskQueueError:
    """The error as a client may hear it: a fault of the broker is told in its log only."""
    if isinstance(error, InternalError) and not isinstance(error, DataDamaged):
        return InternalError(
            f"the broker failed; its log says more under the request id {request_id}"
        )
    return error


def metadata_of(error: TaskQueueError) -> Metadata:
    """What goes with the status: the details, and when to try again."""
    number: int = status_of(error).value[0]
    status = status_pb2.Status(code=number, message=error.message)
    for detail in _details(error):
        packed = Any()
        packed.Pack(detail)
        status.details.append(packed)
    lines: Metadata = [(DETAILS, status.SerializeToString())]
    if error.retry_after is not None:
        lines.append((RETRY_AFTER, str(max(1, math.ceil(error.retry_after)))))
    return lines


def _details(error: TaskQueueError) -> list[Message]:
    details: list[Message] = [error_details_pb2.ErrorInfo(reason=error.code, domain=DOMAIN)]
    if error.field is not None and status_of(error) is grpc.StatusCode.INVALID_ARGUMENT:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after is not None:
        delay = Duration()
        delay.FromNanoseconds(round(error.retry_after * 1_000_000_000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details
