"""Pairs of exchanges over every transport: in process, and UCX between processes over shared memory and TCP."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
import pytest
from janus_transport import Exchange, Header, Kind, Transport, WaitTimeout, create_transport
from transport_peer import PAYLOAD, peer_main

KINDS = {"inproc": {}, "ucx-shm": {"UCX_TLS": "shm,tcp"}, "ucx-tcp": {"UCX_TLS": "tcp"}}
"""Environment by kind."""


@dataclass
class Other:
    """The other side."""

    member: int
    address: bytes
    connection: Connection
    runner: BaseProcess | threading.Thread

    @property
    def pid(self) -> int:
        assert isinstance(self.runner, BaseProcess) and self.runner.pid is not None
        return self.runner.pid

    def kill(self) -> None:
        """kill -9, or what it looks like in process."""
        if not self.runner.is_alive():
            return
        if isinstance(self.runner, BaseProcess):
            os.kill(self.pid, signal.SIGKILL)
        else:
            self.connection.send(("die",))
        self.runner.join(10)
        assert not self.runner.is_alive()


@dataclass
class Mesh:
    """Member 1 here, others elsewhere."""

    kind: str
    transport: Transport
    exchange: Exchange
    others: dict[int, Other] = field(default_factory=dict)

    @property
    def processes(self) -> bool:
        return self.kind != "inproc"

    def start(self, *members: int) -> None:
        """Start others and talk to them as well."""
        context = multiprocessing.get_context("spawn")
        name = self.kind.split("-")[0]
        for member in members:
            ours, theirs = context.Pipe()
            arguments = (theirs, name, member, KINDS[self.kind])
            runner: Any = (context.Process if self.processes else threading.Thread)(
                target=peer_main, args=arguments, daemon=True
            )
            runner.start()
            ours.send(self.transport.address)
            assert ours.poll(60), "the other side did not start"
            self.others[member] = Other(member, ours.recv(), ours, runner)
        self.talk_to(*self.others)

    def talk_to(self, *members: int) -> None:
        self.exchange.set_peers({member: self.others[member].address for member in members})

    def tell(self, member: int, *command: Any) -> None:
        """Have it do something; we make progress meanwhile, as it may need us to."""
        connection = self.others[member].connection
        connection.send(command)
        until = time.monotonic() + 20
        while not connection.poll(0):
            assert time.monotonic() < until, f"{command} was not done"
            self.exchange.peek(member)  # drops what is malformed and posts its receive again
            self.idle(0.02)
        assert connection.recv() == "done"

    def send(self, step: int, payload: np.ndarray, *members: int, buffer: Any = None) -> Any:  # type: ignore[type-arg]
        buffer = buffer or self.exchange.allocate()
        self.exchange.reclaim(buffer)
        buffer.payload[: payload.size] = payload
        header = Header(kind=Kind.HIDDEN, epoch=1, step=step, source=1, payload_bytes=payload.size)
        self.exchange.send(members or (2,), header, buffer)
        return buffer

    def wait(self, member: int = 2, seconds: float = 20) -> None:
        self.exchange.wait(
            lambda: self.exchange.peek(member) is not None,
            deadline=time.monotonic() + seconds,
            waiting_for=lambda: [member],
        )

    def answer(self, step: int, member: int = 2) -> np.ndarray:  # type: ignore[type-arg]
        """Payload of the next frame, which must be the answer to ``step``."""
        self.wait(member)
        frame = self.exchange.peek(member)
        assert frame is not None
        assert (frame.header.step, frame.header.source, frame.header.kind) == (step, member, Kind.PARTIAL)
        payload = frame.payload.copy()
        self.exchange.pop(member)
        return payload

    def echo(self, step: int, size: int = 50, member: int = 2) -> None:
        """One round trip, checked."""
        payload = np.random.default_rng(step).integers(0, 256, size, np.uint8)
        self.send(step, payload, member)
        np.testing.assert_array_equal(self.answer(step, member), payload + np.uint8(1))

    def idle(self, seconds: float) -> None:
        with pytest.raises(WaitTimeout):
            self.exchange.wait(lambda: False, deadline=time.monotonic() + seconds)

    def close(self) -> None:
        for other in self.others.values():
            other.kill()
        self.transport.close()


def make_mesh(kind: str, environment: dict[str, str]) -> Mesh:
    """Member 1 of a kind, alone. ``environment``: more of UCX's variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**KINDS[kind], **environment}.items():
            patch.setenv(name, value)  # UCX reads it when a context is made
        transport = create_transport(kind.split("-")[0], member=1)
    return Mesh(kind, transport, Exchange(transport, member=1, max_payload=PAYLOAD))
