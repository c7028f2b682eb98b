"""The cohort's protocol on the data plane, as both sides see it (docs/architecture.md, "A step").

Per step and MoE layer each attention worker with tokens sends one HIDDEN frame to every MoE worker and
gets one PARTIAL from each. At a step's first MoE layer *every* attention worker sends a frame; one with no
work sends zero tokens, and the coordinator (MoE rank 0) answers it with STEP_DONE, whose ``tokens`` is the
step's total. A total of zero puts the cohort to sleep; the coordinator wakes the others (WAKE) when one of
them starts the next step. Between nodes, layers after the first may go by way of leaders (docs/exchange.md).

A worker may split its tokens into two micro-batches, lanes 0 and 1 (``Header.lane``), each with a frame of its
own in every layer. It says so in the step's first frame (Flag.SPLIT); the lanes then take turns, layer by layer,
so that one is with the MoE workers while the other is not.

Every frame carries its cohort epoch. An older one is dropped and counted; a newer one is kept and stops the
step (:class:`NewerEpoch`), since the record that announces it is on its way.

A cohort all of whose predecessor's members live (``follows``: another layout, workers that join or have drained) is
taken up after the step. An MoE worker that does so sends WAKE to every
attention worker: one that has begun another step of the old epoch by then learns that nobody will answer it.
"""

from __future__ import annotations

import base64
import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from janus_transport.base import PeerLost
from janus_transport.exchange import Exchange, Frame, SendBuffer
from janus_transport.framing import Header, Kind
from janus_transport.topology import Topology

_BUFFERS = 2
"""Answers that may be under way at once to who measures links."""
CROWD = 4
"""Probes that a neighbour is asked to send at most; no more than there are receives posted."""


class Flag(enum.IntFlag):
    """Bits of ``Header.flags``."""

    GATED = 1
    """AGate: routing done by the sender, who sends only the rows that are needed (packing.py). In PARTIAL: sums of
    these rows."""
    RETRY = 2
    """The layer is repeated: the MoE workers' digests differed."""
    DECODES = 4
    """Some stream decodes in this step. In a request: of its sender; in PARTIAL and STEP_DONE: of the cohort."""
    SPLIT = 8
    """In a step's first frame: its sender has a second lane. In PARTIAL: the coordinator advises to split steps."""
    MIXED = 16
    """In PARTIAL: it sums what MoE workers with different digests computed."""
    NARROW = 32
    """Hidden states are bf16 (rows.py); sums are what they always are."""


class NewerEpoch(Exception):
    """A peer already runs a later cohort epoch."""


class ProtocolError(Exception):
    """A peer of the cohort sent what the protocol does not allow here."""

    def __init__(self, member: int, what: str) -> None:
        super().__init__(what)
        self.member = member


