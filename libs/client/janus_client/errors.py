"""What can go wrong, as exceptions.

::

    JanusError                    everything this package raises for a call
    ├── InvalidRequestError       the request is wrong: ``field`` and ``allowed`` say where; do not retry
    ├── AuthenticationError       no API key, or not a valid one
    ├── NotFoundError             another model is served
    ├── RateLimitError            too much in flight; retry after ``retry_after_s``
    ├── UnavailableError          no gateway or no worker now; retry
    ├── DeadlineError             it took longer than ``timeout_s``
    ├── RequestCancelledError     cancelled, by this side or by the gateway's shutdown
    ├── UnsupportedError          this release does not do it
    └── ServerError               a bug or a broken invariant in the mesh; report it
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

_DETAILS_KEY = "grpc-status-details-bin"


class JanusError(Exception):
    """Base of all."""

    def __init__(self, text: str, *, code: str = "UNKNOWN") -> None:
        super().__init__(text)
        self.code = code
        """Name of the google.rpc code, e.g. ``INVALID_ARGUMENT``."""
        self.reason = ""
        """Machine-readable cause, e.g. ``CONTEXT_LENGTH_EXCEEDED``."""
        self.field: str | None = None
        """The field of the request that is wrong."""
        self.allowed: str | None = None
        """What the field may be."""
        self.next_step = ""
        """What to do about it."""
        self.retry_after_s: float | None = None
        """Seconds to wait before a retry, where the server knows."""


class InvalidRequestError(JanusError):
    """The request is wrong whatever the mesh's state."""


class AuthenticationError(JanusError):
    """No API key, or not a valid one."""


class NotFoundError(JanusError):
    """What was asked for does not exist."""


class RateLimitError(JanusError):
    """Too many requests are in flight."""


class UnavailableError(JanusError):
    """Not now; a retry may succeed."""


class DeadlineError(JanusError):
    """It took longer than was allowed."""


class RequestCancelledError(JanusError):
    """The call was cancelled."""


class UnsupportedError(JanusError):
    """This release of the server does not do it."""


class ServerError(JanusError):
    """A bug or a broken invariant on the server's side."""


_BY_CODE: dict[grpc.StatusCode, type[JanusError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequestError,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequestError,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequestError,
    grpc.StatusCode.UNAUTHENTICATED: AuthenticationError,
    grpc.StatusCode.PERMISSION_DENIED: AuthenticationError,
    grpc.StatusCode.NOT_FOUND: NotFoundError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: RateLimitError,
    grpc.StatusCode.UNAVAILABLE: UnavailableError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineError,
    grpc.StatusCode.CANCELLED: RequestCancelledError,
    grpc.StatusCode.UNIMPLEMENTED: UnsupportedError,
}


def from_rpc_error(error: grpc.RpcError) -> JanusError:
    """The exception of a failed call, of grpc or grpc.aio."""
    call: Any = error
    code: grpc.StatusCode = call.code()
    result = _BY_CODE.get(code, ServerError)(call.details() or code.name, code=code.name)
    for key, value in call.trailing_metadata() or ():
        if key == _DETAILS_KEY:
            _fill(result, value)
    return result


def _fill(target: JanusError, packed: bytes) -> None:
    status = status_pb2.Status()
    try:
        status.ParseFromString(packed)
    except message.DecodeError:
        return  # code and text are there; details that cannot be read add nothing
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            target.reason = info.reason
            target.next_step = info.metadata.get("next_step", "")
            target.allowed = info.metadata.get("allowed")
        elif detail.Unpack(bad) and bad.field_violations:
            target.field = bad.field_violations[0].field
        elif detail.Unpack(retry):
            target.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
