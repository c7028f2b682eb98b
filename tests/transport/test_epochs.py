"""Three members take up epoch after epoch, in any order, while links fail on one side alone: no first frame is lost.

Whoever makes a failed link anew may do so, and send, before the other side has noticed that it failed.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import pytest
from janus_transport import Exchange, Header, Kind, PeerLost, WaitTimeout, create_transport
from transport_mesh import KINDS

pytestmark = pytest.mark.timeout(180)
MEMBERS = (1, 2, 3)
EPOCHS = 40
HEAR_S = 5.0
"""A frame that is not here by then is lost."""


class Member:
    """Its side of each epoch, in a process of its own: a frame to every peer, and one from each."""

    def __init__(self, connection: Connection, member: int) -> None:
        self._connection, self._member = connection, member
        self._transport = create_transport("ucx", member=member)
        self._exchange = Exchange(self._transport, member=member, max_payload=1 << 16)
        self._buffer = self._exchange.allocate()
        connection.send(self._transport.address)

    def run(self) -> None:
        while True:
            # Progress meanwhile, as an engine that sleeps.
            self._exchange.wait(
                lambda: False, deadline=time.monotonic() + 60, wake_fds=[self._connection.fileno()]
            )
            command, *arguments = self._connection.recv()
            if command == "fail":
                self._transport.disconnect(arguments[0])
                self._connection.send("failed")
            else:
                self._connection.send(self._take_up(*arguments))

    def _take_up(self, epoch: int, peers: dict[int, bytes]) -> tuple[str, list[int]]:
        exchange = self._exchange

        def missing() -> list[int]:
            for peer in peers:
                while (frame := exchange.peek(peer)) is not None and frame.header.epoch < epoch:
                    exchange.pop(peer)
            return [peer for peer in peers if exchange.peek(peer) is None]

        try:
            exchange.set_peers(peers)
            header = Header(kind=Kind.HIDDEN, epoch=epoch, step=0, source=self._member, payload_bytes=1000)
            exchange.reclaim(self._buffer)
            exchange.send(list(peers), header, self._buffer)
            exchange.wait(lambda: not missing(), deadline=time.monotonic() + HEAR_S, waiting_for=missing)
        except PeerLost as lost:
            return "lost", [lost.member]
        except WaitTimeout:
            return "hang", missing()
        for peer in peers:
            exchange.pop(peer)
        return "heard", []


def _main(connection: Connection, member: int, environment: dict[str, str]) -> None:
    os.environ.update(environment)
    try:
        Member(connection, member).run()
    except (EOFError, WaitTimeout):
        return  # the test is over


@dataclass
class Side:
    connection: Connection
    process: Any
    address: bytes

    def told(self) -> Any:
        assert self.connection.poll(60), f"no answer; exit status {self.process.exitcode}"
        return self.connection.recv()


@pytest.fixture(params=[kind for kind in KINDS if kind != "inproc"])
def sides(request: pytest.FixtureRequest) -> Iterator[dict[int, Side]]:
    context = multiprocessing.get_context("spawn")
    made: dict[int, Side] = {}
    for member in MEMBERS:
        ours, theirs = context.Pipe()
        process = context.Process(target=_main, args=(theirs, member, KINDS[request.param]), daemon=True)
        process.start()
        made[member] = Side(ours, process, b"")
    try:
        for side in made.values():
            side.address = side.told()
        yield made
    finally:
        for side in made.values():
            side.process.kill()
            side.process.join(10)


@pytest.mark.parametrize("seed", [0, 1])
def test_no_frame_of_an_epoch_is_lost_unnoticed(sides: dict[int, Side], seed: int) -> None:
    """A member may find a peer lost, which makes a new epoch; but none waits for what will never come."""
    rng = random.Random(seed)
    losses = 0
    for epoch in range(1, EPOCHS + 1):
        members = [m for m in MEMBERS if rng.random() < 0.85]
        if len(members) < 2:
            continue
        failed = [(m, rng.choice([p for p in MEMBERS if p != m])) for m in MEMBERS if rng.random() < 0.15]
        for member, peer in failed:
            sides[member].connection.send(("fail", peer))
            assert sides[member].told() == "failed"
        rng.shuffle(members)
        for member in members:
            peers = {p: sides[p].address for p in members if p != member}
            sides[member].connection.send(("take up", epoch, peers))
            if rng.random() < 0.3:
                time.sleep(rng.uniform(0, 0.3))
        told = {member: sides[member].told() for member in members}
        ends = [what for what, _ in told.values()]
        losses += "lost" in ends
        assert "hang" not in ends or "lost" in ends, f"epoch {epoch}, failed {failed}: {told}"
    assert losses <= EPOCHS // 4, "links that are made anew work"