class Interrupted(Exception):
    """A message of the control process ends the step: a new cohort, or stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One member as an engine sees it."""

    member: int
    address: bytes
    worker_id: str = ""
    node: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineCohort:
    """The cohort record as the control process hands it to its engine."""

    epoch: int
    attention: tuple[Peer, ...]
    moe: tuple[Peer, ...]
    gating: str
    scheduling: str
    layout_version: int
    exchange: str = "auto"
    """How layers are exchanged between nodes: topology.EXCHANGES."""

    @classmethod
    def from_message(cls, body: Mapping[str, Any]) -> EngineCohort:
        """From the body that :func:`cohort_message` makes."""
        return cls(
            epoch=body["epoch"],
            attention=_peers(body["attention"]),
            moe=_peers(body["moe"]),
            gating=body["gating"],
            scheduling=body["scheduling"],
            layout_version=body["layout_version"],
            exchange=body.get("exchange", "auto"),
        )

    @property
    def members(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Members of both roles, in rank order."""
        return tuple(p.member for p in self.attention), tuple(p.member for p in self.moe)

    @property
    def topology(self) -> Topology:
        """Who is on which node."""
        return Topology(tuple(p.node for p in self.attention), tuple(p.node for p in self.moe))

    def mates(self, member: int) -> list[Peer]:
        """Who of a member's role is on its node, where there is more than one node: they may pass on for it."""
        topology, peers = self.topology, (*self.attention, *self.moe)
        me = [peer.member for peer in peers].index(member)
        return [peers[worker] for worker in topology.mates(me)] if topology.spread else []

    def rank(self, member: int) -> int | None:
        """Rank of a member among its own role's workers; None when it is not in the cohort."""
        for peers in (self.attention, self.moe):
            for rank, peer in enumerate(peers):
                if peer.member == member:
                    return rank
        return None

    def name(self, member: int) -> str:
        """Worker id of a member, for messages that people read."""
        for peer in (*self.attention, *self.moe):
            if peer.member == member:
                return peer.worker_id or f"member {member}"
        return f"member {member}"


def cohort_message(record: Any, layout: Any) -> dict[str, Any]:
    """Control message that announces a CohortRecord and its LayoutRecord to an engine."""
    return {
        "t": "cohort",
        "epoch": record.epoch,
        "attention": [[p.member, p.transport_address, p.worker_id, p.node] for p in record.attention],
        "moe": [[p.member, p.transport_address, p.worker_id, p.node] for p in record.moe],
        "gating": record.gating,
        "scheduling": record.scheduling,
        "layout_version": record.layout_version,
        "exchange": record.exchange,
        "follows": record.follows,
        "num_experts": layout.num_experts,
        "slots": layout.slots,
        "placement": layout.placement,
    }


def members_of(body: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """As :attr:`EngineCohort.members`, of such a message's body."""
    return tuple(row[0] for row in body["attention"]), tuple(row[0] for row in body["moe"])


def _peers(rows: Iterable[Sequence[Any]]) -> tuple[Peer, ...]:
    return tuple(
        Peer(member=member, address=base64.b64decode(address), worker_id=worker_id, node=node)
        for member, address, worker_id, node in rows
    )


class CohortInbox:
    """Frames of the cohort in force, in order, per peer."""

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.epoch = 0
        self.stale = 0
        """Frames dropped for belonging to another epoch or step."""
        self.on_kv: Callable[[int, Frame], None] | None = None
        """Takes frames that carry KV blocks, of whatever epoch; without it they are dropped."""
        self._names: Callable[[int], str] = str
        self._buffers: list[SendBuffer] = []
        """For answers to who measures."""

    def adopt(self, cohort: EngineCohort, peers: Sequence[Peer]) -> None:
        """Speak to ``peers`` under the cohort's epoch from now on."""
        here = next(
            (p.node for p in (*cohort.attention, *cohort.moe) if p.member == self.exchange.member), ""
        )
        self.exchange.set_peers(
            {peer.member: peer.address for peer in peers},
            remote=[peer.member for peer in peers if peer.node != here],
        )
        self.epoch = cohort.epoch
        self._names = cohort.name

    def peek(self, peer: int) -> Frame | None:
        """Oldest frame of ``peer`` in this epoch, or None. Raises NewerEpoch."""
        while (frame := self.exchange.peek(peer)) is not None:
            kind = frame.header.kind
            if kind is Kind.KV:
                if self.on_kv is None:
                    self.drop(peer)
                else:
                    self.on_kv(peer, frame)
                    self.exchange.pop(peer)
            elif frame.header.epoch == self.epoch:
                if kind is Kind.PROBE:
                    self._echo(peer, frame.header)
                elif kind is Kind.ECHO:  # too late for who measured
                    self.drop(peer)
                else:
                    return frame
            elif frame.header.epoch > self.epoch:
                raise NewerEpoch(f"{self._names(peer)} runs epoch {frame.header.epoch}, we run {self.epoch}")
            elif kind is Kind.PROBE:  # of one that was about to join (Exchange.prepare)
                self.exchange.pop(peer)
            else:
                self.drop(peer)
        return None

    def _echo(self, peer: int, probe: Header) -> None:
        exchange = self.exchange
        exchange.pop(peer)
        if not probe.tokens and not probe.digest:
            return
        # Never waited for: who is sent to may have no need to look at frames from here for the rest of a step, and
        # whoever measures does without an answer.
        buffer = self._free_buffer()
        if buffer is None:
            return
        if probe.digest:
            self._crowd(probe, buffer)
        else:
            header = Header(
                kind=Kind.ECHO, epoch=self.epoch, step=probe.step, source=exchange.member,
                payload_bytes=probe.payload_bytes,
            )  # fmt: skip
            exchange.send([peer], header, buffer)

    def _free_buffer(self) -> SendBuffer | None:
        """One that nothing is being sent of; None while all are under way."""
        for buffer in self._buffers:
            if not buffer.busy():
                self.exchange.reclaim(buffer)
                return buffer
        if len(self._buffers) < _BUFFERS:
            self._buffers.append(self.exchange.allocate())
            return self._buffers[-1]
        return None

    def _crowd(self, asked: Header, buffer: SendBuffer) -> None:
        """Send to another node while who asks does so too: do they share an interface?"""
        header = Header(
            kind=Kind.PROBE, epoch=self.epoch, step=0, source=self.exchange.member,
            payload_bytes=min(asked.step, buffer.payload.nbytes),
        )  # fmt: skip
        with suppress(PeerLost):  # it will be missed by who waits for it
            self.exchange.send([asked.digest] * min(asked.lane, CROWD), header, buffer)

    def drop(self, peer: int) -> None:
        """Consume a frame that no longer matters."""
        self.stale += 1
        self.exchange.pop(peer)

    def skip(self, peer: int, unwanted: Callable[[Frame], bool]) -> Frame | None:
        """Oldest frame that is wanted; frames before it are dropped."""
        while (frame := self.peek(peer)) is not None and unwanted(frame):
            self.drop(peer)
        return frame


def is_note(frame: Frame) -> bool:
    """WAKE and STEP_DONE: notes of the coordinator that carry no tensor."""
    kind = frame.header.kind
    return kind is Kind.WAKE or kind is Kind.STEP_DONE
