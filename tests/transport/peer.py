"""The other process of the transport tests: does what its first argument says. Addresses go over a pipe."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection

import numpy as np
from janus_transport import Exchange, Header, Kind, create_transport

PAYLOAD = 1 << 20


def peer_main(connection: Connection, what: str) -> None:
    """Entry of the child: member 2, talking to member 1."""
    transport = create_transport("ucx", member=2)
    connection.send(transport.address)
    address = connection.recv()
    if what == "garbage":
        transport.connect(1, address)
        _garbage(transport)
    exchange = Exchange(transport, member=2, max_payload=2 * PAYLOAD if what == "oversized" else PAYLOAD)
    exchange.set_peers({1: address})
    buffer = exchange.allocate()
    if what == "oversized":
        exchange.send([1], _header(0, payload_bytes=PAYLOAD + 1), buffer)
        exchange.reclaim(buffer)
    connection.send(os.getpid())
    step = 0
    while True:  # the test kills us
        exchange.wait(
            lambda: exchange.peek(1) is not None, deadline=time.monotonic() + 60, waiting_for=lambda: [1]
        )
        frame = exchange.peek(1)
        assert frame is not None
        size = frame.header.payload_bytes
        exchange.reclaim(buffer)
        np.add(frame.payload, 1, out=buffer.payload[:size])
        exchange.pop(1)
        exchange.send([1], _header(step, payload_bytes=size), buffer)
        step += 1


def _header(step: int, payload_bytes: int = 0, source: int = 2) -> Header:
    return Header(kind=Kind.PARTIAL, epoch=1, step=step, source=source, payload_bytes=payload_bytes)


def _garbage(transport) -> None:  # type: ignore[no-untyped-def]
    """Bytes that are no frame, a frame of somebody else's name, one too short, one of a later version."""
    foreign = np.zeros(256, np.uint8)
    _header(0, source=77).encode_into(foreign)
    later = np.zeros(256, np.uint8)
    _header(0).encode_into(later)
    later[4] = 9
    for message in (np.full(300, 0xAB, np.uint8), foreign, np.zeros(0, np.uint8), later):
        request = transport.send(1, transport.prepare(message))
        transport.wait(request.done, deadline=time.monotonic() + 10)
