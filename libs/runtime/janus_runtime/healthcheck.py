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
import time
from collections.abc import Mapping

TIMEOUT_S = 3.0
_DATA, _HEADERS, _RESET, _SETTINGS = 0, 1, 3, 4
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_STATUS = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}


def address(env: Mapping[str, str]) -> str:
    """Where to ask. Raises ValueError when the environment does not say."""
    given = env.get("JANUS_HEALTH_ADDRESS", "")
    if given:
        return given
    port = env.get("JANUS_GRPC_PORT", "0")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port) <= 65535:
        raise ValueError(f"JANUS_GRPC_PORT = {port!r}; allowed: 1..65535 (or set JANUS_HEALTH_ADDRESS)")
    return f"127.0.0.1:{port}"


def connect(target: str, env: Mapping[str, str]) -> socket.socket:
    """A connection as the service's own settings ask for it.

    Raises OSError, of which ssl.SSLError is one: nobody there, a certificate that cannot be read or is another's.
    """
    host, _, port = target.rpartition(":")
    cert, key, authority = (env.get(f"JANUS_TLS_{part}", "") for part in ("CERT", "KEY", "CA"))
    if not cert:
        return socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S)
    for path in filter(None, (cert, key, authority)):
        open(path, "rb").close()  # ssl's own errors do not say which file
    import ssl  # only where it is needed: it takes longer than all the rest

    # Without an authority the certificate vouches for itself.
    context = ssl.create_default_context(cafile=authority or cert)
    context.load_cert_chain(cert, key or None)
    context.set_alpn_protocols(["h2"])
    name = env.get("JANUS_ADVERTISE_HOST", "") or socket.gethostname()
    plain = socket.create_connection((host.strip("[]"), int(port)), TIMEOUT_S)
    try:
        return context.wrap_socket(plain, server_hostname=name)
    except BaseException:
        plain.close()
        raise


def check(sock: socket.socket) -> int:
    """grpc.health.v1.Health/Check of the whole server: its ``status``. Raises OSError, ValueError.

    By hand (RFC 9113): containers are asked again and again, and importing gRPC for each question cost more than
    an idle mesh does otherwise.
    """
    # HPACK (RFC 7541) literals without indexing, lengths below 127.
    fields = {
        ":method": "POST", ":scheme": "http", ":path": "/grpc.health.v1.Health/Check", ":authority": "localhost",
        "te": "trailers", "content-type": "application/grpc",
    }  # fmt: skip
    block = b""
    for name, value in fields.items():
        block += bytes([0, len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
    empty_request = bytes(5)  # not compressed, length 0
    sock.sendall(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, block)
        + _frame(_DATA, _END_STREAM, 1, empty_request)
    )
    body, deadline = b"", time.monotonic() + TIMEOUT_S
    with sock.makefile("rb") as answers:
        while time.monotonic() < deadline:
            head = answers.read(9)
            if len(head) < 9:
                raise ConnectionError("the connection was closed before an answer")
            payload = answers.read(int.from_bytes(head[:3]))
            kind, flags, stream = head[3], head[4], int.from_bytes(head[5:])
            if kind == _SETTINGS and not flags & _ACK:
                sock.sendall(_frame(_SETTINGS, _ACK, 0, b""))
            elif kind == _DATA and stream == 1:
                body += payload
            if stream == 1 and (kind == _RESET or (flags & _END_STREAM and kind in (_DATA, _HEADERS))):
                break
        else:
            raise TimeoutError(f"no answer within {TIMEOUT_S:g} s")
    # A message of at most one field, status = 1 as a varint; absent when it is UNKNOWN.
    if len(body) < 5 or body[0] or int.from_bytes(body[1:5]) != len(body) - 5 or len(body) not in (5, 7):
        raise ValueError(f"not an answer of the health service: {body[:40]!r}")
    return body[6] if len(body) == 7 else 0


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, flags]) + stream.to_bytes(4) + payload


def main(env: Mapping[str, str] = os.environ) -> int:
    """The exit code."""
    try:
        target = address(env)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    try:
        with connect(target, env) as sock:
            sock.settimeout(TIMEOUT_S)
            status = check(sock)
    except (OSError, ValueError) as error:
        print(f"error: {target}: UNAVAILABLE: {error}", file=sys.stderr)
        return 1
    name = _STATUS.get(status, str(status))
    print(f"{target}: {name}")
    return 0 if name == "SERVING" else 1


if __name__ == "__main__":
    sys.exit(main())
