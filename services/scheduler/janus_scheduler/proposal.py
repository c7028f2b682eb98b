"""A better placement for the layout in force, judged layer by layer. Pure: statistics in, proposal out."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from janus_kernels.replay import ActiveSets
from janus_placement import (
    Budget,
    Placement,
    PlacementError,
    Pool,
    Prices,
    RoutingWindow,
    expected_a_max,
    judge,
    place,
    plan_change,
    to_hosted,
)
from janus_placement.search import lower_bounds

MIN_SAMPLES = 64
"""Sampled tokens a layer needs before anything is said of it."""
_PRICE = 0.002
"""a_max that a replica's move must bring for the search to make it; the judgement in seconds comes after."""
_SECONDS = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerVerdict:
    """One layer: what is, what could be, what is proposed."""

    layer: int
    a_max_before: float
    a_max_after: float
    """Expected, on batches drawn anew; equal to before when the layer stays."""
    lower_bound: float
    go: bool
    reason: str
    loads: tuple[tuple[int, int], ...]
    """(MoE rank, expert) to load; of a layer that stays, what it would have taken."""
    proposed: Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    """A whole layout and what each layer's part is worth."""

    placement: tuple[Placement, ...]
    layers: tuple[LayerVerdict, ...]
    saved_s: float = math.inf
    """What all layers save together beyond the loading, seconds; infinite for what somebody asked for."""
    switch_s: float = 0.0
    """What each switch costs."""

    def part(self, layers: Sequence[int], current: Sequence[Placement]) -> Proposal:
        """Some of its moving layers; the others stay as in ``current``."""
        placement = [self.placement[i] if i in layers else p for i, p in enumerate(current)]
        verdicts = tuple(v for v in self.layers if v.layer in layers)
        return dataclasses.replace(self, placement=tuple(placement), layers=verdicts)

    @property
    def loads(self) -> dict[int, dict[int, list[int]]]:
        """Experts to load, by MoE rank and layer."""
        found: dict[int, dict[int, list[int]]] = {}
        for verdict in self.layers:
            if verdict.go:
                for rank, expert in verdict.loads:
                    found.setdefault(rank, {}).setdefault(verdict.layer, []).append(expert)
        return found

    @property
    def go(self) -> bool:
        """Whether any layer is to change."""
        return any(verdict.go for verdict in self.layers)


def propose(
    window: RoutingWindow,
    pool: Pool,
    current: Sequence[Placement],
    prices: Prices,
    policy: str,
    *,
    seed: int = 0,
    seconds: float = _SECONDS,
) -> Proposal:
    """Search each layer from what is loaded on half of its samples, and keep what pays on the other half.

    When all that the layers save together does not repay the switch, all stay.

    Baselines' policies are not replayed: for them the search is for ``aebs``.
    """
    replayed = policy if policy in ("optimal", "aebs") else "aebs"
    until = time.monotonic() + seconds
    placement, verdicts, saved = list(current), [], 0.0
    for layer in window.layers:
        routing = window.routing(layer)
        if layer >= len(current) or routing is None or len(routing.samples) < MIN_SAMPLES:
            continue
        left = until - time.monotonic()
        if left <= 0:
            break  # the rest has its turn at the next look
        batch = [max(1, round(window.mean_batch(layer)))]
        budget = Budget(evaluations=150, patience=60, seconds=left)
        known, unseen = routing.halves()
        found = place(
            pool, known, known.draw(batch, 256, seed + 2 * layer), policy=replayed, budget=budget,
            current=current[layer], price=_PRICE, incremental=True, seed=seed,
        )  # fmt: skip
        change = plan_change(current[layer], found.placement, pool)
        fresh = unseen.draw(batch, 256, seed + 2 * layer + 1)
        verdict = judge(current[layer], change, fresh, prices, replayed)
        before = _mean(current[layer], fresh, replayed)
        verdicts.append(
            LayerVerdict(
                layer=layer, a_max_before=before, a_max_after=before - (verdict.gain if verdict.go else 0.0),
                lower_bound=found.lower_bound, go=verdict.go, reason=verdict.reason, loads=change.loads,
                proposed=change.target,
            )
        )  # fmt: skip
        if verdict.go:
            placement[layer] = change.target
            saved += verdict.saving_s - verdict.cost_s
    if saved <= prices.switch_seconds and any(v.go for v in verdicts):
        text = f"all layers save {saved:.2f} s together; the switch costs {prices.switch_seconds:.2f} s"
        return Proposal(placement=tuple(current), layers=tuple(_stays(v, text) for v in verdicts))
    return Proposal(
        placement=tuple(placement), layers=tuple(verdicts), saved_s=saved, switch_s=prices.switch_seconds
    )


def demanded(
    window: RoutingWindow | None,
    pool: Pool,
    current: Sequence[Placement],
    target: Sequence[Placement],
    policy: str,
    *,
    seed: int = 0,
) -> Proposal:
    """The move to ``target``, which somebody asked for: not judged, but said what it does to a_max where that is known.

    Raises PlacementError naming the layer when ``target`` is none for this pool.
    """
    if len(target) != len(current):
        raise PlacementError(f"placement of {len(target)} MoE layers; this model has {len(current)}")
    replayed = policy if policy in ("optimal", "aebs") else "aebs"
    verdicts = []
    for layer, (now, then) in enumerate(zip(current, target, strict=True)):
        try:
            pool.check(then)
        except PlacementError as error:
            raise PlacementError(f"layer {layer}: {error}") from error
        loads = tuple((g, e) for g, row in enumerate(then) for e in row if e not in now[g])
        if now == then:
            continue
        routing = window.routing(layer) if window else None
        before = after = bound = 0.0
        if window is not None and routing is not None and len(routing.samples) >= MIN_SAMPLES:
            sets = routing.draw([max(1, round(window.mean_batch(layer)))], 256, seed + 2 * layer)
            before, after = (_mean(p, sets, replayed) for p in (now, then))
            bound = float(lower_bounds(sets, pool.num_instances).mean())
        verdicts.append(
            LayerVerdict(
                layer=layer, a_max_before=before, a_max_after=after, lower_bound=bound, go=True,
                reason="asked for", loads=loads, proposed=then,
            )
        )  # fmt: skip
    return Proposal(placement=tuple(target), layers=tuple(verdicts))


def _stays(verdict: LayerVerdict, reason: str) -> LayerVerdict:
    if not verdict.go:
        return verdict
    return dataclasses.replace(verdict, go=False, a_max_after=verdict.a_max_before, reason=reason)


def _mean(placement: Placement, sets: ActiveSets, policy: str) -> float:
    return expected_a_max(to_hosted(placement, sets.num_experts), sets, policy)
