"""UCX between two real processes: order, sizes, bad bytes, a killed peer, and an idle wait."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
from janus_transport import Exchange, Header, Kind, PeerLost, WaitTimeout, create_transport

sys.path.insert(0, str(Path(__file__).parent))
from peer import PAYLOAD, peer_main


@dataclass
class Pair:
    exchange: Exchange
    process: BaseProcess

    def ask(self, step: int, payload: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        """Send a payload; the peer answers with each byte plus one."""
        buffer = self.exchange.allocate()
        buffer.payload[: payload.size] = payload
        header = Header(kind=Kind.HIDDEN, epoch=1, step=step, source=1, payload_bytes=payload.size)
        self.exchange.send([2], header, buffer)
        self.wait()
        frame = self.exchange.peek(2)
        assert frame is not None and frame.header.step == step
        answer = frame.payload.copy()
        self.exchange.pop(2)
        self.exchange.reclaim(buffer)
        return answer

    def wait(self, seconds: float = 20) -> None:
        self.exchange.wait(
            lambda: self.exchange.peek(2) is not None,
            deadline=time.monotonic() + seconds,
            waiting_for=lambda: [2],
        )

    def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join(10)


@pytest.fixture
def pair() -> Iterator[Callable[[str], Pair]]:
    """Starts a peer process of a kind; stops it afterwards."""
    started: list[tuple[Pair, object]] = []
    context = multiprocessing.get_context("spawn")

    def start(what: str) -> Pair:
        ours, theirs = context.Pipe()
        process = context.Process(target=peer_main, args=(theirs, what), daemon=True)
        process.start()
        assert ours.poll(60), "the peer process did not start"
        address = ours.recv()
        transport = create_transport("ucx", member=1)
        exchange = Exchange(transport, member=1, max_payload=PAYLOAD)
        exchange.set_peers({2: address})
        ours.send(transport.address)
        ready = time.monotonic() + 60
        while not ours.poll(0):  # the peer may need us to make progress
            assert time.monotonic() < ready, "the peer process is not ready"
            try:
                exchange.wait(lambda: False, deadline=time.monotonic() + 0.02)
            except WaitTimeout:
                continue
        result = Pair(exchange, process)
        started.append((result, transport))
        return result

    yield start
    for result, transport in started:
        if result.process.is_alive():
            result.kill()
        transport.close()  # type: ignore[attr-defined]


@pytest.mark.timeout(120)
def test_random_sizes_come_back_in_order(pair: Callable[[str], Pair]) -> None:
    peer = pair("echo")
    draw = random.Random(1)
    sizes = [0, 1, 127, 128, 4096, PAYLOAD, 262_144, 262_016] + [draw.randrange(PAYLOAD) for _ in range(40)]
    for step, size in enumerate(sizes):
        payload = np.frombuffer(draw.randbytes(size), np.uint8)
        np.testing.assert_array_equal(peer.ask(step, payload), payload + np.uint8(1))
    assert peer.exchange.rejected == 0
    assert peer.exchange.bytes_received == peer.exchange.bytes_sent


@pytest.mark.timeout(120)
def test_a_killed_peer_is_noticed(pair: Callable[[str], Pair]) -> None:
    peer = pair("echo")
    peer.ask(0, np.arange(100, dtype=np.uint8))
    peer.kill()
    started = time.monotonic()
    with pytest.raises(PeerLost, match="member 2"):
        peer.wait()
    assert time.monotonic() - started < 3.5
    with pytest.raises(PeerLost):
        peer.ask(1, np.zeros(8, np.uint8))


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("what", "rejected"), [("garbage", 4), ("oversized", 1)])
def test_bad_messages_are_counted_and_harm_nobody(
    pair: Callable[[str], Pair], what: str, rejected: int
) -> None:
    peer = pair(what)
    payload = np.arange(50, dtype=np.uint8)
    np.testing.assert_array_equal(peer.ask(0, payload), payload + np.uint8(1))
    assert peer.exchange.rejected == rejected


@pytest.mark.timeout(120)
def test_waiting_uses_no_cpu_and_names_whom_it_waited_for(pair: Callable[[str], Pair]) -> None:
    peer = pair("echo")
    before = time.process_time()
    with pytest.raises(WaitTimeout, match="members: 2"):
        peer.wait(1.0)
    assert time.process_time() - before < 0.02
    wake, ring = os.pipe()
    os.write(ring, b"x")
    assert not peer.exchange.wait(lambda: False, deadline=time.monotonic() + 5, wake_fds=[wake])
    os.close(wake)
    os.close(ring)
