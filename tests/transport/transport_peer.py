"""The other side of the transport tests, a thread or a process: echoes, and does what it is told over a pipe.

Every frame of member 1 is answered by a PARTIAL of the same step, each payload byte plus one. Commands are tuples
of a name and arguments; each is answered when it is done, so that tests are in step with it.
"""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from janus_transport import Exchange, Header, Kind, PeerLost, WaitTimeout, create_transport

PAYLOAD = 1 << 20
HEAR_S = 60.0


class Peer:
    def __init__(self, connection: Connection, name: str, member: int, address: bytes) -> None:
        self._connection = connection
        self._member = member
        self._transport = create_transport(name, member=member)
        self._address = address
        self._exchange = Exchange(self._transport, member=member, max_payload=2 * PAYLOAD)
        self._answers = [self._exchange.allocate() for _ in range(4)]
        self._answered = 0
        connection.send(self._transport.address)
        self._exchange.set_peers({1: address})

    def run(self) -> None:
        while True:
            try:
                heard = self._exchange.wait(
                    lambda: self._exchange.peek(1) is not None,
                    deadline=time.monotonic() + HEAR_S,
                    waiting_for=lambda: [1],
                    wake_fds=[self._connection.fileno()],
                )
            except PeerLost:
                # As an engine: nothing to do for this link until told.
                heard = not self._connection.poll(HEAR_S)
                if heard:
                    return
            if heard:
                self._answer()
            elif self._obey(*self._connection.recv()):
                return

    def _answer(self) -> None:
        frame = self._exchange.peek(1)
        assert frame is not None
        buffer = self._answers[self._answered % len(self._answers)]
        self._answered += 1
        self._exchange.reclaim(buffer)
        size = frame.header.payload_bytes
        np.add(frame.payload, 1, out=buffer.payload[:size])
        header = self._header(frame.header.step, payload_bytes=size)
        self._exchange.pop(1)
        self._exchange.send([1], header, buffer)

    def _obey(self, command: str, *arguments: Any) -> bool:
        """True when it was the last."""
        if command == "die":  # a process is killed instead
            self._transport.close()
            return True
        if command == "garbage":
            self._garbage()
        elif command == "break":
            self._transport.disconnect(1)
        elif command == "forget":
            self._exchange.set_peers({})
        elif command == "remember":
            self._exchange.set_peers({1: self._address})
        elif command == "later":
            self._connection.send("done")
            time.sleep(arguments[0])
            buffer = self._exchange.allocate()
            self._exchange.send([1], self._header(7), buffer)
            self._exchange.reclaim(buffer)
            return False
        else:
            raise AssertionError(f"no command {command}")
        self._connection.send("done")
        return False

    def _header(self, step: int, payload_bytes: int = 0, source: int | None = None) -> Header:
        return Header(
            kind=Kind.PARTIAL, epoch=1, step=step, source=source or self._member, payload_bytes=payload_bytes
        )

    def _garbage(self) -> None:
        """Noise, another's frame, nothing, a later version's, one cut short, one claiming too much, too large."""
        foreign, later, claims = (np.zeros(256, np.uint8) for _ in range(3))
        self._header(0, source=77).encode_into(foreign)
        self._header(0).encode_into(later)
        later[4] = 9
        self._header(0, payload_bytes=1 << 40).encode_into(claims)
        oversized = np.zeros(128 + PAYLOAD + 1, np.uint8)
        self._header(0, payload_bytes=PAYLOAD + 1).encode_into(oversized)
        noise = np.full(300, 0xAB, np.uint8)
        cut = np.zeros(128, np.uint8)
        self._header(0).encode_into(cut)
        nothing = np.zeros(0, np.uint8)
        for message in (noise, foreign, nothing, later, cut[:100], claims, oversized):
            request = self._transport.send(1, self._transport.prepare(message))
            self._transport.wait(request.done, deadline=time.monotonic() + 10)


GARBAGE = 7
"""Messages that the command sends."""


def peer_main(connection: Connection, name: str, member: int, environment: dict[str, str]) -> None:
    """Entry of the thread or process."""
    os.environ.update(environment)
    try:
        Peer(connection, name, member, connection.recv()).run()
    except (EOFError, WaitTimeout):
        return  # the test is over
