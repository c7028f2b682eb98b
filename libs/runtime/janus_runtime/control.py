"""Asking a local mesh's supervisor for a change: its unix socket, JSON lines (janus_cli.control answers).

A request is one line; then come ``{"say": text}`` lines while it works, and at the end ``{"result": {...}}`` or
``{"error": {...}}``.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from janus_runtime.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    JanusError,
    NotFound,
    Unavailable,
)

LINE_MAX = 64 * 1024
_ERRORS: Mapping[str, type[JanusError]] = {
    kind.__name__: kind
    for kind in (DeadlineExceeded, FailedPrecondition, Internal, InvalidArgument, NotFound, Unavailable)
}

Say = Callable[[str], None]


def shown(error: JanusError) -> dict[str, Any]:
    """An error as a line of the protocol."""
    kind = next((k.__name__ for k in type(error).__mro__ if k.__name__ in _ERRORS), "Internal")
    rest = {k: getattr(error, k) for k in ("message", "field", "value", "allowed", "reason", "next_step")}
    return {"error": {"kind": kind, **rest}}


def error_of(body: dict[str, Any]) -> JanusError:
    """The error that :func:`shown` showed; ``body`` is what is under ``error``."""
    kind = _ERRORS.get(body.pop("kind"), Internal)
    return kind(body.pop("message"), **body)


async def request(path: str, asked: Mapping[str, Any], say: Say, timeout_s: float) -> dict[str, Any]:
    """Ask the supervisor whose socket is at ``path``; its result.

    Raises the supervisor's JanusError; Unavailable when it cannot be reached or ends; DeadlineExceeded, after which
    the change goes on in the supervisor.
    """
    writer = None
    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_unix_connection(path, limit=LINE_MAX)
            writer.write(json.dumps(asked).encode() + b"\n")
            await writer.drain()
            while line := await reader.readline():
                message = json.loads(line)
                if "say" in message:
                    say(message["say"])
                elif "error" in message:
                    raise error_of(message["error"])
                else:
                    result: dict[str, Any] = message["result"]
                    return result
        raise Unavailable("the supervisor ended before it answered", reason="SUPERVISOR_LOST")
    except TimeoutError:
        raise DeadlineExceeded(
            f"the supervisor was not done within {timeout_s:g} s; it goes on",
            next_step="`janus status` shows how far it is.",
        ) from None
    except (OSError, ValueError) as error:
        raise Unavailable(f"cannot reach the supervisor at {path}: {error}") from error
    finally:
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
