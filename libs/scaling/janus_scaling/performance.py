"""The performance model (paper, section 3.5): time of a step from sizes, batch and a_max.

TPOT = sum over layers of T_attn + T_moe + T_comm, with T_attn = max(c_a, alpha b + c_kv b S), b = B / n_a, and
T_moe = beta a_max + c_e. Ours: prompt tokens of the step count where they cost, T_moe becomes arithmetic-bound where
batches are large (kappa), and what a step costs once, outside of the layers, is a term of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from janus_scaling.checks import number
from janus_scaling.comm import Exchange
from janus_scaling.profiles import HardwareProfile
from janus_scaling.shapes import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Coefficients:
    """Seconds, per layer unless said otherwise. Raises ScalingError for negative numbers."""

    c_a: float
    """Least time of attention and dense parts: reading their weights."""
    alpha: float
    """Per token of one attention worker."""
    c_kv: float
    """Per token of one attention worker and token of its context."""
    beta: float
    """Per distinct activated expert on the fullest instance: reading its weights."""
    c_e: float
    """Of a MoE layer, whatever is in it."""
    kappa: float = 0.0
    """Per (token, expert) pair on one instance: its arithmetic. The larger of this and ``beta`` counts."""
    c_step: float = 0.0
    """Once a step: dense layers, head, sampling."""
    comm_scale: float = 1.0
    """Measured over modelled time of the exchange."""
    comm_fixed: float = 0.0
    """Of an exchange, beside the model's."""
    comm_token: float = 0.0
    """Per token of all attention workers, beside the model's."""

    def __post_init__(self) -> None:
        for field in fields(self):
            number(field.name, getattr(self, field.name), 0, 1e6)


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step by part, all layers together."""

    attention: float
    moe: float
    comm: float
    once: float

    @property
    def total(self) -> float:
        """Seconds of the step: TPOT."""
        return self.attention + self.moe + self.comm + self.once


NO_TIME = StepTime(0.0, 0.0, 0.0, 0.0)


def roofline(model: ModelShape, attention: HardwareProfile, moe: HardwareProfile) -> Coefficients:
    """Coefficients from hardware profiles; context costs its bytes or its arithmetic, whichever is dearer."""
    weights = model.attention_weights + model.shared_weights * model.moe_layers / model.layers
    kv_bytes = model.cached_values * model.cache_bytes
    outside = model.dense_weights + model.vocab * model.hidden
    return Coefficients(
        c_a=weights * model.weight_bytes / attention.effective_bandwidth + attention.layer_overhead_s,
        alpha=2 * weights / attention.effective_flops,
        c_kv=max(kv_bytes / attention.effective_bandwidth, model.score_flops / attention.effective_flops),
        beta=model.expert_bytes / moe.effective_bandwidth,
        kappa=2 * model.expert_weights / moe.effective_flops,
        c_e=moe.layer_overhead_s,
        c_step=outside * model.weight_bytes / attention.effective_bandwidth,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PerformanceModel:
    """A model on two pools."""

    model: ModelShape
    coefficients: Coefficients
    exchange: Exchange
    shared_cores: float = float("inf")
    """Cores that all workers of a pool share, one each at a time; infinite where each has a device of its own.
    A pool of more workers than that is slower by the ratio: what a mesh on one machine has to know."""

    def crowding(self, workers: int) -> float:
        """How many times as long each of ``workers`` takes that compute at once."""
        return max(1.0, workers / self.shared_cores)

    def step(
        self, n_a: int, n_e: int, batch: float, context: float, a_max: float, *, prompt: float = 0.0,
        colocated: bool = False,
    ) -> StepTime:  # fmt: skip
        """Time of one step.

        Args:
            batch: B, tokens that decoding streams add, all workers together.
            context: S, mean tokens in the cache of a stream.
            a_max: distinct activated experts on the fullest instance, for ``batch + prompt`` tokens.
            prompt: prompt tokens in the step, all workers together.
            colocated: n_a = n_e devices have both, and their exchange is an all-to-all.
        """
        c, model, tokens = self.coefficients, self.model, batch + prompt
        attention = max(c.c_a, c.alpha * tokens / n_a + c.c_kv * tokens / n_a * context)
        moe = max(c.beta * a_max, c.kappa * tokens * model.top_k / n_e) + c.c_e
        modelled = (
            self.exchange.colocated_seconds(n_a, tokens)
            if colocated
            else self.exchange.seconds(n_a, n_e, tokens)
        )
        comm = c.comm_scale * modelled + c.comm_fixed + c.comm_token * tokens
        attention, moe = attention * self.crowding(n_a), moe * self.crowding(n_e)
        return StepTime(model.layers * attention, model.moe_layers * moe, model.moe_layers * comm, c.c_step)
