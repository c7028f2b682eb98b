"""The exchange: framed tensors between workers over UCX or in process."""

from __future__ import annotations

from janus_transport.base import PeerLost, Request, Transport, TransportError, Truncated, WaitTimeout
from janus_transport.exchange import Exchange, Frame, SendBuffer
from janus_transport.framing import HEADER_BYTES, DType, FrameError, Header, Kind, decode

__all__ = [
    "HEADER_BYTES",
    "TRANSPORTS",
    "DType",
    "Exchange",
    "Frame",
    "FrameError",
    "Header",
    "Kind",
    "PeerLost",
    "Request",
    "SendBuffer",
    "Transport",
    "TransportError",
    "Truncated",
    "WaitTimeout",
    "create_transport",
    "decode",
]

TRANSPORTS = ("ucx", "inproc")
"""Names that :func:`create_transport` takes."""


def create_transport(name: str, *, member: int) -> Transport:
    """A transport by name. Raises ValueError listing the names, TransportError when it cannot start."""
    if name == "ucx":
        from janus_transport.ucx import UcxTransport

        return UcxTransport(member)
    if name == "inproc":
        from janus_transport.inproc import InprocTransport

        return InprocTransport(member)
    raise ValueError(f"transport {name!r}; allowed: {', '.join(TRANSPORTS)}")
