"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}`` and a fitting status."""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import grpc
from janus_runtime.errors import Internal, InvalidArgument, JanusError
from pydantic import ValidationError
from starlette.responses import JSONResponse

log = logging.getLogger("janus.gateway")

_CODES: dict[grpc.StatusCode, tuple[int, str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (400, "invalid_request_error"),
    grpc.StatusCode.FAILED_PRECONDITION: (400, "invalid_request_error"),
    grpc.StatusCode.UNAUTHENTICATED: (401, "authentication_error"),
    grpc.StatusCode.NOT_FOUND: (404, "invalid_request_error"),
    grpc.StatusCode.RESOURCE_EXHAUSTED: (429, "rate_limit_error"),
    grpc.StatusCode.CANCELLED: (499, "cancelled"),
    grpc.StatusCode.UNIMPLEMENTED: (501, "not_implemented_error"),
    grpc.StatusCode.UNAVAILABLE: (503, "service_unavailable_error"),
    grpc.StatusCode.DEADLINE_EXCEEDED: (504, "timeout_error"),
}
_REASONS = {"REQUEST_TOO_LARGE": 413, "METHOD_NOT_ALLOWED": 405, "REQUEST_TOO_SLOW": 408}


def body(error: JanusError) -> dict[str, Any]:
    """The JSON of an error, for a response or a stream."""
    _, kind = _CODES.get(error.code, (500, "server_error"))
    return {
        "error": {
            "message": str(error),
            "type": kind,
            "param": error.field,
            "code": error.reason.lower(),
        }
    }


def status(error: JanusError) -> int:
    """The HTTP status of an error."""
    return _REASONS.get(error.reason) or _CODES.get(error.code, (500, ""))[0]


def response(error: JanusError) -> JSONResponse:
    """The HTTP response of an error."""
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    if status(error) == 401:
        headers["www-authenticate"] = "Bearer"
    if status(error) == 408:  # the rest of the body, should it ever come, is nobody's request
        headers["connection"] = "close"
    return JSONResponse(body(error), status_code=status(error), headers=headers)


def event(error: JanusError) -> bytes:
    """An error in the middle of a server-sent stream."""
    return b"data: " + json.dumps(body(error), separators=(",", ":")).encode() + b"\n\n"


def shown(error: Exception) -> JanusError:
    """What the client hears of an exception; one that is no JanusError is a bug, and logged."""
    if isinstance(error, JanusError):
        return error
    log.error("unexpected error; please report it", exc_info=error)
    return Internal(f"unexpected {type(error).__name__}", next_step="See the gateway's log.")


def from_validation(error: ValidationError) -> InvalidArgument:
    """The first violation, naming the field as the client wrote it."""
    first = error.errors(include_url=False)[0]
    if first["type"] == "json_invalid":
        return InvalidArgument(f"the body is not valid JSON: {first['ctx']['error']}", reason="INVALID_JSON")
    field = _field(first["loc"])
    value, message = first.get("input"), first["msg"]
    if first["type"] == "missing":
        return InvalidArgument("is required", field=field, reason="MISSING_FIELD")
    if first["type"] == "extra_forbidden":
        return InvalidArgument("is not a field of this request", field=field, reason="UNKNOWN_FIELD")
    # A missing or null value has no text of its own to repeat.
    shown = value if value is not None else "null"
    return InvalidArgument(message[:1].lower() + message[1:], field=field or "body", value=shown)


def _field(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part and not part[0].isupper() and "[" not in part:  # union members are not the client's
            text += f".{part}" if text else part
    return text
