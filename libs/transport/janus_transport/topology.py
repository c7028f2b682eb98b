"""Which workers share a node, and what an exchange between nodes may use. Pure.

Workers are numbered through: attention rank r is worker r, MoE rank r is worker ``m + r``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MAX_ACTIVE = 256
"""Attention ranks that a frame's mask of active ranks has room for; larger cohorts exchange in one phase."""


class Scheme(enum.IntEnum):
    """Ways of one layer's exchange (docs/exchange.md); the value travels in frames."""

    ONE_PHASE = 0
    """Every attention worker to every MoE worker."""
    AGGREGATE = 1
    """Two phases, case 1: a node's leader sends what its node has to the leader of each MoE node."""
    ONE_TO_ONE = 2
    """Two phases, case 2: each attention worker sends to one worker of each MoE node, which passes it on inside."""


SCHEMES = {"1pc": Scheme.ONE_PHASE, "2pc-1": Scheme.AGGREGATE, "2pc-2": Scheme.ONE_TO_ONE}
"""Names in flags, documents and spans."""
NAMES = {scheme: name for name, scheme in SCHEMES.items()}
EXCHANGES = ("auto", *SCHEMES)
"""What ``--exchange`` takes."""


@dataclass(frozen=True, slots=True)
class Topology:
    """Node labels of a cohort's workers, by rank."""

    attention: tuple[str, ...]
    moe: tuple[str, ...]
    moe_nodes: tuple[tuple[str, tuple[int, ...]], ...] = field(init=False)
    """(label, its MoE workers), nodes in the order of their first worker."""

    def __post_init__(self) -> None:
        moe = _groups((label, self.m + rank) for rank, label in enumerate(self.moe))
        object.__setattr__(self, "moe_nodes", moe)

    @property
    def m(self) -> int:
        """Attention workers."""
        return len(self.attention)

    @property
    def spread(self) -> bool:
        """Whether there is anything but one phase to choose: more than one node, and not too many ranks."""
        return len({*self.attention, *self.moe}) > 1 and self.m <= MAX_ACTIVE

    def node(self, worker: int) -> str:
        """Label of a worker's node."""
        return self.attention[worker] if worker < self.m else self.moe[worker - self.m]

    def remote(self, one: int, other: int) -> bool:
        """Whether two workers are on different nodes."""
        return self.node(one) != self.node(other)

    def attention_nodes(self, active: Sequence[int]) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """(label, its attention workers among ``active``), nodes in the order of their first one."""
        return _groups((self.attention[rank], rank) for rank in active)

    def mates(self, worker: int) -> list[int]:
        """Workers of the same role on the same node."""
        role = range(self.m) if worker < self.m else range(self.m, self.m + len(self.moe))
        return [w for w in role if w != worker and not self.remote(w, worker)]


def _groups(pairs: Iterable[tuple[str, int]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    groups: dict[str, list[int]] = {}
    for label, worker in pairs:
        groups.setdefault(label, []).append(worker)
    return tuple((label, tuple(workers)) for label, workers in groups.items())


def mask(ranks: Iterable[int]) -> int:
    """Ranks as bits. ValueError for a rank that a frame has no room for."""
    bits = 0
    for rank in ranks:
        if not 0 <= rank < MAX_ACTIVE:
            raise ValueError(f"attention rank {rank}; a frame has room for 0..{MAX_ACTIVE - 1}")
        bits |= 1 << rank
    return bits


def unmask(bits: int) -> tuple[int, ...]:
    """Ranks of :func:`mask`, ascending."""
    return tuple(rank for rank in range(bits.bit_length()) if bits >> rank & 1)
