"""Peers that die, stop, leave, return and are replaced, over every transport."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
from janus_transport import PeerLost
from transport_mesh import KINDS, Mesh
from transport_peer import PAYLOAD

pytestmark = pytest.mark.timeout(120)
New = Callable[..., Mesh]
NOTICED_S = 2.5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("under_way", [0, 1], ids=["idle", "amid large sends"])
def test_a_killed_peer_is_noticed_and_the_others_go_on(new_mesh: New, kind: str, under_way: int) -> None:
    mesh = new_mesh(kind, 2, 3)
    mesh.echo(0, 100, 2)
    mesh.echo(0, 100, 3)
    if under_way and mesh.processes:
        os.kill(mesh.others[2].pid, signal.SIGSTOP)
    buffers = [mesh.send(1, np.zeros(PAYLOAD, np.uint8), 2) for _ in range(4 * under_way)]
    mesh.others[2].kill()
    began = time.monotonic()
    with pytest.raises(PeerLost, match="member 2") as caught:
        for _ in range(4 * under_way + 1):
            mesh.wait(2)
            mesh.exchange.pop(2)
    assert caught.value.member == 2
    assert time.monotonic() - began < NOTICED_S
    assert mesh.exchange.lost(2)
    with pytest.raises(PeerLost):
        mesh.send(2, np.zeros(8, np.uint8), 2)
    mesh.echo(2, PAYLOAD, 3)
    mesh.talk_to(3)
    for buffer in buffers:
        began = time.monotonic()
        mesh.exchange.reclaim(buffer)
        assert time.monotonic() - began < 1.5
    mesh.echo(3, PAYLOAD, 3)


def test_a_full_queue_to_a_dead_peer_does_not_keep_us_busy(new_mesh: New) -> None:
    """UCX never again lets itself be armed then: waits must nap, see the loss, and go on with the others."""
    mesh = new_mesh("ucx-shm", 2, 3, UCX_RNDV_THRESH="inf")
    mesh.echo(0, 100, 2)
    os.kill(mesh.others[2].pid, signal.SIGSTOP)
    for _ in range(8):
        mesh.send(1, np.zeros(PAYLOAD, np.uint8), 2)
    mesh.others[2].kill()
    began = time.monotonic()
    with pytest.raises(PeerLost, match="member 2"):
        mesh.wait(2)
    assert time.monotonic() - began < NOTICED_S
    mesh.talk_to(3)
    before = time.process_time()
    mesh.idle(1.0)
    assert time.process_time() - before < 0.1
    for step in range(20):
        mesh.echo(step, PAYLOAD, 3)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "inproc"])
def test_a_send_to_a_stopped_peer_keeps_its_bytes(new_mesh: New, kind: str) -> None:
    mesh = new_mesh(kind, 2)
    mesh.echo(0, PAYLOAD)
    os.kill(mesh.others[2].pid, signal.SIGSTOP)
    first, second = np.full(PAYLOAD, 10, np.uint8), np.full(PAYLOAD, 20, np.uint8)
    buffer = mesh.send(1, first)
    began = time.monotonic()
    mesh.send(2, second, buffer=buffer)  # the first has not gone out: fresh memory
    assert time.monotonic() - began < 1.5
    os.kill(mesh.others[2].pid, signal.SIGCONT)
    np.testing.assert_array_equal(mesh.answer(1), first + np.uint8(1))
    np.testing.assert_array_equal(mesh.answer(2), second + np.uint8(1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sides", [1, 2])
def test_a_peer_returns_under_its_number(new_mesh: New, kind: str, sides: int) -> None:
    """Dropped from a cohort by one side or both, and back; what was sent in between arrives late."""
    mesh = new_mesh(kind, 2)
    for step in range(0, 12, 3):
        mesh.echo(step, [64, PAYLOAD][step % 2])
        if step == 6:
            mesh.send(step + 1, np.zeros(8, np.uint8))
            mesh.wait()
        mesh.talk_to()
        assert mesh.exchange.peek(2) is None and mesh.exchange.lost(2)
        if sides == 2:
            mesh.tell(2, "forget")
        mesh.idle([0, 1.2][step % 2])  # longer than a round of keepalive
        mesh.talk_to(2)
        if sides == 2:
            mesh.tell(2, "remember")
        if step == 6:
            mesh.answer(step + 1)
    mesh.echo(99)


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_that_was_closed_is_made_anew(new_mesh: New, kind: str) -> None:
    """Receives of the closed link must not take what comes over the new one."""
    mesh = new_mesh(kind, 2)
    for step in range(4):
        mesh.echo(step, [64, PAYLOAD][step % 2])
        mesh.transport.disconnect(2)
        mesh.tell(2, "break")
        with pytest.raises(PeerLost):
            mesh.wait()
        mesh.tell(2, "forget")
        mesh.talk_to(2)
        mesh.tell(2, "remember")
    mesh.echo(9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_peer_is_replaced_while_another_goes_on(new_mesh: New, kind: str) -> None:
    mesh = new_mesh(kind, 2, 3)
    shared = np.arange(200, dtype=np.uint8)
    mesh.send(0, shared, 2, 3)
    for member in (3, 2):
        np.testing.assert_array_equal(mesh.answer(0, member), shared + np.uint8(1))
    mesh.send(1, shared, 3)
    mesh.others[2].kill()
    del mesh.others[2]
    mesh.start(4)
    np.testing.assert_array_equal(mesh.answer(1, 3), shared + np.uint8(1))
    mesh.send(2, shared, 3, 4)
    for member in (4, 3):
        np.testing.assert_array_equal(mesh.answer(2, member), shared + np.uint8(1))
    assert mesh.exchange.peek(2) is None
    assert mesh.exchange.lost(2)
    with pytest.raises(PeerLost, match="member 2"):
        mesh.send(3, shared, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_peer_sent_before_it_died_counts(new_mesh: New, kind: str) -> None:
    mesh = new_mesh(kind, 2)
    mesh.echo(0)
    mesh.send(1, np.zeros(100, np.uint8))
    mesh.wait()
    mesh.others[2].kill()
    mesh.idle(0.1)
    np.testing.assert_array_equal(mesh.answer(1), np.ones(100, np.uint8))


def test_a_dead_address_is_a_loss_not_a_hang(new_mesh: New) -> None:
    """Over TCP at once. Over shared memory UCX may not tell; there leases and deadlines do."""
    mesh = new_mesh("ucx-tcp", 2)
    address = mesh.others[2].address
    mesh.others[2].kill()
    mesh.talk_to()
    began = time.monotonic()
    with pytest.raises(PeerLost):
        mesh.exchange.set_peers({5: address})
        mesh.send(0, np.zeros(8, np.uint8), 5)
        mesh.wait(5)
    assert time.monotonic() - began < NOTICED_S


def test_a_dead_address_leaves_the_others_alone(new_mesh: New) -> None:
    """The first progress after it is a round of keepalive, over endpoints one of which was never connected."""
    mesh = new_mesh("ucx-tcp", 3)
    mesh.start(2)
    time.sleep(1.1)  # without progress
    address = mesh.others[2].address
    mesh.others[2].kill()
    mesh.transport.connect(5, address)  # refused, which shows later
    mesh.transport.disconnect(2)
    mesh.idle(1.1)
    assert not mesh.transport.alive(5)
    mesh.transport.disconnect(5)
    mesh.echo(0, PAYLOAD, 3)


@pytest.mark.parametrize("kind", ["ucx-shm", "ucx-tcp"])
@pytest.mark.parametrize("damage", ["empty", "noise", "cut", "flipped"])
def test_bytes_that_are_no_address(new_mesh: New, kind: str, damage: str) -> None:
    """UCX itself would read on past their end, or crash."""
    mesh = new_mesh(kind, 2)
    good = mesh.others[2].address
    flipped = bytearray(good)
    flipped[-20] ^= 1
    noise = np.random.default_rng(1).bytes(len(good))
    bad = {"empty": b"", "noise": noise, "cut": good[:-9], "flipped": bytes(flipped)}[damage]
    with pytest.raises(PeerLost, match=r"member 9.*address"):
        mesh.exchange.set_peers({2: good, 9: bad})
    mesh.talk_to(2)
    mesh.echo(1)


def test_the_transports_really_in_use_are_told(new_mesh: New) -> None:
    assert new_mesh("ucx-tcp").transport.describe() == "ucx: tcp"
    told = new_mesh("ucx-shm").transport.describe()
    assert told.startswith("ucx: ") and {"tcp", "sysv", "posix"} <= set(told[5:].split(", "))
    assert new_mesh("inproc").transport.describe() == "inproc"
