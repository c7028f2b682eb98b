"""One layer's batch on its way through a node: whole rows, or, gated, those that its workers need."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from janus_transport import Header
from janus_transport.plan import Plan
from janus_worker.lockstep import Flag
from janus_worker.packing import Piece
from janus_worker.relay import Rows

_GATED = int(Flag.GATED)


@dataclasses.dataclass(slots=True, kw_only=True)
class Relayed:
    """One layer's batch as it came over a plan, of all active attention ranks."""

    x_TD: torch.Tensor
    """fp32 [T, d], in rank order; gated [R, d]"""
    ids_TK: torch.Tensor | None = None
    """int32 [T, k] in rank order, gated."""
    weights_TK: torch.Tensor | None = None
    """fp64 [R, k], gated."""
    rows_R: Rows | None = None
    """int64, gated: which tokens the rows of ``x_TD`` are."""
    plan: Plan
    headers: list[Header]
    """Of the messages that it came in."""
    places: Mapping[int, slice]
    """Rows of ``x_TD`` by attention rank."""
    passed: dict[tuple[int, int], Rows] = dataclasses.field(default_factory=dict)
    """Gated: of these, which were passed on, by receiver and attention rank."""


class Batch:
    """Collects a layer's rows; frames are gone once they were added."""

    def __init__(self, tokens: Mapping[int, int], rows: Mapping[int, slice]) -> None:
        """By attention rank: how many tokens, and which of the whole batch's they are."""
        self.tokens, self.rows = tokens, rows
        self.total = sum(tokens.values())
        self.headers: list[Header] = []
        self.places: dict[int, slice] = {}
        self.pieces: dict[int, Piece] = {}
        """Gated, by attention rank."""
        self.x_TD: Rows = np.empty((0, 0), np.float32)
        self._ids_TK = self._weights_TK = self.x_TD
        self._end = 0

    @property
    def gated(self) -> bool:
        """Whether rows come with ids and weights."""
        return bool(self.headers[0].flags & _GATED)

    def add(self, sources: tuple[int, ...], x: Rows) -> None:
        """All rows of some ranks."""
        if not self.x_TD.size:
            self.x_TD = np.empty((self.total, x.shape[1]), np.float32)
        at = 0
        for source in sources:
            self.places[source] = self.rows[source]
            self.x_TD[self.rows[source]] = x[at : at + self.tokens[source]]
            at += self.tokens[source]

    def add_piece(self, sources: tuple[int, ...], found: Piece) -> None:
        """Some rows of some ranks: one after the other as they come."""
        if not self._ids_TK.size:
            topk = found.ids_TK.shape[1]
            self.x_TD = np.empty((self.total, found.x_RD.shape[1]), np.float32)
            self._weights_TK = np.empty((self.total, topk))
            self._ids_TK = np.empty((self.total, topk), np.int32)
        first = 0
        for source in sources:
            part = found.part(first, first + self.tokens[source])
            first += self.tokens[source]
            place = self.places[source] = slice(self._end, self._end + len(part.x_RD))
            self._end = place.stop
            self.x_TD[place], self._weights_TK[place] = part.x_RD, part.weights_RK
            self._ids_TK[self.rows[source]] = part.ids_TK
            self.pieces[source] = Piece(
                self.x_TD[place], self._weights_TK[place], self._ids_TK[self.rows[source]], part.rows_R
            )

    def finish(self, plan: Plan, passed: dict[tuple[int, int], Rows]) -> Relayed:
        """Once all have come."""
        relayed = Relayed(
            x_TD=torch.from_numpy(self.x_TD),
            plan=plan,
            headers=self.headers,
            places=self.places,
            passed=passed,
        )
        if self.gated:
            relayed.x_TD = relayed.x_TD[: self._end]
            relayed.weights_TK = torch.from_numpy(self._weights_TK[: self._end])
            relayed.ids_TK = torch.from_numpy(self._ids_TK)
            relayed.rows_R = np.concatenate(
                [piece.rows_R + self.rows[source].start for source, piece in self.pieces.items()]
            )
        return relayed
