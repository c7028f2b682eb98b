"""Rebalancing in virtual time: hours of routing through the real Recorder, window, search and judgement in seconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from janus_placement import (
    LayerRouting,
    Placement,
    Pool,
    Prices,
    Recorder,
    RoutingWindow,
    expected_a_max,
    place,
    to_hosted,
)
from janus_scheduler.placement import layers_round_robin
from janus_scheduler.proposal import propose

REPORT_S = 2.0
"""Seconds between a worker's reports."""


@dataclass(frozen=True, slots=True)
class Topics:
    """Synthetic routing: popular experts, and by topic experts that go together."""

    experts: int
    top_k: int
    layers: int
    topics: int = 6
    seed: int = 0

    def draw(self, rng: np.random.Generator, layer: int, tokens: int, topic: int | None = None) -> np.ndarray:
        """int32 [tokens, k] expert ids; ``topic`` None: each token has one of its own."""
        own = np.random.default_rng([self.seed, layer])
        popular = -0.7 * np.log(own.permutation(self.experts) + 1.0)
        taste = popular + 1.5 * own.standard_normal((self.topics, self.experts))
        which = rng.integers(0, self.topics, tokens) if topic is None else np.full(tokens, topic)
        scores = taste[which] + rng.gumbel(size=(tokens, self.experts))
        return np.argsort(-scores, axis=1)[:, : self.top_k].astype(np.int32)


@dataclass(frozen=True, slots=True)
class Look:
    """What a look at the placement found, and what the routing of the time since the last one really came to."""

    time_s: float
    a_max: float
    """Mean over the layers, of the placement that was in force, on batches of the topic that was."""
    a_max_next: float
    """And of the one in force from now on."""
    best: float
    """And of one made for that topic alone, from much more routing than is ever reported."""
    moved: int
    """Layers that change."""
    loads: int


@dataclass(slots=True)
class VirtualMesh:
    """``Topics`` served by ``instances`` MoE workers with ``slots`` each; the scheduler looks every ``every_s``."""

    topics: Topics
    instances: int
    slots: int
    batch: int
    """Tokens of a step."""
    prices: Prices
    every_s: float = 30.0
    half_life_s: float = 60.0
    steps_per_s: float = 4.0
    """Of those that are really drawn: the prices have their own."""
    seed: int = 0
    looks: list[Look] = field(default_factory=list)
    _now: float = 0.0
    _placement: list[Placement] = field(default_factory=list)
    _judged: dict[tuple[int | None, int], Any] = field(default_factory=dict)

    def run(self, seconds: float, topic: Callable[[float], int | None]) -> list[Look]:
        """Serve for that long; ``topic(time)`` says what about."""
        t = self.topics
        rng = np.random.default_rng(self.seed)
        window = RoutingWindow(t.experts, t.top_k, half_life_s=self.half_life_s, clock=lambda: self._now)
        recorder = Recorder(t.experts, t.top_k, seed=self.seed)
        pool = Pool(num_experts=t.experts, slots=(self.slots,) * self.instances)
        self._placement = list(layers_round_robin(t.experts, [self.slots] * self.instances, t.layers))
        steps = max(1, round(REPORT_S * self.steps_per_s))
        for look in range(int(seconds / self.every_s)):
            about = topic(self._now)
            for _ in range(int(self.every_s / REPORT_S)):
                about = topic(self._now)
                for layer in range(t.layers):
                    ids = t.draw(rng, layer, steps * self.batch, about)
                    for step in np.split(ids, steps):
                        recorder.observe(layer, step)
                for report in recorder.take():
                    window.add(report)
                self._now += REPORT_S
            before = self._mean(about)
            proposal = propose(window, pool, self._placement, self.prices, "optimal", seed=look)
            self._placement = list(proposal.placement)
            loads = sum(len(experts) for rows in proposal.loads.values() for experts in rows.values())
            moved = sum(v.go for v in proposal.layers)
            best = float(np.mean([self._batches(about, i)[1] for i in range(t.layers)]))
            after = self._mean(about) if moved else before
            self.looks.append(Look(self._now, before, after, best, moved, loads))
        return self.looks

    def _mean(self, topic: int | None) -> float:
        experts = self.topics.experts
        return float(
            np.mean(
                [
                    expected_a_max(to_hosted(p, experts), self._batches(topic, layer)[0])
                    for layer, p in enumerate(self._placement)
                ]
            )
        )

    def _batches(self, topic: int | None, layer: int) -> tuple[Any, float]:
        """Batches of the true routing, and what a placement made for it has on them."""
        if (topic, layer) not in self._judged:
            t = self.topics
            rng = np.random.default_rng([self.seed, layer, 1])
            known, fresh = (LayerRouting(t.draw(rng, layer, 8000, topic), t.experts) for _ in range(2))
            sets = fresh.draw([self.batch], 1000, layer)
            pool = Pool(num_experts=t.experts, slots=(self.slots,) * self.instances)
            made = place(pool, known, known.draw([self.batch], 1000, layer + 1))
            self._judged[topic, layer] = sets, expected_a_max(to_hosted(made.placement, t.experts), sets)
        return self._judged[topic, layer]
