"""How the layers of a step travel between nodes, as the coordinator chooses it (docs/exchange.md)."""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from janus_transport.choice import Chooser
from janus_transport.cost import DEFAULT, Links, Sizes
from janus_transport.topology import NAMES, SCHEMES, Scheme, mask
from janus_worker.engine import CohortEngine
from janus_worker.lockstep import EngineCohort
from janus_worker.packing import Needs
from janus_worker.profile import measure_links
from janus_worker.rows import row_bytes


class ExchangeChoice:
    """MoE rank 0 measures links when members change, predicts, and learns from the times of steps."""

    def __init__(self, engine: CohortEngine, *, hidden: int, topk: int, most: int, layers: int) -> None:
        self._engine = engine
        self._hidden, self._topk, self._most, self._layers = hidden, topk, most, layers
        self._needs = Needs((), 0)
        self._cohort: EngineCohort | None = None
        """Of more nodes than one, and coordinated here; else None."""
        self._measured: tuple[Any, Links] = (None, DEFAULT)
        """Members, and the links between them."""
        self._chooser: Chooser | None = None
        self._narrow = False
        """What its sizes are of."""
        self._step: tuple[Mapping[int, int], Scheme, float] | None = None
        self.steps: Counter[str] = Counter()
        """Lanes by the scheme chosen for them."""
        self.latest: dict[str, Any] = {}
        """Span attributes of the choice in force."""

    def adopt(self, cohort: EngineCohort, rank: int, needs: Needs) -> None:
        """Take up a cohort; ``needs``: of its layout."""
        self._needs = needs
        ours = rank == 0 and cohort.topology.spread and cohort.exchange != "1pc" and self._layers > 1
        self._cohort = cohort if ours else None
        self._chooser = self._step = None
        self.latest = {}

    def prepare(self) -> None:
        """Before the cohort's first step: measure links, unless the same members' are known. Raises PeerLost."""
        cohort = self._cohort
        if cohort is None or self._chooser is not None:
            return
        if self._measured[0] != cohort.members:
            self._measured = (cohort.members, measure_links(self._engine, cohort))

    def _sizes(self, gated: bool, narrow: bool) -> Sizes:
        out, back = row_bytes(self._hidden, narrow), 8 * self._hidden
        if not gated:
            return Sizes(out=out, back=back, most=self._most)
        # Packed (packing.py): rows go where one of their experts may be, ids everywhere.
        needs, topk = self._needs, self._topk

        @functools.cache
        def share(ranks: tuple[int, ...]) -> float:
            return needs.share(ranks, topk)

        return Sizes(out=out + 8 * topk, back=back, most=self._most, ids=4 * topk, share=share)

    def choose(self, tokens: Mapping[int, int], *, split: bool, narrow: bool) -> tuple[int, int]:
        """Scheme and active ranks, as bits, for a lane with these tokens by attention rank; ``narrow``: hidden states
        travel as bf16."""
        self._step = None
        if self._cohort is None:
            return 0, 0
        if self._chooser is None or narrow != self._narrow:
            sizes = self._sizes(self._cohort.gating == "attention", narrow)
            self._chooser = Chooser(self._cohort.topology, sizes, links=self._measured[1])
            self._narrow = narrow
        if self._cohort.exchange == "auto":
            # Times of split steps belong to two lanes: they teach nothing, and nothing is tried in them.
            scheme, predicted = self._chooser.choose(tokens, trial=not split)
        else:
            scheme = SCHEMES[self._cohort.exchange]
            predicted = self._chooser.predictions(tokens)[scheme]
        self.steps[NAMES[scheme]] += 1
        self.latest = {"janus.exchange": NAMES[scheme], "janus.exchange_predicted_us": int(predicted * 1e6)}
        if not split:
            self._step = (tokens, scheme, time.perf_counter())
        return scheme, mask(tokens)

    def observe(self) -> None:
        """The step's last layer is computed."""
        if self._step is not None and self._chooser is not None:
            tokens, scheme, began = self._step
            self._step = None
            self._chooser.observe(tokens, scheme, (time.perf_counter() - began) / (self._layers - 1))
