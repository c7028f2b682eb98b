"""Which scheme a step's layers are exchanged by: predicted, then measured. Pure: times come in, choices go out.

The prediction says which schemes are worth a try; the times of steps say which is quickest. Loads are told apart
by active workers and, in powers of two, by tokens.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from janus_transport.cost import DEFAULT, Links, predict
from janus_transport.plan import Edge, Plan, make_plan
from janus_transport.topology import Scheme, Topology

_WINDOW = 15
"""Steps of one scheme that are remembered."""
_ENOUGH = 3
"""Steps of one scheme for a verdict."""
_WORTH = 2.0
"""Schemes predicted to take at most this many times the least are tried, and in any case the second best."""
_MARGIN = 0.02
"""Another one must be this much quicker."""
_FIRST, _LONGEST = 64, 4096
"""Steps until the others are measured again; doubled each time that changes nothing."""


@dataclass(slots=True)
class _Load:
    predicted: dict[Scheme, float]
    current: Scheme
    times: dict[Scheme, deque[float]] = field(default_factory=dict)
    trial: list[Scheme] = field(default_factory=list)
    """Schemes still to be measured, in this order."""
    patience: int = _FIRST
    left: int = _FIRST


class Chooser:
    """Chooses for a cohort. The same load and times give the same choices."""

    def __init__(
        self,
        topology: Topology,
        *,
        out: int,
        back: int,
        most: int,
        links: Links = DEFAULT,
        learn: bool = True,
    ) -> None:
        """``out``, ``back``, ``most``: as in :func:`janus_transport.cost.predict`; ``learn``: else predict alone."""
        self.links = links
        self._topology = topology
        self._sizes = {"out": out, "back": back, "most": most}
        self._learn = learn
        self._loads: dict[tuple[int, int], _Load] = {}
        self._plans: dict[tuple[Scheme, tuple[int, ...]], Plan] = {}

    def choose(self, tokens: Mapping[int, int], *, trial: bool = True) -> tuple[Scheme, float]:
        """The scheme for a step with these rows by active attention rank, and its predicted seconds per layer.

        ``trial``: the step may try another scheme than the best known, and :meth:`observe` will follow.
        """
        load = self._load(tokens)
        scheme = load.trial[0] if load.trial and trial else load.current
        return scheme, load.predicted[scheme]

    def predictions(self, tokens: Mapping[int, int]) -> dict[Scheme, float]:
        """Predicted seconds per layer of every scheme."""
        active = tuple(sorted(tokens))
        found = {}
        for scheme in Scheme:
            plan = self._plan(scheme, active)
            found[scheme] = predict(plan, self._topology, tokens, self.links, **self._sizes)
        return found

    def _plan(self, scheme: Scheme, active: tuple[int, ...]) -> Plan:
        plan = self._plans.get((scheme, active))
        if plan is None:
            if len(self._plans) > 64:
                self._plans.clear()
            plan = self._plans[scheme, active] = make_plan(scheme, self._topology, active)
        return plan

    def _load(self, tokens: Mapping[int, int]) -> _Load:
        key = (hash(tuple(sorted(tokens))), sum(tokens.values()).bit_length())
        load = self._loads.get(key)
        if load is None:
            predicted = self.predictions(tokens)
            order = sorted(predicted, key=lambda scheme: (predicted[scheme], scheme))
            worth: dict[tuple[Edge, ...], Scheme] = {}
            for scheme in order:
                if len(worth) < 2 or predicted[scheme] <= _WORTH * predicted[order[0]]:
                    # With one worker on a node schemes may come to the same messages.
                    worth.setdefault(self._plan(scheme, tuple(sorted(tokens))).edges, scheme)
            load = self._loads[key] = _Load(predicted, order[0])
            load.trial = list(worth.values()) if self._learn and len(worth) > 1 else []
        return load

    def observe(self, tokens: Mapping[int, int], scheme: Scheme, seconds: float) -> None:
        """A step with these rows went by ``scheme`` and took so long per layer, computing and all."""
        if not self._learn:
            return
        load = self._load(tokens)
        times = load.times.setdefault(scheme, deque(maxlen=_WINDOW))
        times.append(seconds)
        if load.trial:
            if scheme is load.trial[0] and len(times) >= _ENOUGH:
                del load.trial[0]
                if not load.trial:
                    self._decide(load)
            return
        load.left -= 1
        if load.left <= 0:
            load.left = load.patience
            others = [s for s in load.times if s is not load.current]
            for other in others:
                load.times[other].clear()
            load.trial = others

    @staticmethod
    def _decide(load: _Load) -> None:
        medians = {scheme: statistics.median(times) for scheme, times in load.times.items() if times}
        best = min(medians, key=lambda scheme: (medians[scheme], scheme))
        now = medians.get(load.current)
        if now is None or medians[best] < (1 - _MARGIN) * now:
            load.current, load.patience = best, _FIRST
        else:
            load.patience = min(2 * load.patience, _LONGEST)
        load.left = load.patience
