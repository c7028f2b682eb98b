"""Epochs: a frame of an older one is dropped and counted, one of a newer one stops the step and is kept."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from janus_transport import Exchange, Header, Kind, create_transport
from janus_worker.lockstep import CohortInbox, EngineCohort, NewerEpoch, Peer


class Pair:
    def __init__(self) -> None:
        self.ours = create_transport("inproc", member=1)
        self.theirs = create_transport("inproc", member=2)
        self.peer = Exchange(self.theirs, member=2, max_payload=64)
        self.peer.set_peers({1: self.ours.address})
        self.inbox = CohortInbox(Exchange(self.ours, member=1, max_payload=64))
        self.adopt(5)

    def adopt(self, epoch: int) -> None:
        peers = (Peer(member=2, address=self.theirs.address, worker_id="moe-7"),)
        cohort = EngineCohort(
            epoch=epoch, attention=(), moe=peers, gating="moe", scheduling="optimal", layout_version=1
        )
        self.inbox.adopt(cohort, peers)

    def send(self, epoch: int, step: int) -> None:
        header = Header(kind=Kind.PARTIAL, epoch=epoch, step=step, source=2)
        self.peer.send([1], header, self.peer.allocate())


@pytest.fixture
def pair() -> Iterator[Pair]:
    made = Pair()
    yield made
    made.ours.close()
    made.theirs.close()


def test_older_frames_are_dropped_and_counted(pair: Pair) -> None:
    pair.send(3, 0)
    pair.send(4, 9)
    pair.send(5, 1)
    frame = pair.inbox.peek(2)
    assert frame is not None and frame.header.step == 1
    assert pair.inbox.stale == 2


def test_a_newer_frame_stops_the_step_and_counts_after_adoption(pair: Pair) -> None:
    pair.send(6, 0)
    with pytest.raises(NewerEpoch, match="moe-7 runs epoch 6, we run 5"):
        pair.inbox.peek(2)
    pair.adopt(6)
    frame = pair.inbox.peek(2)
    assert frame is not None and frame.header.epoch == 6
    assert pair.inbox.stale == 0


def test_skip_drops_what_is_unwanted(pair: Pair) -> None:
    for step in range(3):
        pair.send(5, step)
    frame = pair.inbox.skip(2, lambda f: f.header.step < 2)
    assert frame is not None and frame.header.step == 2
    pair.inbox.exchange.pop(2)
    assert pair.inbox.skip(2, lambda f: False) is None
