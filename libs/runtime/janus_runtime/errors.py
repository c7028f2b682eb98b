"""Errors with a google.rpc code, a cause and a next step.

::

    JanusError                 code
    ├── InvalidArgument        INVALID_ARGUMENT      the request is wrong whatever the system's state
    ├── NotFound               NOT_FOUND
    ├── FailedPrecondition     FAILED_PRECONDITION   right request, wrong state; do not just retry
    │   └── StaleLeader                              another scheduler is in office
    ├── ResourceExhausted      RESOURCE_EXHAUSTED    a queue or a memory is full
    ├── Unavailable            UNAVAILABLE           retry, here or elsewhere
    ├── DeadlineExceeded       DEADLINE_EXCEEDED
    ├── Cancelled              CANCELLED
    ├── Unimplemented          UNIMPLEMENTED
    ├── Unauthenticated        UNAUTHENTICATED
    └── Internal               INTERNAL              a bug or a broken invariant
"""

from __future__ import annotations

from typing import Any, ClassVar

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

DOMAIN = "janus"
DETAILS_KEY = "grpc-status-details-bin"
_SHOWN = 120  # characters of a bad value that are worth repeating


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text)} characters)"


class JanusError(Exception):
    """Base of every error a caller should see.

    ``message`` is a full clause (the cause). ``field``, ``value`` and ``allowed`` describe bad input;
    ``next_step`` says what to do about it; ``retry_after_s`` goes into google.rpc.RetryInfo.
    """

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.UNKNOWN
    default_reason: ClassVar[str] = "UNKNOWN"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: Any = None,
        allowed: str | None = None,
        reason: str = "",
        next_step: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        self.message = message
        self.field = field
        self.value = value
        self.allowed = allowed
        self.reason = reason or self.default_reason
        self.next_step = next_step
        self.retry_after_s = retry_after_s
        super().__init__(self._text())

    def _text(self) -> str:
        text = self.message
        if self.field is not None:
            text = f"{self.field}: {text}"
            if self.value is not None:
                text += f" (got {_shorten(self.value)})"
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        if self.next_step:
            text += f". {self.next_step}" if not text.endswith(".") else f" {self.next_step}"
        return text

    def to_proto(self) -> status_pb2.Status:
        """google.rpc.Status: ErrorInfo always; BadRequest when a field is named; RetryInfo when given."""
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN)
        if self.next_step:
            info.metadata["next_step"] = self.next_step
        if self.allowed:
            info.metadata["allowed"] = self.allowed
        if self.value is not None:
            info.metadata["value"] = _shorten(self.value)
        details: list[message.Message] = [info]
        if self.field is not None:
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=self.field, description=self.message, reason=self.reason
            )
            details.append(error_details_pb2.BadRequest(field_violations=[violation]))
        if self.retry_after_s is not None:
            delay = duration_pb2.Duration()
            delay.FromNanoseconds(int(self.retry_after_s * 1e9))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        status = status_pb2.Status(code=self.code.value[0], message=str(self))
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status

    def to_status(self) -> grpc.Status:
        """For ``context.abort_with_status`` of synchronous servers and for tests."""
        from grpc_status import rpc_status

        status: grpc.Status = rpc_status.to_status(self.to_proto())
        return status

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """What ``context.abort`` of grpc.aio needs to carry the details."""
        return ((DETAILS_KEY, self.to_proto().SerializeToString()),)


class InvalidArgument(JanusError):
    """The input is wrong; name field, value and what is allowed."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    default_reason = "INVALID_ARGUMENT"


class NotFound(JanusError):
    """What was asked for does not exist."""

    code = grpc.StatusCode.NOT_FOUND
    default_reason = "NOT_FOUND"


class FailedPrecondition(JanusError):
    """The system's state forbids it; a plain retry will not help."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    default_reason = "FAILED_PRECONDITION"


class StaleLeader(FailedPrecondition):
    """A scheduler that is no longer in office tried to write."""

    default_reason = "STALE_LEADER"


class ResourceExhausted(JanusError):
    """A bounded queue or memory is full."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    default_reason = "RESOURCE_EXHAUSTED"


class Unavailable(JanusError):
    """Not now; a retry may succeed."""

    code = grpc.StatusCode.UNAVAILABLE
    default_reason = "UNAVAILABLE"


class DeadlineExceeded(JanusError):
    """It took longer than was allowed."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    default_reason = "DEADLINE_EXCEEDED"


class Cancelled(JanusError):
    """The caller went away."""

    code = grpc.StatusCode.CANCELLED
    default_reason = "CANCELLED"


class Unimplemented(JanusError):
    """This release does not do it."""

    code = grpc.StatusCode.UNIMPLEMENTED
    default_reason = "UNIMPLEMENTED"


class Unauthenticated(JanusError):
    """No valid credentials."""

    code = grpc.StatusCode.UNAUTHENTICATED
    default_reason = "UNAUTHENTICATED"


class Internal(JanusError):
    """A bug or a broken invariant."""

    code = grpc.StatusCode.INTERNAL
    default_reason = "INTERNAL"


_BY_CODE: dict[grpc.StatusCode, type[JanusError]] = {
    c.code: c
    for c in (
        InvalidArgument, NotFound, FailedPrecondition, ResourceExhausted, Unavailable, DeadlineExceeded,
        Cancelled, Unimplemented, Unauthenticated, Internal,
    )
}  # fmt: skip


def from_rpc_error(error: grpc.RpcError) -> JanusError:
    """The JanusError a peer raised, with field, reason and next step where it sent them.

    Accepts what grpc and grpc.aio clients raise. A code without a class of its own becomes Internal.
    """
    code = error.code()
    text = error.details() or code.name.lower().replace("_", " ")
    cls = _BY_CODE.get(code, Internal)
    result = cls(text)
    metadata: Any = error.trailing_metadata() or ()
    for key, value in metadata:
        if key == DETAILS_KEY:
            _fill(result, value)
    return result


def _fill(target: JanusError, packed: bytes | str) -> None:
    status = status_pb2.Status()
    try:
        status.ParseFromString(packed if isinstance(packed, bytes) else packed.encode("latin-1"))
    except message.DecodeError:
        return  # a peer's malformed details lose nothing: the code and the text are there
    for detail in status.details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            target.reason = info.reason or target.reason
            # The text already carries these; they are here for programs.
            target.next_step = info.metadata.get("next_step", "")
            target.allowed = info.metadata.get("allowed") or None
            target.value = info.metadata.get("value") or None
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            detail.Unpack(bad)
            if bad.field_violations:
                target.field = bad.field_violations[0].field
        elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            detail.Unpack(retry)
            target.retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
