"""``python -m janus_runtime.healthcheck``: is this container's service serving? For HEALTHCHECK and probes.

Asks the standard gRPC health service at ``JANUS_HEALTH_ADDRESS``, or 127.0.0.1 and ``JANUS_GRPC_PORT``.
Exit code 0: SERVING; 1: anything else, with a line that says what.
"""

from __future__ import annotations

import os
import sys

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 3.0


def address() -> str:
    """Where to ask. Raises ValueError when the environment does not say."""
    given = os.environ.get("JANUS_HEALTH_ADDRESS", "")
    if given:
        return given
    port = os.environ.get("JANUS_GRPC_PORT", "0")
    if not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"JANUS_GRPC_PORT = {port!r}; allowed: 1..65535 (or set JANUS_HEALTH_ADDRESS)")
    return f"127.0.0.1:{port}"


def main() -> int:
    """The exit code."""
    try:
        target = address()
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with grpc.insecure_channel(target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            print(f"error: {target}: {error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    print(f"{target}: {name}")
    return 0 if answer.status == health_pb2.HealthCheckResponse.SERVING else 1


if __name__ == "__main__":
    sys.exit(main())
