"""``python -m janus_runtime.healthcheck``: is this container's service serving? For HEALTHCHECK and probes.

Asks the standard gRPC health service at ``JANUS_HEALTH_ADDRESS``, or 127.0.0.1 and ``JANUS_GRPC_PORT``. Where the
service speaks TLS (``JANUS_TLS_CERT``), it is asked over TLS, with the service's own certificate and key; the name
expected of it is ``JANUS_ADVERTISE_HOST``, or the host name. Exit code 0: SERVING; 1: anything else, with a line
that says what.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

TIMEOUT_S = 3.0


def address(env: Mapping[str, str]) -> str:
    """Where to ask. Raises ValueError when the environment does not say."""
    given = env.get("JANUS_HEALTH_ADDRESS", "")
    if given:
        return given
    port = env.get("JANUS_GRPC_PORT", "0")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"JANUS_GRPC_PORT = {port!r}; allowed: 1..65535 (or set JANUS_HEALTH_ADDRESS)")
    return f"127.0.0.1:{port}"


def channel(target: str, env: Mapping[str, str]) -> grpc.Channel:
    """A channel as the service's own settings ask for it. Raises OSError for a certificate that cannot be read."""
    cert, key, authority = (_read(env.get(f"JANUS_TLS_{part}", "")) for part in ("CERT", "KEY", "CA"))
    if cert is None:
        return grpc.insecure_channel(target)
    # Without an authority the certificate vouches for itself.
    credentials = grpc.ssl_channel_credentials(authority or cert, key, cert)
    name = env.get("JANUS_ADVERTISE_HOST", "") or socket.gethostname()
    return grpc.secure_channel(target, credentials, options=[("grpc.ssl_target_name_override", name)])


def _read(path: str) -> bytes | None:
    if not path:
        return None
    with open(path, "rb") as file:
        return file.read()


def main(env: Mapping[str, str] = os.environ) -> int:
    """The exit code."""
    try:
        target = address(env)
        asked = channel(target, env)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    with asked:
        stub = health_pb2_grpc.HealthStub(asked)
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
