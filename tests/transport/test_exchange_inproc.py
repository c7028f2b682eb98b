"""Exchange over the in-process transport: many peers, changing peers, loss, depth, order under threads."""

from __future__ import annotations

import random
import threading
import time

import numpy as np
import pytest
from janus_transport import Exchange, FrameError, Header, Kind, PeerLost, TransportError, create_transport


def make(member: int, max_payload: int = 4096) -> Exchange:
    return Exchange(create_transport("inproc", member=member), member=member, max_payload=max_payload)


def address(exchange: Exchange) -> bytes:
    return exchange._transport.address


def send(source: Exchange, member: int, to: list[int], step: int, data: bytes = b"") -> None:
    buffer = source.allocate()
    buffer.payload[: len(data)] = np.frombuffer(data, np.uint8)
    source.send(
        to, Header(kind=Kind.HIDDEN, epoch=1, step=step, source=member, payload_bytes=len(data)), buffer
    )


def test_every_to_every_in_order() -> None:
    rng = random.Random(2)
    exchanges = {member: make(member) for member in range(1, 6)}
    for member, exchange in exchanges.items():
        exchange.set_peers({m: address(e) for m, e in exchanges.items() if m != member})
    sent: dict[tuple[int, int], list[bytes]] = {}
    got: dict[tuple[int, int], list[bytes]] = {}

    def drain(member: int, exchange: Exchange) -> None:
        for peer in exchanges:
            while peer != member and (frame := exchange.peek(peer)) is not None:
                got.setdefault((peer, member), []).append(frame.payload.tobytes())
                exchange.pop(peer)

    for step in range(300):
        source = rng.randrange(1, 6)
        to = rng.sample([m for m in exchanges if m != source], rng.randrange(1, 5))
        data = rng.randbytes(rng.randrange(0, 4096))
        send(exchanges[source], source, to, step, data)
        for target in to:
            sent.setdefault((source, target), []).append(data)
        receiver = rng.randrange(1, 6)
        drain(receiver, exchanges[receiver])
    for member, exchange in exchanges.items():
        drain(member, exchange)
    assert got == sent


def test_peers_change_while_others_go_on() -> None:
    a, b, c = make(1), make(2), make(3)
    a.set_peers({2: address(b)})
    b.set_peers({1: address(a)})
    send(b, 2, [1], 0, b"kept")
    a.set_peers({2: address(b), 3: address(c)})
    c.set_peers({1: address(a)})
    send(c, 3, [1], 0, b"new")
    frame = a.peek(2)
    assert frame is not None and frame.payload.tobytes() == b"kept"
    a.set_peers({3: address(c)})
    assert a.peek(2) is None
    frame = a.peek(3)
    assert frame is not None and frame.payload.tobytes() == b"new"
    with pytest.raises(PeerLost):
        send(a, 1, [2], 0)


def test_a_lost_peer_ends_the_wait_but_its_last_frames_count() -> None:
    a, b = make(1), make(2)
    a.set_peers({2: address(b)})
    b.set_peers({1: address(a)})
    send(b, 2, [1], 7)
    threading.Timer(0.1, b._transport.close).start()
    assert a.wait(lambda: a.peek(2) is not None, deadline=time.monotonic() + 5, waiting_for=lambda: [2])
    a.pop(2)
    with pytest.raises(PeerLost) as caught:
        a.wait(lambda: a.peek(2) is not None, deadline=time.monotonic() + 5, waiting_for=lambda: [2])
    assert caught.value.member == 2


def test_misuse_is_an_error() -> None:
    a, b = make(1), make(2)
    a.set_peers({2: address(b)})
    with pytest.raises(TransportError, match="no frame"):
        a.pop(2)
    with pytest.raises(FrameError, match="at most 4096"):
        header = Header(kind=Kind.HIDDEN, epoch=1, step=0, source=1, payload_bytes=4097)
        a.send([2], header, a.allocate())
    with pytest.raises(ValueError, match="allowed: ucx, inproc"):
        create_transport("carrier-pigeon", member=1)


def test_links_made_ahead_are_parked_until_their_peers_join() -> None:
    old, new = make(1), make(2)
    new.prepare({1: address(old)})
    new.prepare({1: address(old)})  # once is enough
    assert not new._links and list(new._parked) == [1]
    with pytest.raises(PeerLost, match="not a peer"):
        send(new, 2, [1], 0)
    old.set_peers({2: address(new)})
    link = new._parked[1]
    new.set_peers({1: address(old)})
    assert new._links[1] is link
    send(new, 2, [1], 3)
    note = old.peek(2)
    assert note is not None and (note.header.kind, note.header.epoch) == (Kind.PROBE, 0)
    old.pop(2)
    frame = old.peek(2)
    assert frame is not None and frame.header.step == 3
    send(old, 1, [2], 4)
    frame = new.peek(1)
    assert frame is not None and frame.header.step == 4 and new.rejected == 0


def test_frames_that_came_over_a_failed_link_count_in_the_next_epoch() -> None:
    a, b = make(1), make(2)
    a.set_peers({2: address(b)})
    b.set_peers({1: address(a)})
    for step in range(3):
        send(b, 2, [1], step, bytes([step]))
    frame = a.peek(2)
    assert frame is not None and frame.header.step == 0  # looked at, not consumed
    for _ in range(2):  # and again
        a._transport.disconnect(2)
        assert a.lost(2)
        a.set_peers({2: address(b)})
    assert not a.lost(2)
    send(b, 2, [1], 3)
    for step in range(4):
        frame = a.peek(2)
        assert frame is not None and frame.header.step == step, "oldest first, none lost, none twice"
        a.pop(2)
    assert a.peek(2) is None
    assert len(a._links[2].ring) == 4, "as many receives posted as ever"
    for step in range(12):
        send(b, 2, [1], step)
        frame = a.peek(2)
        assert frame is not None and frame.header.step == step
        a.pop(2)


def test_nothing_is_taken_over_from_another_incarnation() -> None:
    a, b = make(1), make(2)
    a.set_peers({2: address(b)})
    b.set_peers({1: address(a)})
    send(b, 2, [1], 5)
    b._transport.close()
    again = make(2)
    a.set_peers({2: address(again)})
    assert a.peek(2) is None
