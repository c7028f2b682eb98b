"""Two phases in which a frame never comes, or a leader dies amid its relay: every wait says for whom, and ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from janus_testing.inprocess import InProcessMesh
from janus_transport import Exchange, Kind
from janus_worker.link import ChildGone

PROMPTS = [[5, 9, 14, 3], [77, 21, 8]]
TOKENS = 30
A0, A1, M0, M1 = "A0", "A1", "M0", "M1"
Hop = tuple[str, Kind, str]
AGGREGATE: tuple[Hop, ...] = (
    (A1, Kind.HIDDEN, A0), (A0, Kind.HIDDEN, M0), (M0, Kind.HIDDEN, M1),
    (M1, Kind.PARTIAL, M0), (M0, Kind.PARTIAL, A0), (A0, Kind.PARTIAL, A1),
)  # fmt: skip
ONE_TO_ONE: tuple[Hop, ...] = (
    (A1, Kind.HIDDEN, M1), (M0, Kind.HIDDEN, M1), (M1, Kind.PARTIAL, M0), (M0, Kind.PARTIAL, A0),
)  # fmt: skip
DEADLINE_S = 15.0
"""Until a wait has said for whom it is: LATE_S, and what a busy machine adds."""


def nodes(role: str, index: int) -> str:
    """Attention workers on one node, the first two MoE workers on another, further ones on a third."""
    return "a" if role == "attention" else f"e{index // 2}"


class Trap:
    """Once armed, the next frame of a kind between two members of a layer after the first is not sent."""

    def __init__(self, mesh: InProcessMesh, hop: Hop, *, fatal: bool) -> None:
        by_name = {A0: mesh.attention[0], A1: mesh.attention[1], M0: mesh.moe[0], M1: mesh.moe[1]}
        self.sender, self.receiver = by_name[hop[0]], by_name[hop[2]]
        self._kind, self._fatal = hop[1], fatal
        self.armed, self.sprung = threading.Event(), threading.Event()

    def takes(self, member: int, peers: Any, header: Any) -> bool:
        ours = member == self.sender.member and self.receiver.member in peers
        if not (ours and header.kind is self._kind and header.layer and self.armed.is_set()):
            return False
        if self.sprung.is_set():
            return False
        self.sprung.set()
        if self._fatal:
            raise ChildGone("killed by the test")
        return True


@contextmanager
def traps() -> Iterator[list[Trap]]:
    """Traps put here are set."""
    made: list[Trap] = []
    send = Exchange.send

    def spy(self: Exchange, peers: Any, header: Any, buffer: Any) -> None:
        for trap in made:
            if trap.takes(self.member, peers, header):
                peers = [peer for peer in peers if peer != trap.receiver.member]
        send(self, peers, header, buffer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Exchange, "send", spy)
        yield made


@pytest.fixture(scope="module")
def expected(mixtral: Path) -> list[list[int]]:
    with InProcessMesh(mixtral, attention=1, experts=1) as mesh:
        return [answer.tokens for answer in mesh.generate(PROMPTS, max_tokens=TOKENS)]


def begin(mesh: InProcessMesh, workers: list[int]) -> list[int]:
    """Streams on these attention workers, once each has some tokens."""
    numbers = [
        mesh.submit(prompt, worker=worker, max_tokens=TOKENS)
        for prompt, worker in zip(PROMPTS, workers, strict=True)
    ]
    mesh.pump(lambda: all(len(mesh.peek(number).tokens) > 2 for number in numbers), "some tokens")
    return numbers


def complained(worker: Any) -> set[int]:
    """Members that a worker has named as late, or as gone or wrong."""
    return {
        member
        for event in worker.events
        if event["t"] in ("late", "fault")
        for member in event.get("members", [event.get("member")])
    }


@pytest.mark.parametrize(
    ("scheme", "hop"),
    [*(("2pc-1", hop) for hop in AGGREGATE), *(("2pc-2", hop) for hop in ONE_TO_ONE)],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}-{value[1].name}-{value[2]}",
)
def test_a_frame_that_never_comes_is_missed_by_name(
    mixtral: Path, expected: list[list[int]], scheme: str, hop: Hop
) -> None:
    """Also where control messages come more often than a wait takes to be late."""
    mesh = InProcessMesh(mixtral, attention=2, experts=4, nodes=nodes, exchange=scheme)
    with traps() as made, mesh:
        numbers = begin(mesh, [0, 1])
        trap = Trap(mesh, hop, fatal=False)
        made.append(trap)
        trap.armed.set()
        began = time.monotonic()

        def missed() -> bool:
            time.sleep(0.02)
            for worker in mesh.attention:
                worker.send({"t": "cancel", "id": 999})
            return time.monotonic() - began > DEADLINE_S or trap.sender.member in complained(trap.receiver)

        mesh.pump(missed, "the receiver to miss the frame")
        assert trap.sprung.is_set()
        # Or it has the sender's next one in its place, which is a fault.
        assert trap.sender.member in complained(trap.receiver)
        for worker in mesh.workers:
            for event in worker.events:
                assert event["t"] not in ("late", "stall") or event["members"], "it waits for nobody"
        mesh.form()
        assert [mesh.answer(number).tokens for number in numbers] == expected


@pytest.mark.parametrize(
    ("scheme", "hop", "gating"),
    [
        ("2pc-1", (A0, Kind.HIDDEN, M0), "attention"), ("2pc-1", (A0, Kind.PARTIAL, A1), "moe"),
        ("2pc-1", (M0, Kind.HIDDEN, M1), "moe"), ("2pc-1", (M0, Kind.PARTIAL, A0), "attention"),
        ("2pc-2", (M0, Kind.HIDDEN, M1), "attention"), ("2pc-2", (M0, Kind.PARTIAL, A0), "moe"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[0]}-{value[1].name}-{value[2]}",
)  # fmt: skip
def test_a_leader_that_dies_amid_its_relay_is_missed_by_all(
    mixtral: Path, expected: list[list[int]], scheme: str, hop: Hop, gating: str
) -> None:
    """Instead of sending a frame; those who wait for it, or for who waits for it, say so, and go on without it."""
    mesh = InProcessMesh(mixtral, attention=3, experts=4, nodes=nodes, exchange=scheme, gating=gating)
    with traps() as made, mesh, ExitStack() as stack:
        mesh.submit([8, 3, 3, 90], worker=0, max_tokens=10_000)  # so that the first one leads
        numbers = begin(mesh, [1, 2])
        trap = Trap(mesh, hop, fatal=True)
        made.append(trap)
        mesh.forget(trap.sender)
        stack.callback(trap.sender.sock.close)
        trap.armed.set()
        began = time.monotonic()

        def missed() -> bool:
            return all(map(complained, mesh.workers)) or time.monotonic() - began > DEADLINE_S

        mesh.pump(missed, "everyone to miss somebody")
        assert trap.sprung.is_set()
        for worker in mesh.workers:
            assert complained(worker), f"{worker.worker_id} waits and says nothing"
        assert trap.sender.member in complained(trap.receiver)
        mesh.form()
        assert [mesh.answer(number).tokens for number in numbers] == expected
