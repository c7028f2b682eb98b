"""All candidates at once: the solver's search in numpy, what :func:`janus_scaling.solver.evaluate` does one by one.

It finds B of every candidate and which of them meet the target; candidates as such are made when they are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from janus_scaling.comm import Exchange
from janus_scaling.performance import PerformanceModel

if TYPE_CHECKING:
    from janus_scaling.demand import Demand
    from janus_scaling.solver import Problem

Float = np.ndarray[Any, np.dtype[np.float64]]
HALVINGS = 60
"""More than any tolerance needs."""


Means = Callable[[int], Sequence[float]]
"""n_e -> a_max at 1, 2, 4, ... tokens; linear in log2 of the tokens between them, and as the last beyond it."""


def tabled(a_max: object) -> Means | None:
    """The table that an a_max is (its ``means``), if it is one."""
    means: Means | None = getattr(a_max, "means", None)
    return means


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """float64 [N] each, in the order of the sizes asked for."""

    batch: Float
    """B; NaN where the rate cannot be sustained."""
    order: list[int]
    """Candidates that meet the target, the best first."""


def exchange_seconds(exchange: Exchange, n_a: Float, n_e: Float, tokens: Float) -> Float:
    """:meth:`Exchange.seconds` of many."""
    hw, row = exchange.hardware, exchange.row_bytes
    link = hw.link_bandwidth * hw.bandwidth_efficiency
    network = hw.network_bandwidth * hw.bandwidth_efficiency
    egate = exchange.gating == "moe"
    b = tokens / n_a

    def spread(places: Float) -> Float:
        return places * (1 - (1 - 1 / places) ** exchange.top_k)

    def copies(places: Float) -> Float:
        return places if egate else spread(places)

    def direct(sent: Float, bandwidth: float, latency: float) -> Float:
        sender = b * sent * row / bandwidth + n_e * latency
        receiver = b * n_a * copies(n_e) / n_e * row / bandwidth + n_a * latency
        return np.maximum(sender, receiver)

    near = direct(np.ones_like(n_e) if egate else spread(n_e), link, hw.link_latency_s)
    if exchange.phases == 1:
        far = direct(copies(n_e), network, hw.network_latency_s)
    else:
        a_nodes, e_nodes = np.ceil(n_a / hw.devices_per_node), np.ceil(n_e / hw.devices_per_node)
        p, q = np.ceil(n_a / a_nodes), np.ceil(n_e / e_nodes)
        gather = (p - 1) * (b * row / link + hw.link_latency_s)
        share = copies(e_nodes) / e_nodes
        message = p * b * share * row / network + hw.network_latency_s
        each = np.maximum(np.ceil(e_nodes / p), np.ceil(a_nodes / q)) * message
        inside = copies(n_e) * q / n_e
        forward = inside * p * b * row * np.ceil(a_nodes / q) / link + hw.link_latency_s * q
        striped = np.maximum(e_nodes, np.ceil(n_a / q)) * (b * share * row / network + hw.network_latency_s)
        far = np.minimum(gather + each, striped) + forward
    way = np.where(n_a + n_e <= hw.devices_per_node, near, far)
    if not egate:
        way = way + hw.network_latency_s + hw.layer_overhead_s
    return np.asarray(2 * way)


class Steps:
    """Time of a step of every candidate."""

    def __init__(
        self, performance: PerformanceModel, means: Means, n_a: Float, n_e: Float, demand: Demand
    ) -> None:
        self._performance, self._n_a, self._n_e = performance, n_a, n_e
        self._context, self._share = demand.context, demand.prompt_share
        sizes, self._row = np.unique(n_e, return_inverse=True)
        self._table = np.array([means(int(n)) for n in sizes])
        crowding = np.vectorize(performance.crowding, otypes=[np.float64])
        self._crowd_a, self._crowd_e = crowding(n_a), crowding(n_e)

    def __call__(self, streams: Float) -> Float:
        """Seconds, float64 [N], of ``streams`` float64 [N]."""
        p, c, model = self._performance, self._performance.coefficients, self._performance.model
        tokens = streams * (1 + self._share)
        each = tokens / self._n_a
        attention = np.maximum(c.c_a, c.alpha * each + c.c_kv * each * self._context) * self._crowd_a
        pairs = tokens * model.top_k / self._n_e
        moe = (np.maximum(c.beta * self.a_max(tokens), c.kappa * pairs) + c.c_e) * self._crowd_e
        modelled = exchange_seconds(p.exchange, self._n_a, self._n_e, tokens)
        comm = c.comm_scale * modelled + c.comm_fixed + c.comm_token * tokens
        return np.asarray(model.layers * attention + model.moe_layers * (moe + comm) + c.c_step)

    def a_max(self, tokens: Float) -> Float:
        """The table's, of every candidate."""
        last = self._table.shape[1] - 1
        x = np.log2(np.maximum(tokens, 1.0))
        at = np.minimum(x.astype(np.int64), last)
        low, high = self._table[self._row, at], self._table[self._row, np.minimum(at + 1, last)]
        return np.asarray(low + np.where(at < last, x - at, 0.0) * (high - low))


def search(
    problem: Problem, sizes: Sequence[tuple[int, int]], demand: Demand, most: Float, *, batch: float | None = None
) -> Found:  # fmt: skip
    """B of each of ``sizes``, and those that meet the target in the order of preference.

    ``most``: float64 [N], streams that fit. Only for problems whose pools are separate; their rule is not asked.
    """
    means = tabled(problem.a_max)
    assert means is not None
    bounds, target = problem.bounds, problem.target
    n_a, n_e = np.array(sizes, np.float64).T
    live_a, live_e = n_a - bounds.spare_attention, n_e - bounds.spare_moe
    steps = Steps(problem.performance, means, live_a, live_e, demand)
    if batch is None:
        found = _little(steps, demand.tokens_per_s, np.maximum(1.0, np.minimum(bounds.max_batch, most)))
        found = np.minimum(np.maximum(found + bounds.burst * np.sqrt(found), demand.streams), most)
    else:
        found = np.full(len(sizes), batch)
    known = np.where(np.isnan(found), 1.0, found)
    tpot = steps(known)
    budget = float(bounds.prefill_tokens)
    load = demand.prompt_tokens_per_s * tpot / (budget * live_a)
    chunks = max(1.0, demand.prompt_length / budget)
    with np.errstate(divide="ignore", invalid="ignore"):
        ttft = np.where(load < 1, tpot * (0.5 + chunks + chunks * load / (2 * (1 - load))), np.inf)
    good = ~np.isnan(found) & (known <= most) & (tpot <= target.tpot_s) & (ttft <= target.ttft_s)
    cost = n_a * problem.attention.price + n_e * problem.moe.price
    ranked = np.lexsort((n_a, tpot, n_a + n_e, cost))
    return Found(found, [int(i) for i in ranked if good[i]])


def _little(steps: Steps, rate: float, most: Float, tolerance: float = 1e-4) -> Float:
    """B* = rate x TPOT(B*) on [1, most] of every candidate, by bisection; NaN where the rate cannot be sustained."""
    low, high = np.ones_like(most), most.copy()
    idle = rate * steps(low) <= low
    drowned = rate * steps(high) > high
    for _ in range(HALVINGS):
        if (high - low <= tolerance * high).all():
            break
        middle = (low + high) / 2
        above = rate * steps(middle) > middle
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(idle, 1.0, np.where(drowned, np.nan, high))
