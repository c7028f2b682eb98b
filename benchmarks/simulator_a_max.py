"""Figure 13: a_max beside the paper's, the routing closest to it, what would come closer; for bench_simulator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from janus_placement import LayerRouting, Placement
from janus_scaling import AMaxEstimator, bound, synthetic_layers
from janus_simulator.paper import A_MAX
from janus_simulator.report import markdown

SLOTS = 27
Estimate = Callable[[int, float], float]
Make = Callable[[list[LayerRouting], list[LayerRouting]], Estimate]
"""From a routing, and another of the same kind in which other experts are popular."""


@dataclass(frozen=True, slots=True, order=True)
class Fitted:
    """The routing of a grid that comes closest."""

    error: float
    """Relative RMS over the paper's a_max."""
    skew: float
    idle: float
    values: tuple[float, ...] = ()


@functools.cache
def routing(num_experts: int, top_k: int, skew: float, idle: float, seed: int) -> list[LayerRouting]:
    """One layer."""
    return synthetic_layers(num_experts, top_k, layers=1, skew=skew, topic=0.0, idle=idle, seed=seed)


def fit(make: Make, skews: tuple[float, ...], idles: tuple[float, ...], seed: int) -> tuple[Fitted, Fitted]:
    """The closest, and the closest with the exponent alone."""
    found = []
    for idle in idles:
        for skew in skews:
            made = make(*(routing(160, 6, skew, idle, s) for s in (seed, seed + 1)))
            values = tuple(made(*key) for key in A_MAX)
            off = [(v / paper - 1) ** 2 for v, paper in zip(values, A_MAX.values(), strict=True)]
            found.append(Fitted(float(np.mean(off) ** 0.5), skew, idle, values))
    return min(found), min(f for f in found if not f.idle)


def estimator(layers: list[LayerRouting], slots: int = SLOTS, **how: Any) -> AMaxEstimator:
    """AEBS, by load, unless said otherwise."""
    return AMaxEstimator(layers, slots, **{"policy": "aebs", "batches": 24, "largest": 512, **how})


class Stale(AMaxEstimator):
    """On a placement that was made for another routing."""

    other: AMaxEstimator

    def placement(self, layer: int, n_e: int) -> Placement:
        """The other's."""
        return self.other.placement(layer, n_e)


def _stale(now: list[LayerRouting], before: list[LayerRouting], **how: Any) -> Estimate:
    made = Stale(now, SLOTS, policy="aebs", batches=24, largest=512, **how)
    made.other = estimator(before, **how)
    return made


def _few_slots(now: list[LayerRouting], _: list[LayerRouting]) -> Estimate:
    made = {n_e: estimator(now, min(SLOTS, -(-160 // n_e) + 1)) for n_e in {n for n, _ in A_MAX}}
    return lambda n_e, tokens: made[n_e](n_e, tokens)


ASSUMPTIONS: dict[str, Make] = {
    "none: aebs, by load": lambda now, _: estimator(now),
    "aebs, by co-activation (the paper's)": lambda now, _: estimator(now, strategy="coactivation"),
    "aebs, one slot more than experts need": _few_slots,
    "aebs, by load of another routing (stale)": _stale,
    "a random replica, by load": lambda now, _: estimator(now, policy="random"),
}


def what_if(seed: int) -> tuple[str, Fitted]:
    """Each assumption with the routing that suits it best; and the routing of the last."""
    keys = [f"{n_e}, {batch}" for n_e, batch in A_MAX]
    table = [["changed assumption", "exponent, idle", *keys, "relative RMS", "closes"]]
    table.append(["the paper", "-", *(f"{v:.2f}" for v in A_MAX.values()), "-", "-"])
    first = best = None
    for text, make in ASSUMPTIONS.items():
        best, _ = fit(make, (0.6, 0.9, 1.2, 1.5, 1.8), (0.0, 0.2, 0.25), seed)
        first = first or best
        closed = 1 - best.error / first.error
        share = "-" if best is first else f"{closed:.0%}" if closed >= 0 else "away"
        cells = [f"{v:.2f}" for v in best.values]
        table.append([text, f"{best.skew}, {best.idle:.0%}", *cells, f"{best.error:.0%}", share])
    assert best is not None
    return markdown(table), best


def beside(layers: list[Any]) -> str:
    """The estimates on one routing, and the bound."""
    made = {
        "aebs, by load": AMaxEstimator(layers, SLOTS, policy="aebs", largest=512),
        "aebs, by co-activation (the paper's)": AMaxEstimator(
            layers, SLOTS, policy="aebs", strategy="coactivation", largest=512
        ),
        "optimal, by load": AMaxEstimator(layers, SLOTS, largest=512),
    }
    first = made["aebs, by load"]
    table = [["n_e", "B", "paper", *made, "Appendix A's bound"]]
    for (n_e, batch), value in A_MAX.items():
        limit = np.mean([bound(x, first.placement(i, n_e), batch, SLOTS) for i, x in enumerate(layers)])
        row = [str(n_e), str(batch), f"{value:.2f}"]
        table.append([*row, *(f"{m(n_e, batch):.2f}" for m in made.values()), f"{limit:.2f}"])
    return markdown(table)
