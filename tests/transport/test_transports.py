"""What every transport does under an Exchange while all are well: one suite over each of them."""

from __future__ import annotations

import gc
import os
import random
import time

import numpy as np
import pytest
from janus_transport import WaitTimeout
from transport_mesh import Mesh
from transport_peer import GARBAGE, PAYLOAD

pytestmark = pytest.mark.timeout(120)


def test_random_sizes_come_back_in_order(mesh: Mesh) -> None:
    draw = random.Random(1)
    sizes = [0, 1, 127, 128, 4096, PAYLOAD, 262_144, 262_016, 0] + [
        draw.randrange(PAYLOAD) for _ in range(20)
    ]
    before = mesh.exchange.bytes_received - mesh.exchange.bytes_sent
    for step, size in enumerate(sizes):
        mesh.echo(step, size)
    assert mesh.exchange.bytes_received - mesh.exchange.bytes_sent == before


def test_several_under_way_at_once(mesh: Mesh) -> None:
    draw = random.Random(2)
    buffers = [mesh.exchange.allocate() for _ in range(4)]
    step = 0
    for _ in range(15):
        sizes = [draw.choice([0, 64, 9000, 300_000, PAYLOAD]) for _ in range(draw.randrange(1, 5))]
        payloads = [np.frombuffer(draw.randbytes(size), np.uint8) for size in sizes]
        for i, payload in enumerate(payloads):
            mesh.send(step + i, payload, buffer=buffers[i])
        for payload in payloads:
            np.testing.assert_array_equal(mesh.answer(step), payload + np.uint8(1))
            step += 1


def test_a_buffer_sent_again_at_once_is_waited_for(mesh: Mesh) -> None:
    buffer = mesh.exchange.allocate()
    payload = np.full(PAYLOAD, 3, np.uint8)
    for step in range(3):
        mesh.send(step, payload[: PAYLOAD - step], buffer=buffer)
    for step in range(3):
        np.testing.assert_array_equal(mesh.answer(step), payload[: PAYLOAD - step] + np.uint8(1))


def test_bad_messages_are_counted_and_harm_nobody(mesh: Mesh) -> None:
    before = mesh.exchange.rejected
    mesh.tell(2, "garbage")
    mesh.echo(1)
    assert mesh.exchange.rejected - before == GARBAGE
    mesh.tell(2, "garbage")
    mesh.echo(2, PAYLOAD)
    assert mesh.exchange.rejected - before == 2 * GARBAGE


def test_a_deadline_names_whom_it_waited_for(mesh: Mesh) -> None:
    for seconds in (0.2, 0.0, -1.0):
        began = time.monotonic()
        with pytest.raises(WaitTimeout, match="members: 2") as caught:
            mesh.wait(seconds=seconds)
        assert caught.value.members == (2,)
        assert max(0, seconds) <= time.monotonic() - began < max(0, seconds) + 0.2
    mesh.echo(1)


def test_a_wake_descriptor_ends_the_wait(mesh: Mesh) -> None:
    wake, ring = os.pipe()
    other_wake, other_ring = os.pipe()
    try:
        os.write(ring, b"x")
        began = time.monotonic()
        assert not mesh.exchange.wait(
            lambda: False, deadline=time.monotonic() + 5, wake_fds=[other_wake, wake]
        )
        assert time.monotonic() - began < 0.5
        # A message that is there goes first.
        mesh.send(4, np.zeros(8, np.uint8))
        mesh.wait()
        assert mesh.exchange.wait(
            lambda: mesh.exchange.peek(2) is not None, deadline=time.monotonic() + 5, wake_fds=[wake]
        )
        mesh.answer(4)
    finally:
        for fd in (wake, ring, other_wake, other_ring):
            os.close(fd)


def test_a_sleeper_is_woken_by_a_message(mesh: Mesh) -> None:
    mesh.tell(2, "later", 0.3)
    began = time.monotonic()
    mesh.answer(7)
    assert 0.2 < time.monotonic() - began < 0.45  # not at the tick after half a second


def test_no_message_is_slept_through(mesh: Mesh) -> None:
    worst = 0.0
    for step in range(1500):
        began = time.monotonic()
        mesh.echo(step, 8)
        worst = max(worst, time.monotonic() - began)
    assert worst < 0.4, "a sleeper was woken by the tick after half a second, not by the message"


def test_waiting_uses_no_cpu(mesh: Mesh) -> None:
    mesh.echo(0)
    gc.collect()
    spent = []
    for _ in range(3):  # the best of three: other threads of the test process may have work
        before = time.process_time()
        mesh.idle(1.0)
        spent.append(time.process_time() - before)
    assert min(spent) < 0.005
