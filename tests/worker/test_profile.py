"""Measuring links: peers that answer, that have sent something before, and that never answer."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from janus_transport import Exchange, Header, Kind, Transport, create_transport
from janus_transport.cost import DEFAULT
from janus_worker import profile
from janus_worker.lockstep import CROWD, CohortInbox, EngineCohort
from janus_worker.profile import measure_links


class Party:
    """A member with an inbox; it waits for frames of the others in a thread of its own."""

    def __init__(self, member: int) -> None:
        self.member = member
        self.transport: Transport = create_transport("inproc", member=member)
        self.exchange = Exchange(self.transport, member=member, max_payload=300_000)
        self.inbox = CohortInbox(self.exchange)
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def serve(self, *peers: int) -> None:
        def loop() -> None:
            while not self._stop.is_set():
                look()
                self.transport.wait(self._stop.is_set, deadline=time.monotonic() + 5, before_sleep=look)

        def look() -> bool:
            for peer in peers:
                self.inbox.peek(peer)
            return self._stop.is_set()

        self._thread = threading.Thread(target=loop, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self.transport._notify()  # type: ignore[attr-defined]
            self._thread.join(10)
        self.transport.close()


@pytest.fixture
def parties() -> Iterator[list[Party]]:
    """Attention workers 1 (here) and 2 (elsewhere), MoE workers 3 (the coordinator, here) and 4 (here)."""
    made = [Party(member) for member in (1, 2, 3, 4)]
    yield made
    for party in made:
        party.close()


def cohort_of(parties: list[Party], nodes: tuple[str, ...] = ("x", "y", "x", "x")) -> EngineCohort:
    def row(party: Party, node: str) -> list[Any]:
        return [party.member, base64.b64encode(party.transport.address).decode(), f"w{party.member}", node]

    body = {
        "epoch": 7, "gating": "moe", "scheduling": "optimal", "layout_version": 1,
        "attention": [row(*pair) for pair in zip(parties[:2], nodes[:2], strict=True)],
        "moe": [row(*pair) for pair in zip(parties[2:], nodes[2:], strict=True)],
    }  # fmt: skip
    cohort = EngineCohort.from_message(body)
    for party in parties:
        everyone = (*cohort.attention, *cohort.moe)
        party.inbox.adopt(cohort, [peer for peer in everyone if peer.member != party.member])
    return cohort


def engine(party: Party) -> Any:
    return SimpleNamespace(exchange=party.exchange, member=party.member)


def test_both_classes_are_measured(parties: list[Party]) -> None:
    cohort = cohort_of(parties)
    for party in parties:
        if party.member != 3:
            party.serve(3)
    # What was there before the measurement is there after it.
    early = Header(kind=Kind.HIDDEN, epoch=7, step=0, source=1, tokens=0)
    parties[0].exchange.send([3], early, parties[0].exchange.allocate())
    links = measure_links(engine(parties[2]), cohort)
    assert links.share is None, "one worker elsewhere: no two pairs"
    for link in (links.intra, links.inter):
        assert [size for size, _ in link.points] == [0, 128 + (16 << 10), 128 + (256 << 10)]
        assert 0 < link.points[0][1] < 0.05 and 0 <= link.gap_s < 0.05
    frame = parties[2].inbox.peek(1)
    assert frame is not None and frame.header.kind is Kind.HIDDEN


def test_who_never_answers_costs_a_bounded_time(
    parties: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "BUDGET_S", 0.05)
    cohort = cohort_of(parties)
    began = time.monotonic()
    assert measure_links(engine(parties[2]), cohort) == DEFAULT
    assert time.monotonic() - began < 2


def test_a_neighbour_is_asked_whether_the_interface_is_shared(parties: list[Party]) -> None:
    cohort = cohort_of(parties, nodes=("y", "z", "x", "x"))
    for party in parties:
        if party.member != 3:
            party.serve(3, 4)
    links = measure_links(engine(parties[2]), cohort)
    assert links.share is not None and 0 <= links.share <= 1
    # The neighbour's part: as many messages as the measuring worker's own, and nobody's echo. Its last ones may still
    # be on their way when the measuring worker has its own echo.
    sent = parties[3].exchange.sent
    until = time.monotonic() + 5
    while sent[Kind.PROBE, True][0] < profile.ROUNDS * CROWD and time.monotonic() < until:
        time.sleep(0.01)
    assert sent[Kind.PROBE, True][0] == profile.ROUNDS * CROWD
    assert (Kind.ECHO, True) not in sent


def test_a_request_to_send_is_cut_to_what_may_be_asked(parties: list[Party]) -> None:
    cohort_of(parties)
    parties[3].serve(3)
    ask = Header(kind=Kind.PROBE, epoch=7, step=1 << 40, source=3, lane=60_000, digest=2, tokens=0)
    gone = Header(kind=Kind.PROBE, epoch=7, step=1, source=3, lane=1, digest=99)
    for header in (gone, ask):
        parties[2].exchange.send([4], header, parties[2].exchange.allocate())
    deadline = time.monotonic() + 10
    while parties[3].exchange.sent.get((Kind.PROBE, True), [0])[0] < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert parties[3].exchange.sent[Kind.PROBE, True] == [4, 4 * (128 + 300_000)]


def test_nobody_waits_for_what_is_sent_to_measure(
    parties: list[Party], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is sent to may look at frames of others alone for the rest of a step: large ones are then never over."""

    class Unseen:
        def done(self) -> bool:
            return False

        def check(self) -> None:
            return None

    cohort_of(parties)
    asked = parties[3]
    send, sent = asked.transport.send, []

    def unseen(peer: int, handle: Any) -> Any:
        if peer == 2:
            sent.append(peer)
            return Unseen()
        return send(peer, handle)

    monkeypatch.setattr(asked.transport, "send", unseen)
    ask = Header(kind=Kind.PROBE, epoch=7, step=200_000, source=3, lane=CROWD, digest=2, tokens=0)
    for _ in range(profile.ROUNDS):
        parties[2].exchange.send([4], ask, parties[2].exchange.allocate())
    began = time.monotonic()
    assert asked.inbox.peek(3) is None
    assert time.monotonic() - began < 0.5, "a second for each that is under way"
    assert len(sent) == 2 * CROWD


def test_a_moment_in_which_something_else_ran_is_not_taken_for_the_link(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Disturbed:
        """Milliseconds at first, then microseconds."""

        most = 2 << 20

        def __init__(self, *_: object) -> None:
            self.rounds = 0

        def round(self, size: int, count: int) -> float:
            self.rounds += 1
            return 5e-3 if self.rounds < 30 else 2e-5 + count * 1e-6 + size * 1e-9

    monkeypatch.setattr(profile, "_Probe", Disturbed)
    link = profile._measure(None, 1, [7])  # type: ignore[arg-type]
    assert link is not None
    assert link.seconds(0) < 2e-5
    assert link.busy_s(1 << 20) < 1e-3
